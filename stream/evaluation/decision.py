"""Which of two arms is better, by five rules that were fixed before looking; measures nothing.

The rules ask whether the arm with the smaller loss may replace the other one. What they leave open
stays open: "no difference is shown" is a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DAYS_SHARE = 2 / 3
SLICE_SHARE_MIN = 0.01
CALIBRATION_OFF_MAX = 0.02

_RULES = (
    "the 95 % interval of the difference excludes 0",
    "the sign agrees on two thirds of the days",
    "no slice over 1 % of impressions loses",
    "calibration within 1 ± 0.02",
    "a placebo shows no gain",
)


def decide(
    pair: Mapping[str, Any],
    calibration: Mapping[str, float | None],
    placebos: Sequence[Mapping[str, Any]] | None = (),
) -> dict[str, Any]:
    """Decision on a pair entry: {accept, winner, rules, words}.

    `accept` is about `a`: True where it may replace `b`, None where no difference is shown. The
    winner is the better arm that passes every rule that could be run. `placebos` are the
    evaluation's placebo entries; None where the arms differ in more than content, so that a placebo
    may well be better than the other arm.
    """
    better, other = (pair["a"], pair["b"]) if pair["mean"] <= 0 else (pair["b"], pair["a"])
    sign = 1.0 if better == pair["a"] else -1.0
    outcomes = (
        _interval(pair),
        _days(pair, sign),
        _slices(pair, sign),
        _calibration(better, calibration.get(better)),
        _placebo(better, other, placebos),
    )
    rules = [
        {"rule": rule, "passed": passed, "detail": detail}
        for rule, (passed, detail) in zip(_RULES, outcomes, strict=True)
    ]
    checked = zip(_RULES[1:], outcomes[1:], strict=True)
    failed = [rule for rule, (passed, _) in checked if passed is False]
    if not rules[0]["passed"]:
        accept, winner = None, None
    else:
        winner = None if failed else better
        accept = winner == pair["a"]
    return {
        "accept": accept,
        "winner": winner,
        "rules": rules,
        "words": _words(pair, better, other, rules, failed),
    }


def _words(
    pair: Mapping[str, Any],
    better: str,
    other: str,
    rules: Sequence[Mapping[str, Any]],
    failed: Sequence[str],
) -> str:
    if rules[0]["passed"] is None:
        return f"Whether {pair['a']} or {pair['b']} is better is open: {rules[0]['detail']}."
    if not rules[0]["passed"]:
        return (
            f"No difference between {pair['a']} and {pair['b']} is shown: log losses differ by "
            f"{_number(pair['mean'])}, with a 95 % interval from {_number(pair['low'])} to "
            f"{_number(pair['high'])}."
        )
    size = abs(pair["mean"])
    low, high = sorted((abs(pair["low"]), abs(pair["high"])))
    fact = (
        f"{size:.5f} nats per impression (95 % interval {low:.5f} to {high:.5f}, "
        f"{pair['blocks']:,} blocks)"
    )
    open_rules = [rule["rule"] for rule in rules if rule["passed"] is None]
    rest = f" Not checked: {'; '.join(open_rules)}." if open_rules else ""
    if failed:
        return (
            f"{better} has a smaller log loss than {other} by {fact}, but is not accepted, as "
            f"these rules fail: {'; '.join(failed)}.{rest}"
        )
    return f"{better} is better than {other} by {fact}.{rest}"


def _number(value: float) -> str:
    return f"{value:+.5f}"


def _interval(pair: Mapping[str, Any]) -> tuple[bool | None, str]:
    if pair["low"] is None or pair["high"] is None:
        return None, f"{pair['blocks']} blocks are too few for an interval"
    text = f"{_number(pair['mean'])} [{_number(pair['low'])}, {_number(pair['high'])}]"
    return pair["low"] > 0 or pair["high"] < 0, text


def _days(pair: Mapping[str, Any], sign: float) -> tuple[bool | None, str]:
    days = len(pair["daily"])
    if days < 2:
        return None, f"{days} day is too little" if days else "no day"
    agree = sum(sign * day["mean"] < 0 for day in pair["daily"])
    return agree >= DAYS_SHARE * days, f"{agree} of {days} days"


def _slices(pair: Mapping[str, Any], sign: float) -> tuple[bool | None, str]:
    large = [s for s in pair["slices"] if s["share"] > SLICE_SHARE_MIN and s["low"] is not None]
    if not large:
        return None, "no slice is large enough"
    losing = [s for s in large if (s["low"] > 0 if sign > 0 else s["high"] < 0)]
    worst = max(losing or large, key=lambda s: sign * s["mean"])
    what = f"{worst['by']} = {worst['value']}, {_number(sign * worst['mean'])}"
    if losing:
        return False, f"{len(losing)} of {len(large)} slices lose; worst: {what}"
    return True, f"none of {len(large)} slices; worst: {what}"


def _calibration(arm: str, value: float | None) -> tuple[bool | None, str]:
    if value is None:
        return None, f"the calibration of {arm} is undefined"
    return abs(value - 1) <= CALIBRATION_OFF_MAX, f"{value:.4f}"


def _placebo(
    better: str, other: str, placebos: Sequence[Mapping[str, Any]] | None
) -> tuple[bool | None, str]:
    """A placebo of the better arm must not beat the other arm."""
    if placebos is None:
        return None, "not run: the arms differ in more than content"
    pairs = [p["pair"] for p in placebos if p["arm"] == better and p["pair"]["b"] == other]
    pairs = [pair for pair in pairs if pair["high"] is not None]
    if not pairs:
        return None, "not run"
    gains = sum(pair["high"] < 0 for pair in pairs)
    best = min(pairs, key=lambda pair: float(pair["mean"]))
    text = f"{gains} of {len(pairs)} permutations gain; best: {_number(best['mean'])}"
    return gains == 0, text
