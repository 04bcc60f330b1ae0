"""Prediction rows to the evaluation value, which report.json holds and reports draw; pure.

The value is described in docs/evaluation.md. Every undefined score is null, and `reasons` says why.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from infra.errors import InputError
from stream.evaluation.arms import arm_entry, arm_metrics
from stream.evaluation.decision import decide
from stream.evaluation.options import EvaluationOptions
from stream.evaluation.pairs import difference_of, pair_entry
from stream.evaluation.rows import PredictionRows
from stream.evaluation.span import Reasons, Span, missing_by_hour, select, span_of

PAIRS_MAX = 28
_THROUGHPUT = ("samples_per_s", "events_per_s", "seconds")


def evaluate(rows: PredictionRows, options: EvaluationOptions | None = None) -> dict[str, Any]:
    """The evaluation value of all arms of a log.

    Rows that the caller does not hold are freed on the way: `evaluate(read_rows(path), options)`
    needs a third less memory than with a name for the rows.
    Raises InputError where the options name an arm that the log lacks.
    """
    options = EvaluationOptions() if options is None else options
    _check_names(rows, options)
    reasons = Reasons()
    log_ms = (int(rows.ts_ms_n.min()), int(rows.ts_ms_n.max())) if len(rows) else (None, None)
    if not len(rows):
        reasons["log_from_ms"] = reasons["log_to_ms"] = "no rows"
    selection = select(rows, options, reasons)
    if not selection.keep_n.all():
        # The name moves on, so that rows nobody else holds are freed before the scores need room.
        rows = rows.take(selection.keep_n)
    span = span_of(rows, selection, options)
    arms = [name for name in rows.logits if name not in options.placebos]
    _notes(rows, span, options, reasons)
    entries = [arm_entry(span, arm, options, reasons) for arm in arms]
    placebos = _placebos(span, arms, options, reasons) if len(span) else []
    pairs = []
    for a, b in _pairs(arms, options) if len(span) else ():
        pair = pair_entry(span, a, b, options, reasons)
        calibration = {e["name"]: e["metrics"]["calibration"] for e in entries}
        content = options.content_treatments
        of_content = content is None or (a, b) in content or (b, a) in content
        decision = decide(pair, calibration, placebos if of_content or not placebos else None)
        pairs.append(pair | {"decision": decision})
    times = span.rows.ts_ms_n
    return {
        "label": options.label,
        "predict_at": options.predict_at,
        "rows": len(span),
        "positives": int(span.rows.label_n.sum(dtype=np.int64)),
        "users": int((np.bincount(span.rows.user.code_n) > 0).sum()) if len(span) else 0,
        "from_ms": int(times.min()) if len(span) else None,
        "to_ms": int(times.max()) if len(span) else None,
        "log_from_ms": log_ms[0],
        "log_to_ms": log_ms[1],
        "warm_up_rows": span.warm_up_rows,
        "unsettled_rows": span.unsettled_rows,
        "arms": entries,
        "pairs": pairs,
        "placebo": placebos,
        "freshness": _freshness(span, entries, options, reasons) if len(span) else [],
        "throughput": {name: options.throughput.get(name) for name in _THROUGHPUT},
        "missing": missing_by_hour(span),
        "reasons": reasons.by_path,
    }


def _check_names(rows: PredictionRows, options: EvaluationOptions) -> None:
    named = {*options.placebos, *options.sync_ms, *(arm for arm, _ in options.placebos.values())}
    named |= {options.reference} if options.reference is not None else set()
    unknown = sorted(named - set(rows.logits))
    if unknown:
        raise InputError(
            f"evaluation: arm '{unknown[0]}' is not in the log, which has {', '.join(rows.logits)}"
        )
    if options.reference in options.placebos or set(rows.logits) == set(options.placebos):
        raise InputError("evaluation: a placebo can not be the reference or the only arm")


def _notes(rows: PredictionRows, span: Span, options: EvaluationOptions, reasons: Reasons) -> None:
    for name in _THROUGHPUT:
        if options.throughput.get(name) is None:
            reasons[f"throughput.{name}"] = "not measured"
    recorded = {"missing_vector": rows.has_vector_n, "empty_history": rows.history_len_n}
    for name, column in recorded.items():
        if column is None:
            reasons[f"missing.{name}"] = "not recorded in the prediction log"
    if not len(rows):
        reasons["from_ms"] = reasons["to_ms"] = "no rows"
    if span.unsettled_rows:
        reasons["unsettled_rows"] = (
            f"the label windows of {span.unsettled_rows} rows end after the log: "
            "their clicks may be missing"
        )
    if rows.ahead and options.predict_at == "impression":
        reasons["rows.ahead"] = (
            f"{rows.ahead} rows were predicted by weights with labels from after the impression"
        )
    for name, count in rows.unmatched.items():
        if count:
            reasons[f"rows.unmatched.{name}"] = f"{count} rows are not in every log, left out"


def _pairs(arms: list[str], options: EvaluationOptions) -> list[tuple[str, str]]:
    if options.reference is not None:
        return [(arm, options.reference) for arm in arms if arm != options.reference]
    every = list(combinations(arms, 2))
    # Of many arms, each is compared with the last one only.
    return every if len(every) <= PAIRS_MAX else [(arm, arms[-1]) for arm in arms[:-1]]


def _placebos(
    span: Span, arms: list[str], options: EvaluationOptions, reasons: Reasons
) -> list[dict[str, Any]]:
    """Each placebo against the arm it permutes, and against every other arm."""
    found = []
    for name, (origin, permutation) in options.placebos.items():
        at = f"placebo.{name}"
        metrics = arm_metrics(span, name, options, reasons, f"{at}.metrics")
        for b in [origin, *(arm for arm in arms if arm != origin)]:
            difference = difference_of(span, name, b, options, reasons, f"{at}.pair.{b}")
            pair = {"a": name, "b": b, **difference}
            found.append(
                {"arm": origin, "permutation": permutation, "metrics": metrics, "pair": pair}
            )
    return found


def _freshness(
    span: Span, entries: list[dict[str, Any]], options: EvaluationOptions, reasons: Reasons
) -> list[dict[str, Any]]:
    """Scores by how long weights wait for publication; differences are to the shortest wait."""
    waits = sorted((sync_ms, arm) for arm, sync_ms in options.sync_ms.items())
    if len(waits) < 2:
        return []
    metrics = {entry["name"]: entry["metrics"] for entry in entries}
    found = []
    for sync_ms, arm in waits:
        against = waits[0][1]
        difference: dict[str, float | None] = {"mean": 0.0, "low": 0.0, "high": 0.0}
        if arm != against:
            at = f"freshness.{arm}"
            difference = difference_of(span, arm, against, options, reasons, at)
        scores = {name: metrics[arm][name] for name in ("log_loss", "auc")}
        found.append({"name": arm, "sync_ms": sync_ms, **scores, **difference})
    return found
