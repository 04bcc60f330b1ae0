"""Paired differences between arms, as the evaluation value holds them; decides nothing.

d = loss(a) - loss(b) of each row: negative where `a` is better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.evaluation.options import EvaluationOptions
from stream.evaluation.paired import BLOCKS_MIN, Intervals, PairedDifference, paired_bootstrap
from stream.evaluation.span import Reasons, Span

F64 = NDArray[np.float64]

REGRET_IMPRESSIONS = 100
DAYS_MAX = 400


def blocks_of(span: Span, options: EvaluationOptions) -> NDArray[Any]:
    """Codes of what the bootstrap draws as a whole."""
    if options.block == "hour":
        return np.asarray(span.hour_n - span.hour_n.min())
    return span.user_day_n if options.block == "user_day" else span.rows.user.code_n


def difference_of(
    span: Span, a: str, b: str, options: EvaluationOptions, reasons: Reasons, at: str
) -> dict[str, float | None]:
    """Mean difference of all rows with its interval."""
    d_n = span.losses(a) - span.losses(b)
    found = paired_bootstrap(
        d_n, blocks_of(span, options), resamples=options.resamples, seed=options.seed
    )
    return _total(found, reasons, at)


def pair_entry(
    span: Span, a: str, b: str, options: EvaluationOptions, reasons: Reasons
) -> dict[str, Any]:
    """Difference of two arms: in all, by day, by slice, and over the first impressions of items."""
    at = f"pairs.{a}.{b}"
    d_n = span.losses(a) - span.losses(b)
    with_days = len(span.days) <= DAYS_MAX
    if not with_days:
        reasons[f"{at}.daily"] = f"the log has {len(span.days)} days, intervals need {DAYS_MAX}"
    groupings = [(s.code_n, len(s.values)) for s in span.slicings]
    found = paired_bootstrap(
        d_n,
        blocks_of(span, options),
        ([(span.days.code_n, len(span.days))] if with_days else []) + groupings,
        resamples=options.resamples,
        seed=options.seed,
    )
    days = found.groupings[0] if with_days else None
    daily = _daily(span, d_n, days, reasons, at)
    return {
        "a": a,
        "b": b,
        **_total(found, reasons, at),
        "blocks": found.blocks,
        "resamples": options.resamples,
        "days": len(daily),
        "days_better": sum(day["mean"] < 0 for day in daily),
        "daily": daily,
        "slices": _slices(span, found.groupings[1 if with_days else 0 :], reasons, at),
        "cold_start_regret": _regret(span, d_n, reasons, at),
    }


def _total(found: PairedDifference, reasons: Reasons, at: str) -> dict[str, float | None]:
    if found.low is None:
        reasons[f"{at}.low"] = reasons[f"{at}.high"] = _too_few(found.blocks)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _too_few(blocks: int) -> str:
    return f"{blocks} blocks are too few for an interval, it needs {BLOCKS_MIN}"


def _interval(found: Intervals, g: int, reasons: Reasons, path: str) -> dict[str, float | None]:
    sure = bool(found.sure_G[g])
    if not sure:
        reasons[f"{path}.low"] = reasons[f"{path}.high"] = _too_few(int(found.blocks_G[g]))
    return {
        "mean": float(found.mean_G[g]),
        "low": float(found.low_G[g]) if sure else None,
        "high": float(found.high_G[g]) if sure else None,
    }


def _daily(
    span: Span, d_n: F64, found: Intervals | None, reasons: Reasons, at: str
) -> list[dict[str, Any]]:
    if found is not None:
        return [
            {"date": date, **_interval(found, g, reasons, f"{at}.daily.{date}")}
            for g, date in enumerate(span.dates)
        ]
    sums = np.bincount(span.days.code_n, d_n)
    means = sums / np.bincount(span.days.code_n)
    return [
        {"date": date, "mean": float(mean), "low": None, "high": None}
        for date, mean in zip(span.dates, means, strict=True)
    ]


def _slices(
    span: Span, found: tuple[Intervals, ...], reasons: Reasons, at: str
) -> list[dict[str, Any]]:
    return [
        {
            "by": slicing.by,
            "value": value,
            "n": int(of.n_G[g]),
            "share": float(of.n_G[g] / len(span)),
            **_interval(of, g, reasons, f"{at}.slices.{slicing.by}.{value}"),
        }
        for slicing, of in zip(span.slicings, found, strict=True)
        for g, value in enumerate(slicing.values)
        if of.n_G[g]
    ]


def _regret(span: Span, d_n: F64, reasons: Reasons, at: str) -> float | None:
    """Area between the learning curves over an item's first 100 impressions, in nats per item."""
    early = span.item_index_n < REGRET_IMPRESSIONS
    index = span.item_index_n[early]
    n = np.bincount(index, minlength=REGRET_IMPRESSIONS)
    if not n.all():
        missing = int((n == 0).sum())
        reasons[f"{at}.cold_start_regret"] = (
            f"{missing} of an item's first {REGRET_IMPRESSIONS} impressions have no rows"
        )
        return None
    return float((np.bincount(index, d_n[early]) / n).sum())
