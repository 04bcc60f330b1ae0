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
from stream.evaluation.rows import MISSING, Coded, PredictionRows

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

FIELD_VALUES_MAX = 20
REST = "rest"

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
class Past:
    """Rows in order of (id, time): what the log holds of an id before each of its rows.

    `place_s` is the row at each place, `first_s` the first place of its id, `key_s` = id * span +
    time, ascending.
    """

    place_s: I64
    first_s: I32
    key_s: I64

    def impressions(self) -> I32:
        """Impressions with a smaller time, [n]."""
        new = np.ones(len(self.key_s), np.bool_)
        np.not_equal(self.key_s[1:], self.key_s[:-1], out=new[1:])
        runs = np.flatnonzero(new).astype(np.int32)
        return self._by_row(_repeated(runs, len(new)) - self.first_s)

    def clicks(self, label_n: NDArray[np.int8], settle_ms: int) -> I32:
        """Clicks on impressions that are more than `settle_ms` older, [n]."""
        clicked = np.zeros(len(self.key_s) + 1, np.int32)
        np.cumsum(label_n[self.place_s], out=clicked[1:])
        until = np.searchsorted(self.key_s, self.key_s - settle_ms)
        np.maximum(until, self.first_s, out=until)
        return self._by_row(clicked[until] - clicked[self.first_s])

    def age_ms(self) -> I64:
        """Time since the first impression, [n]."""
        age_n = np.empty(len(self.key_s), np.int64)
        age_n[self.place_s] = self.key_s - self.key_s[self.first_s]
        return age_n

    def _by_row(self, values_s: I32) -> I32:
        values_n = np.empty(len(values_s), np.int32)
        values_n[self.place_s] = values_s
        return values_n


def past_of(ids: Coded, ts_ms_n: I64, order: I64, *, settle_ms: int) -> Past:
    """Past of each id; `order` is the rows' order of time, clicks settle within `settle_ms`.

    Raises InputError where times spread over millennia.
    """
    place = order[order_by_code(ids.code_n[order])]
    key = ids.code_n[place].astype(np.int64)
    new = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    first = _repeated(np.flatnonzero(new).astype(np.int32), len(key))
    start_ms, end_ms = (int(ts_ms_n.min()), int(ts_ms_n.max())) if len(key) else (0, 0)
    span = end_ms - start_ms + settle_ms + 1
    if span * (ids.count + 1) >= 1 << 62:
        raise InputError(
            f"prediction log: times spread over {span / DAY_MS:,.0f} days; expected milliseconds"
        )
    key *= span
    key += ts_ms_n[place]
    key -= start_ms
    return Past(place_s=place, first_s=first, key_s=key)


def _repeated(starts: I32, n: int) -> I32:
    """Start of the run that each place lies in."""
    return np.repeat(starts, np.diff(np.append(starts, n)))


def causal_slices(rows: PredictionRows, *, settle_ms: int) -> tuple[list[Slicing], I32]:
    """Slicings by what was known at the impression, and each row's impression index of its item."""
    order = np.argsort(rows.ts_ms_n, kind="stable")
    items = past_of(rows.item, rows.ts_ms_n, order, settle_ms=settle_ms)
    index_n = items.impressions()
    clicks_n = items.clicks(rows.label_n, settle_ms)
    found = [
        _binned("item exposures", index_n, _COUNTS, _COUNT_NAMES),
        _binned("item clicks", clicks_n, _COUNTS, _COUNT_NAMES),
        _binned("item age", items.age_ms(), _AGES, _AGE_NAMES),
    ]
    del items, clicks_n
    users = past_of(rows.user, rows.ts_ms_n, order, settle_ms=settle_ms).impressions()
    found.append(_binned("user impressions", users, _USER_COUNTS, _USER_COUNT_NAMES))
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
    by: str, values_n: I32 | I64, edges: tuple[int, ...], names: tuple[str, ...]
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
