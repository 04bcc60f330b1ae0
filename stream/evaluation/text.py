"""An evaluation as Markdown, short enough for a pull request; draws and computes nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

SLICES_MAX = 12
REASONS_MAX = 10
_METRICS = (
    ("log_loss", "log loss", 5),
    ("ne", "NE", 4),
    ("auc", "AUC", 4),
    ("gauc_request", "GAUC request", 4),
    ("gauc_user_batch", "GAUC user×batch", 4),
    ("calibration", "calibration", 4),
    ("ece", "ECE", 4),
    ("ece_floor", "ECE floor", 4),
    ("ndcg", "NDCG", 4),
    ("mrr", "MRR", 4),
    ("hit1", "hit@1", 4),
)


def markdown(evaluation: Mapping[str, Any]) -> str:
    """Tables of arms, pairs, decisions and the slices that differ most."""
    parts = [_head(evaluation), _arms(evaluation)]
    parts += [_pair(pair) for pair in evaluation["pairs"]]
    parts += [_placebo(evaluation["placebo"]), _freshness(evaluation["freshness"])]
    parts.append(_reasons(evaluation["reasons"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(evaluation: Mapping[str, Any]) -> str:
    rows = evaluation["rows"]
    span = f"{_time(evaluation['from_ms'])} to {_time(evaluation['to_ms'])} UTC" if rows else "none"
    return (
        f"`{evaluation['label']}`, predicted at {evaluation['predict_at']}: {rows:,} impressions, "
        f"{evaluation['positives']:,} positive, {evaluation['users']:,} users, {span}; "
        f"{evaluation['warm_up_rows']:,} rows of warm-up left out, "
        f"{evaluation['unsettled_rows']:,} unsettled."
    )


def _arms(evaluation: Mapping[str, Any]) -> str:
    arms = evaluation["arms"]
    columns = [c for c in _METRICS if any(arm["metrics"].get(c[0]) is not None for arm in arms)]
    rows = [
        [_plain(arm["name"]), *(_number(arm["metrics"].get(key), p) for key, _, p in columns)]
        for arm in arms
    ]
    return _table(["arm", *(title for _, title, _ in columns)], rows)


def _pair(pair: Mapping[str, Any]) -> str:
    decision = pair["decision"]
    passed = {True: "yes", False: "no", None: "open"}
    rules = [[r["rule"], passed[r["passed"]], _plain(r["detail"])] for r in decision["rules"]]
    certain = [s for s in pair["slices"] if s["low"] is not None]
    certain.sort(key=lambda s: -abs(s["mean"]) * s["share"] ** 0.5)
    slices = [
        [
            _plain(f"{s['by']} = {s['value']}"),
            f"{s['n']:,}",
            f"{s['mean']:+.5f} [{s['low']:+.5f}, {s['high']:+.5f}]",
        ]
        for s in certain[:SLICES_MAX]
    ]
    parts = [
        f"**{_plain(decision['words'])}**",
        _table(["rule", "passed", "detail"], rules),
        _table(["slice", "n", "difference of log loss [95 %]"], slices) if slices else "",
    ]
    if pair["cold_start_regret"] is not None:
        regret = f"{pair['cold_start_regret']:+.3f}"
        parts.append(f"First 100 impressions of an item: {regret} nats in all.")
    return "\n\n".join(part for part in parts if part)


def _placebo(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _plain(entry["arm"]),
            str(entry["permutation"]),
            _plain(entry["pair"]["b"]),
            _interval(entry["pair"]),
        ]
        for entry in entries
    ]
    head = ["placebo of", "permutation", "against", "difference of log loss [95 %]"]
    return _table(head, rows) if rows else ""


def _freshness(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _plain(entry["name"]),
            f"{entry['sync_ms'] / 60_000:g}",
            _number(entry["log_loss"], 5),
            _number(entry["auc"], 4),
            _interval(entry),
        ]
        for entry in entries
    ]
    head = ["arm", "weights wait (min)", "log loss", "AUC", "difference of log loss [95 %]"]
    return _table(head, rows) if rows else ""


def _reasons(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return ""
    listed = list(reasons.items())
    lines = [f"- {_plain(path)}: {_plain(why)}" for path, why in listed[:REASONS_MAX]]
    if len(listed) > REASONS_MAX:
        lines.append(f"- {len(listed) - REASONS_MAX} more in report.json")
    return "\n".join(["Undefined or left out:", "", *lines])


def _interval(pair: Mapping[str, Any]) -> str:
    if pair["low"] is None or pair["high"] is None:
        return f"{pair['mean']:+.5f}"
    return f"{pair['mean']:+.5f} [{pair['low']:+.5f}, {pair['high']:+.5f}]"


def _number(value: float | None, places: int) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def _plain(text: str) -> str:
    """Text that cannot end a cell of a table or start markup."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _time(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
