"""The report of a run: counts of the join, and metrics of the prediction log. Pure but for reading.

All metrics are functions of `predictions.parquet` (docs/evaluation.md); undefined values are null
with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream import kernels as k
from stream.evaluation import EvaluationOptions, evaluate, read_rows
from stream.pipeline import OnlinePipeline

ARM = "ranker"
"""The only arm of a replay."""


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
        "vectors_of_other_versions": pipeline.items.counts.other_versions,
        "forced_forgets": join.scalar(k.FORCED_FORGETS),
        "overflow_users": join.scalar(k.OVERFLOW_USERS),
        "overflow_counters": join.scalar(k.OVERFLOW_COUNTERS),
        "steps": pipeline.counts["steps"],
        "events": pipeline.counts["events"],
    }


def evaluation_of(path: Path, options: EvaluationOptions) -> dict[str, Any]:
    """What a run's predictions are worth: the whole evaluation, and its main figures on top.

    `metrics` and `daily` are those of the run's only arm; `from_ms` and `to_ms` are of all rows,
    scored or not. `reasons` tells of `metrics` and `daily` why a value is null.
    """
    evaluation = evaluate(read_rows(path, name=ARM), options)
    (arm,) = evaluation["arms"]
    at = f"arms.{ARM}."
    own = {path.removeprefix(at): why for path, why in evaluation["reasons"].items()}
    return {
        "from_ms": evaluation["log_from_ms"],
        "to_ms": evaluation["log_to_ms"],
        "evaluated": {
            "samples": evaluation["rows"],
            **{name: evaluation[name] for name in ("positives", "from_ms", "to_ms")},
        },
        "metrics": arm["metrics"],
        "daily": arm["daily"],
        "reasons": {path.removeprefix("metrics."): why for path, why in own.items()},
        "evaluation": evaluation,
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    temporary.rename(path)
