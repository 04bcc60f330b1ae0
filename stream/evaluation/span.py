"""The evaluated rows and all their groupings, shared by every arm; computes no score of an arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learners.metrics import Score, Undefined, log_losses
from stream.evaluation.grouping import (
    DAY_MS,
    HOUR_MS,
    Windows,
    dates,
    hours,
    pair_groups,
    windows,
)
from stream.evaluation.options import EvaluationOptions
from stream.evaluation.rows import PredictionRows
from stream.evaluation.slices import Slicing, causal_slices, field_slices, unrecorded

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_BASE_HOURS = 24
_KEPT_BYTES_MAX = 512 << 20


class Reasons:
    """Why values are null, by the dotted path of the value; keeps at most 5,000."""

    LIMIT = 5_000

    def __init__(self) -> None:
        self.by_path: dict[str, str] = {}
        self._more = 0

    def __setitem__(self, path: str, reason: str) -> None:
        """Keep a reason, or count it where there are too many."""
        if len(self.by_path) < self.LIMIT:
            self.by_path[path] = reason
            return
        self._more += 1
        self.by_path["reasons"] = f"{self._more} more reasons are left out"

    def value(self, score: Score, path: str) -> float | None:
        """A score, or null with its reason kept."""
        if isinstance(score, Undefined):
            self[path] = score.reason
            return None
        return float(score)


@dataclass(slots=True, kw_only=True)
class Span:
    """Rows that are scored, in the log's order, with their groups; codes are from 0 on.

    `base_rate_H` is what a forecaster knew of the click rate in each hour (NaN: nothing yet),
    `hour_n` each row's hour in it. `slate_n` is None where every request shows one item.
    """

    rows: PredictionRows
    slicings: list[Slicing]
    item_index_n: NDArray[np.int32]
    days: Windows
    dates: list[str]
    hours: Windows
    base_rate_H: F64
    hour_n: NDArray[np.int32]
    slate_n: NDArray[np.int32] | None
    user_batch_n: NDArray[Any] | None
    user_day_n: NDArray[Any]
    warm_up_rows: int
    unsettled_n: NDArray[np.bool_]
    _losses: dict[str, F64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def unsettled_rows(self) -> int:
        """Rows whose label window ends after the log."""
        return int(self.unsettled_n.sum())

    def unsettled_by(self, of: Windows) -> list[int]:
        """The same by window of time."""
        counts = np.bincount(of.code_n[self.unsettled_n], minlength=len(of))
        return [int(count) for count in counts]

    def losses(self, arm: str) -> F64:
        """Loss of each row in nats, kept while that takes little memory."""
        if arm not in self._losses:
            kept = sum(loss.nbytes for loss in self._losses.values())
            if self._losses and kept + 8 * len(self) > _KEPT_BYTES_MAX:
                self._losses.pop(next(iter(self._losses)))
            self._losses[arm] = log_losses(self.rows.logits[arm], self.rows.label_n)
        return self._losses[arm]

    def probabilities(self, arm: str) -> F64:
        """Predicted click probability of each row."""
        return np.asarray(expit(self.rows.logits[arm].astype(np.float64)))


@dataclass(slots=True, kw_only=True)
class Selection:
    """Which rows are scored, and what only the whole log tells about them."""

    keep_n: NDArray[np.bool_]
    slicings: list[Slicing]
    item_index_n: NDArray[np.int32]
    first_hour: int
    base_rate_H: F64
    end_ms: int
    warm_up_rows: int


def select(rows: PredictionRows, options: EvaluationOptions, reasons: Reasons) -> Selection:
    """The rows after warm-up that every arm predicted; counters look at all rows of the log."""
    slicings, index_n = causal_slices(rows, settle_ms=options.window_ms)
    for name, why in unrecorded(rows).items():
        reasons[f"slices.{name}"] = why
    keep = _scored(rows.ts_ms_n, options)
    warm_up_rows = int((~keep).sum())
    for name, logit in rows.logits.items():
        finite = np.isfinite(logit)
        if not finite.all():
            reasons[f"predictions.{name}"] = f"{int((~finite).sum())} rows without a prediction"
        keep &= finite
    first_hour, base_rate_H = _base_rates(rows, options.window_ms)
    last_ms = int(rows.ts_ms_n.max(initial=0))
    return Selection(
        keep_n=keep,
        slicings=[slicing.take(keep) for slicing in slicings],
        item_index_n=index_n[keep],
        first_hour=first_hour,
        base_rate_H=base_rate_H,
        end_ms=last_ms if options.end_ms is None else options.end_ms,
        warm_up_rows=warm_up_rows,
    )


def span_of(rows: PredictionRows, selection: Selection, options: EvaluationOptions) -> Span:
    """Groupings of the selected rows; `rows` are those already."""
    days = windows(rows.ts_ms_n, DAY_MS, options.offset_ms)
    return Span(
        rows=rows,
        slicings=selection.slicings + field_slices(rows),
        item_index_n=selection.item_index_n,
        days=days,
        dates=dates(days, options.offset_ms),
        hours=hours(rows.ts_ms_n),
        base_rate_H=selection.base_rate_H,
        hour_n=(rows.ts_ms_n // HOUR_MS - selection.first_hour).astype(np.int32),
        slate_n=_slates(rows),
        user_batch_n=_user_batches(rows),
        user_day_n=pair_groups(rows.user.code_n, days.code_n)[0],
        warm_up_rows=selection.warm_up_rows,
        unsettled_n=rows.ts_ms_n + options.window_ms > selection.end_ms,
        _losses={},
    )


def _scored(ts_ms_n: I64, options: EvaluationOptions) -> NDArray[np.bool_]:
    if options.evaluate_from_ms is not None:
        return ts_ms_n >= options.evaluate_from_ms
    first = int(len(ts_ms_n) * options.warm_up_share)
    return ts_ms_n >= (np.partition(ts_ms_n, first)[first] if first else -(1 << 62))


def _base_rates(rows: PredictionRows, window_ms: int) -> tuple[int, F64]:
    """First hour of the log, and for each hour the rate of the 24 h whose labels were known."""
    if not len(rows):
        return 0, np.zeros(0)
    hour = rows.ts_ms_n // HOUR_MS
    first = int(hour.min())
    hour -= first
    shown = np.concatenate(([0], np.cumsum(np.bincount(hour))))
    clicked = np.concatenate(([0.0], np.cumsum(np.bincount(hour, rows.label_n))))
    until = np.maximum(np.arange(len(shown) - 1) - -(-window_ms // HOUR_MS), 0)
    since = np.maximum(until - _BASE_HOURS, 0)
    n, positives = shown[until] - shown[since], clicked[until] - clicked[since]
    known = (positives > 0) & (positives < n)
    return first, np.where(known, positives / np.maximum(n, 1), np.nan)


def _slates(rows: PredictionRows) -> NDArray[np.int32] | None:
    size = np.bincount(rows.request.code_n) if len(rows) else np.zeros(0, np.int64)
    return rows.request.code_n if size.max(initial=0) > 1 else None


def _user_batches(rows: PredictionRows) -> NDArray[Any] | None:
    if rows.batch_n is None or not len(rows):
        return None
    return pair_groups(rows.user.code_n, rows.batch_n - rows.batch_n.min())[0]


def missing_by_hour(span: Span) -> list[Mapping[str, int | None]]:
    """Rows without item vector and with empty history in each window of time."""
    count, code = len(span.hours), span.hours.code_n

    def of(mask: NDArray[np.bool_] | None) -> list[int] | list[None]:
        if mask is None:
            return [None] * count
        return [int(v) for v in np.bincount(code[mask], minlength=count)]

    rows = span.rows
    vector = of(None if rows.has_vector_n is None else ~rows.has_vector_n)
    history = of(None if rows.history_len_n is None else rows.history_len_n == 0)
    samples = np.bincount(code, minlength=count)
    return [
        {
            "ts_ms": int(span.hours.start_ms_G[h]),
            "samples": int(samples[h]),
            "missing_vector": vector[h],
            "empty_history": history[h],
        }
        for h in range(count)
    ]
