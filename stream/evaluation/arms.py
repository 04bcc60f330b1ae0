"""All scores of one arm: gathers metrics, groups, reliability and breakdowns; compares no arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.calibration import Ece, ece_of_runs
from learners.metrics import Gauc, Score, Undefined, gauc
from learners.score_runs import ScoreRuns, aucs, score_runs
from learners.slates import slate_scores
from stream.evaluation import breakdown
from stream.evaluation.breakdown import ArmTable
from stream.evaluation.options import EvaluationOptions
from stream.evaluation.span import Reasons, Span

ONE_ITEM = "every request shows one item"


def arm_entry(span: Span, arm: str, options: EvaluationOptions, reasons: Reasons) -> dict[str, Any]:
    """All scores of an arm, as the evaluation value holds them (docs/evaluation.md)."""
    at = f"arms.{arm}"
    runs = score_runs(span.rows.logits[arm], span.rows.label_n)
    metrics, table, calibration = _scores(span, arm, runs, options)
    del runs
    groups = _groups(span, arm)
    metrics |= {name: found.score for name, found in groups.items()}
    slates = _slates(span, arm, options)
    metrics |= slates[0]
    daily = breakdown.daily(span, table, reasons, at)
    of_days = [day["auc"] for day in daily if day["auc"] is not None]
    metrics["auc_daily_mean"] = float(np.mean(of_days)) if of_days else breakdown.ONE_CLASS
    return {
        "name": arm,
        "metrics": {n: reasons.value(s, f"{at}.metrics.{n}") for n, s in metrics.items()},
        "groups": {
            **{
                name: {
                    "used": found.groups_used,
                    "skipped": found.groups_skipped,
                    "impressions_used": found.impressions_used,
                    "impressions": found.impressions,
                }
                for name, found in groups.items()
            },
            **slates[1],
        },
        "reliability": [
            {name: getattr(b, name) for name in ("n", "predicted", "observed", "low", "high")}
            for b in calibration.bins
        ],
        "daily": daily,
        "hourly": breakdown.hourly(span, table, reasons, at),
        "learning_curve": breakdown.learning_curve(span, table, reasons, at),
        "slices": breakdown.slices(span, table, reasons, at),
    }


def arm_metrics(
    span: Span, arm: str, options: EvaluationOptions, reasons: Reasons, at: str
) -> dict[str, float | None]:
    """The metrics alone that concern all rows: of a placebo, which nobody reads by slice."""
    runs = score_runs(span.rows.logits[arm], span.rows.label_n)
    scores = _scores(span, arm, runs, options)[0]
    return {name: reasons.value(score, f"{at}.{name}") for name, score in scores.items()}


def _scores(
    span: Span, arm: str, runs: ScoreRuns, options: EvaluationOptions
) -> tuple[dict[str, Score], ArmTable, Ece]:
    table = ArmTable(span, arm, runs)
    calibration = ece_of_runs(runs, bins=options.bins, seed=options.seed)
    overall = aucs(runs)
    none = isinstance(calibration.score, Undefined)
    return (
        {
            "log_loss": table.total.log_loss,
            "ne": table.total.ne,
            "ne_causal": _ne_causal(span, arm),
            "auc": float(overall.auc_G[0]) if overall.defined_G.any() else breakdown.ONE_CLASS,
            "calibration": table.total.calibration,
            "ece": calibration.score,
            "ece_floor": calibration.score if none else calibration.floor,
            "ece_z": calibration.z,
            "ctr": table.total.rate,
        },
        table,
        calibration,
    )


def _ne_causal(span: Span, arm: str) -> Score:
    """Loss over that of forecasting the rate of the 24 h before, on the hours that have one."""
    hours = len(span.base_rate_H)
    if not len(span):
        return Undefined("no rows")
    n = np.bincount(span.hour_n, minlength=hours)
    positives = np.bincount(span.hour_n, span.rows.label_n, minlength=hours)
    loss = np.bincount(span.hour_n, span.losses(arm), minlength=hours)
    known = np.isfinite(span.base_rate_H) & (n > 0)
    if not known.any():
        return Undefined("no hour has a click rate of the 24 h before")
    rate, of_hour, clicked = span.base_rate_H[known], n[known], positives[known]
    base = -(clicked * np.log(rate) + (of_hour - clicked) * np.log1p(-rate)).sum()
    return float(loss[known].sum() / base)


def _groups(span: Span, arm: str) -> dict[str, Gauc]:
    groupings = {
        "gauc_request": (span.slate_n, ONE_ITEM),
        "gauc_user_batch": (
            span.user_batch_n,
            "learn steps are not recorded in the prediction log",
        ),
        "gauc_user_day": (span.user_day_n, ""),
    }
    return {name: _gauc(span, arm, *grouping) for name, grouping in groupings.items()}


def _gauc(span: Span, arm: str, groups_n: NDArray[Any] | None, why_none: str) -> Gauc:
    if groups_n is None:
        return Gauc(
            score=Undefined(why_none),
            groups_used=0,
            groups_skipped=0,
            impressions_used=0,
            impressions=len(span),
        )
    return gauc(span.rows.logits[arm], span.rows.label_n, groups_n)


def _slates(
    span: Span, arm: str, options: EvaluationOptions
) -> tuple[dict[str, Score], dict[str, dict[str, int]]]:
    if span.slate_n is None:
        return dict.fromkeys(("ndcg", "mrr", "hit1"), Undefined(ONE_ITEM)), {}
    rows = span.rows
    found = slate_scores(rows.logits[arm], rows.label_n, span.slate_n, k=options.slate_k)
    return {"ndcg": found.ndcg, "mrr": found.mrr, "hit1": found.hit1}, {
        "slates": {
            name: getattr(found, name)
            for name in ("used", "skipped", "impressions_used", "impressions")
        }
    }
