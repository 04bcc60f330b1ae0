"""Slices of a prediction log: what was known at each impression, from the log's past alone.

Impressions of one key time do not count each other, and a click counts once its label window has
ended. So a key never depends on rows that came later, and a log cut off anywhere has the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from stream.evaluation.grouping import DAY_MS, HOUR_MS, order_by_code
from stream.evaluation.rows import Coded, PredictionRows

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

FIELD_VALUES_MAX = 20
REST = "rest"
MISSING = int(np.iinfo(np.int64).min)

_COUNTS = (1, 10, 100, 1_000)
_COUNT_NAMES = ("0", "1-9", "10-99", "100-999", ">=1000")
_USER_COUNTS = (5, 20, 100)
_USER_COUNT_NAMES = ("0-4", "5-19", "20-99", ">=100")
_AGES = (HOUR_MS, DAY_MS, 7 * DAY_MS + 1)
_AGE_NAMES = ("<1 h", "1-24 h", "1-7 d", ">7 d")
_LENGTHS = (1, 10, 50)
_LENGTH_NAMES = ("0", "1-9", "10-49", ">=50")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """A partition of the rows: row i lies in slice `values[code_n[i]]` of `by`."""

    by: str
    values: tuple[str, ...]
    code_n: U8

    def take(self, rows: NDArray[np.bool_]) -> Slicing:
        """Some of the rows."""
        return replace(self, code_n=self.code_n[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class PastCounts:
    """What the log holds of one kind of id before each row, [n]."""

    impressions_n: NDArray[np.int32]
    clicks_n: NDArray[np.int32]
    age_ms_n: I64
    """Time since the id's first impression."""


def past_counts(ids: Coded, rows: PredictionRows, order: I64, *, settle_ms: int) -> PastCounts:
    """Impressions with a smaller time, clicks of those older than `settle_ms`, age.

    `order` is the rows' order of time. Raises InputError where times spread over millennia.
    """
    place = order[order_by_code(ids.code_n[order])]
    entity, ts = ids.code_n[place].astype(np.int64), rows.ts_ms_n[place]
    n = len(place)
    start_of = np.ones(n, np.bool_)
    np.not_equal(entity[1:], entity[:-1], out=start_of[1:])
    starts = np.flatnonzero(start_of)
    first = np.repeat(starts, np.diff(np.append(starts, n)))
    key = ts - ts.min(initial=np.iinfo(np.int64).max)
    span = int(key.max(initial=0)) + settle_ms + 1
    if span * (ids.count + 1) >= 1 << 62:
        raise InputError(
            f"prediction log: times spread over {span / DAY_MS:,.0f} days; expected milliseconds"
        )
    key += entity * span
    settled = np.concatenate(([0], np.cumsum(rows.label_n[place], dtype=np.int64)))
    until = np.maximum(np.searchsorted(key, key - settle_ms), first)
    clicks = settled[until] - settled[first]
    del until, settled
    new = start_of
    new[1:] |= key[1:] != key[:-1]
    runs = np.flatnonzero(new)
    impressions = np.repeat(runs, np.diff(np.append(runs, n))) - first
    out = PastCounts(
        impressions_n=np.empty(n, np.int32),
        clicks_n=np.empty(n, np.int32),
        age_ms_n=np.empty(n, np.int64),
    )
    out.impressions_n[place] = impressions
    out.clicks_n[place] = clicks
    out.age_ms_n[place] = ts - ts[first]
    return out


def causal_slices(
    rows: PredictionRows, *, settle_ms: int
) -> tuple[list[Slicing], NDArray[np.int32]]:
    """Slicings by what was known at the impression, and each row's impression index of its item."""
    order = np.argsort(rows.ts_ms_n, kind="stable")
    items = past_counts(rows.item, rows, order, settle_ms=settle_ms)
    found = [
        _binned("item exposures", items.impressions_n, _COUNTS, _COUNT_NAMES),
        _binned("item clicks", items.clicks_n, _COUNTS, _COUNT_NAMES),
        _binned("item age", items.age_ms_n, _AGES, _AGE_NAMES),
    ]
    index_n = items.impressions_n
    del items
    users = past_counts(rows.user, rows, order, settle_ms=settle_ms)
    found.append(_binned("user impressions", users.impressions_n, _USER_COUNTS, _USER_COUNT_NAMES))
    if rows.history_len_n is not None:
        found.append(_binned("history length", rows.history_len_n, _LENGTHS, _LENGTH_NAMES))
    if rows.has_vector_n is not None:
        missing = (~rows.has_vector_n).astype(np.uint8)
        found.append(Slicing(by="missing vector", values=("no", "yes"), code_n=missing))
    return found, index_n


def field_slices(rows: PredictionRows) -> list[Slicing]:
    """A slicing of each recorded field: its 20 most frequent values, and the rest."""
    return [_of_field(name, values) for name, values in rows.fields.items()]


def unrecorded(rows: PredictionRows) -> Mapping[str, str]:
    """Slicings that a log of an older version cannot give, and why."""
    why = "not recorded in the prediction log"
    columns = {"history length": rows.history_len_n, "missing vector": rows.has_vector_n}
    return {name: why for name, column in columns.items() if column is None}


def _binned(
    by: str, values_n: NDArray[np.int32] | I64, edges: tuple[int, ...], names: tuple[str, ...]
) -> Slicing:
    code = np.searchsorted(np.array(edges), values_n, side="right").astype(np.uint8)
    return Slicing(by=by, values=names, code_n=code)


def _of_field(name: str, values: Coded) -> Slicing:
    count = np.bincount(values.code_n, minlength=values.count)
    # Most frequent first; of equally frequent ones that with the smaller code.
    top = np.argsort(-count, kind="stable")[:FIELD_VALUES_MAX]
    top = top[count[top] > 0]
    of_code = np.full(values.count, len(top), np.uint8)
    of_code[top] = np.arange(len(top), dtype=np.uint8)
    names = [values.values[int(code)].as_py() for code in top]
    labels = ["missing" if value == MISSING else str(value) for value in names]
    return Slicing(by=f"field {name}", values=(*labels, REST), code_n=of_code[values.code_n])
