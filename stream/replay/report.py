"""The report of a run: counts of the join, and metrics of the prediction log. Pure but for reading.

All metrics are functions of `predictions.parquet`; undefined values are null with a reason.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners import metrics as m
from stream import kernels as k
from stream.pipeline import OnlinePipeline

DAY_MS = 86_400_000
HIDDEN = "reasons"


def counts_of(pipeline: OnlinePipeline) -> dict[str, Any]:
    """Whole-run counts; per label kind where a kind matters. See docs/glossary.md for the words."""
    join, config = pipeline.join, pipeline.plan.config
    tallies, kinds = join.queues.tallies, list(config.label)
    known = config.click_kinds

    def by_kind(place: int, names: tuple[str, ...] | list[str]) -> dict[str, int]:
        return {name: int(tallies[i, place]) for i, name in enumerate(names)}

    return {
        "samples": pipeline.ledger.samples,
        "admitted": join.scalar(k.ADMITTED),
        "positives": by_kind(k.POSITIVE, kinds),
        "negatives": by_kind(k.NEGATIVE, kinds),
        "open": dict.fromkeys(kinds, join.scalar(k.OPEN_COUNT)),
        "evicted": by_kind(k.EVICTED_OPEN, kinds),
        "learned": pipeline.ledger.samples - pipeline.learner.counts().get("skipped", 0),
        "sampled_out": 0,
        "skipped_nonfinite": pipeline.learner.counts().get("skipped", 0),
        "waiting_for_batch": join.scalar(k.N_OUT),
        "duplicates": join.scalar(k.DUPLICATES),
        "duplicate_clicks": int(tallies[:, k.DUPLICATE_CLICK].sum()),
        "rejected": pipeline.counts["rejected"],
        "rejected_by_reason": dict(pipeline.rejected_by_reason),
        "too_late": join.scalar(k.TOO_LATE_IMPRESSIONS) + int(tallies[:, k.TOO_LATE_CLICK].sum()),
        "late_impressions": join.scalar(k.LATE_IMPRESSIONS),
        "joined_clicks": by_kind(k.JOINED, known),
        "late_clicks": int(tallies[:, k.LATE].sum()),
        "orphan_clicks": int(tallies[:-1, k.ORPHAN].sum()) + join.scalar(k.WAITING),
        "organic": int(tallies[:, k.ORGANIC].sum()),
        "unknown_click_kinds": pipeline.counts["unknown_click_kinds"],
        "unknown_fields": dict(pipeline.unknown_fields),
        "truncated_histories": join.truncated_histories,
        "clock_jumps": pipeline.sequencer.clock_jumps,
        "idle_advances": pipeline.sequencer.idle_advances,
        "late_vectors": pipeline.items.counts.late,
        "items_applied": pipeline.items.counts.applied,
        "forced_forgets": join.scalar(k.FORCED_FORGETS),
        "overflow_users": join.scalar(k.OVERFLOW_USERS),
        "overflow_counters": join.scalar(k.OVERFLOW_COUNTERS),
        "steps": pipeline.counts["steps"],
        "events": pipeline.counts["events"],
    }


def read_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """Columns of a prediction log as arrays; ids may be strings."""
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.schema.names}


def metrics_of(
    rows: Mapping[str, NDArray[Any]], offset_ms: int, reasons: dict[str, str], at: str = ""
) -> dict[str, float | None]:
    """Metrics of prediction rows; what is undefined is null and has an entry in `reasons`."""
    logits, labels = rows["logit"], rows["label"]
    usable = np.isfinite(logits)
    if not usable.all():
        reasons[f"{at}predictions"] = f"{int((~usable).sum())} rows without a prediction left out"
        rows = {name: column[usable] for name, column in rows.items()}
        logits, labels = rows["logit"], rows["label"]
    sums = m.LossSums.of(logits, labels)
    day = (rows["ts_ms"] + offset_ms) // DAY_MS
    scores: dict[str, m.Score] = {
        "log_loss": sums.log_loss,
        "ne": sums.ne,
        "auc": m.auc_exact(logits, labels),
        "gauc_user_day": m.gauc(logits, labels, _groups(rows["user_id"], day)).score,
        "gauc_request": _gauc_request(rows),
        "calibration": sums.calibration,
        "ctr": sums.rate,
    }
    out: dict[str, float | None] = {}
    for name, score in scores.items():
        if isinstance(score, m.Undefined):
            reasons[at + name] = score.reason
            out[name] = None
        else:
            out[name] = float(score)
    return out


def _groups(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """One number for each distinct combination of the columns."""
    numbers = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        numbers = np.unique(numbers * len(values) + inverse, return_inverse=True)[1]
    return numbers


def _gauc_request(rows: Mapping[str, NDArray[Any]]) -> m.Score:
    _, first = np.unique(rows["request_id"], return_index=True)
    if len(first) == len(rows["request_id"]):
        return m.Undefined("every request shows one item")
    return m.gauc(rows["logit"], rows["label"], _groups(rows["request_id"])).score


def evaluation_of(path: Path, *, evaluate_from_ms: int | None, offset_ms: int) -> dict[str, Any]:
    """The evaluated span, its metrics, and the same by day."""
    rows = read_predictions(path)
    keep = rows["ts_ms"] >= (evaluate_from_ms if evaluate_from_ms is not None else -(1 << 62))
    span = {name: column[keep] for name, column in rows.items()}
    reasons: dict[str, str] = {}
    times, labels = span["ts_ms"], span["label"]
    metrics = metrics_of(span, offset_ms, reasons)
    daily = []
    day = (times + offset_ms) // DAY_MS
    for number in np.unique(day):
        of_day = {name: column[day == number] for name, column in span.items()}
        date = (dt.date(1970, 1, 1) + dt.timedelta(days=int(number))).isoformat()
        values = metrics_of(of_day, offset_ms, reasons, f"{date}.")
        n, positives = len(of_day["label"]), int(of_day["label"].sum())
        daily.append({"date": date, "samples": n, "positives": positives, **values})
    everything = rows["ts_ms"]
    return {
        "from_ms": int(everything.min()) if len(everything) else None,
        "to_ms": int(everything.max()) if len(everything) else None,
        "evaluated": {
            "samples": len(labels),
            "positives": int(labels.sum()),
            "from_ms": int(times.min()) if len(times) else None,
            "to_ms": int(times.max()) if len(times) else None,
        },
        "metrics": metrics,
        "daily": daily,
        HIDDEN: reasons,
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    temporary.rename(path)
