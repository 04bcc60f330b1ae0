"""Decoded events in row form (single or enveloped) to blocks. Decodes and diagnoses nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.codec_blocks import Block
from stream.codec_fill import filled
from stream.codec_forms import Forms
from stream.codec_served import served_of_events
from stream.codec_spec import DecodeSpec, ServedSource
from stream.codec_values import (
    Bad,
    BadRow,
    KeyCache,
    field_keys,
    finite,
    float_column,
    id_key,
    id_keys,
    int_array,
    multi_keys,
    optional_id_keys,
    request_keys,
    small_ints,
    value_key,
)
from stream.columns import I64, EventKind, Reason


@dataclass(frozen=True, slots=True)
class Caches:
    """Keys of values seen lately, kept from batch to batch; they change no result."""

    ids: KeyCache
    values: KeyCache

    @classmethod
    def empty(cls) -> Caches:
        """New caches."""
        return cls(KeyCache(id_key), KeyCache(value_key))


class _RowFields:
    """`Fields` of impressions in row form; converts once an event, then repeats for its items."""

    def __init__(
        self,
        events: list[Any],
        shown: list[Any],
        event_of_row: I64 | None,
        forms: Forms,
        cache: KeyCache,
    ) -> None:
        self._of = {"context": events, "features": shown}
        self._maps: dict[str, list[Any]] = {}
        self._event_of_row = event_of_row
        self._getters = forms.getters
        self._cache = cache

    def _values(self, path: str) -> list[Any]:
        prefix = path.partition(".")[0]
        if prefix not in self._maps:
            self._maps[prefix] = list(map(attrgetter(prefix), self._of[prefix]))
        return list(map(self._getters[path], self._maps[prefix]))

    def _by_row(self, path: str, column: NDArray[Any], inner: Bad, bad: Bad) -> NDArray[Any]:
        if self._event_of_row is None or path.startswith("features."):
            bad.extend(inner)
            return column
        first = np.searchsorted(self._event_of_row, np.arange(len(column)))
        bad.extend(one._replace(row=int(first[one.row])) for one in inner)
        return column[self._event_of_row]

    def keys(self, path: str, bad: Bad) -> I64:
        inner: Bad = []
        return self._by_row(
            path, field_keys(self._values(path), self._cache, inner, path), inner, bad
        )

    def multi(self, path: str, length: int, salt: np.int64, bad: Bad) -> I64:
        inner: Bad = []
        keys = multi_keys(self._values(path), length, salt, self._cache, inner, path)
        return self._by_row(path, keys, inner, bad)

    def floats(self, path: str, bad: Bad) -> NDArray[np.float32]:
        inner: Bad = []
        return self._by_row(path, float_column(self._values(path), inner, path), inner, bad)

    def served(self, source: ServedSource, bad: Bad) -> tuple[I64, NDArray[np.float32]]:
        found = [event.served for event in self._of["context"]]
        return served_of_events(found, self._event_of_row, source, bad)


def impression_block(
    events: list[Any], record_e: I64, place_e: I64, spec: DecodeSpec, forms: Forms, caches: Caches
) -> Block:
    """Rows of impressions, one an item shown; `record_e` and `place_e` say where events stand."""
    lists = [event.items for event in events]
    requests = [event.request_id for event in events]
    users = [event.user_id for event in events]
    lead_records, lead_users = _leads(record_e, users)
    times = [event.ts_ms for event in events]
    event_of_row: I64 | None = None
    within: I64 | int = 0
    if sum(map(len, lists)) == len(lists):
        shown = [items[0] for items in lists]
    else:
        shown = list(chain.from_iterable(lists))
        counts = np.fromiter(map(len, lists), np.int64, len(lists))
        event_of_row = np.repeat(np.arange(len(lists)), counts)
        within = np.arange(len(shown)) - np.repeat(np.cumsum(counts) - counts, counts)
        requests, users, times = (
            list(
                chain.from_iterable(
                    [value] * len(items) for value, items in zip(column, lists, strict=True)
                )
            )
            for column in (requests, users, times)
        )
        record_e, place_e = record_e[event_of_row], place_e[event_of_row]
    bad: Bad = []
    ts_ms_n = time_column(times, bad)
    request_n, plain_requests = request_keys(requests, caches.ids, bad)
    user_n, plain_users = id_keys(users, caches.ids, bad, "user_id")
    items = [item.item_id for item in shown]
    item_n, plain_items = id_keys(items, caches.ids, bad, "item_id")
    position_n = small_ints([item.position for item in shown], bad, "position")
    position_n = np.where(position_n < 0, np.int32(within), position_n).astype(np.int32)
    fields = _RowFields(events, shown, event_of_row, forms, caches.values)
    impressions = filled(
        spec, fields, ts_ms_n=ts_ms_n, user_n=user_n, item_n=item_n, position_n=position_n, bad=bad
    )
    propensities = [item.propensity for item in shown]
    if propensities.count(None) < len(propensities):
        known = [np.nan if value is None else value for value in propensities]
        logged = [value if value is not None else 0.0 for value in propensities]
        finite(np.array(logged), bad, "propensity")
        impressions.propensity_m = np.array(known, np.float32)
    if not (plain_requests and plain_users and plain_items):
        impressions.names = names_of(requests, items, users)
    return Block(
        record_n=record_e,
        place_n=place_e,
        kind_n=np.full(len(items), EventKind.IMPRESSION, np.uint8),
        ts_ms_n=ts_ms_n,
        request_n=request_n,
        item_n=item_n,
        user_n=user_n,
        click_kind_n=np.full(len(items), -1, np.int16),
        impressions=impressions,
        lead_records=lead_records,
        lead_users=lead_users,
        bad=bad,
    )


def click_block(
    events: list[Any], record_e: I64, place_e: I64, kinds: dict[str, int], caches: Caches
) -> Block:
    """Rows of clicks and organic events."""
    bad: Bad = []
    requests = [event.request_id for event in events]
    users = [event.user_id for event in events]
    if None in requests:
        request_n = optional_id_keys(requests, caches.ids, bad, "request_id")
        organic = np.fromiter((request is None for request in requests), np.bool_, len(requests))
        kind_n = np.where(organic, np.uint8(EventKind.ORGANIC), np.uint8(EventKind.CLICK))
    else:
        request_n, _ = request_keys(requests, caches.ids, bad)
        kind_n = np.full(len(requests), EventKind.CLICK, np.uint8)
    user_n, _ = id_keys(users, caches.ids, bad, "user_id")
    item_n, _ = id_keys([event.item_id for event in events], caches.ids, bad, "item_id")
    number = kinds.get
    lead_records, lead_users = _leads(record_e, users)
    return Block(
        record_n=record_e,
        place_n=place_e,
        kind_n=kind_n,
        ts_ms_n=time_column([event.ts_ms for event in events], bad),
        request_n=request_n,
        item_n=item_n,
        user_n=user_n,
        click_kind_n=np.array(array("h", [number(event.kind, -1) for event in events])),
        lead_records=lead_records,
        lead_users=lead_users,
        bad=bad,
    )


def names_of(
    requests: Sequence[Any], items: Sequence[Any], users: Sequence[Any]
) -> list[tuple[int | str, int | str, int | str] | None]:
    """Original ids of the rows in which any is a string."""
    rows = zip(requests, items, users, strict=True)
    if any(set(map(type, column)) == {str} for column in (requests, items, users)):
        return list(rows)
    return [names if str in map(type, names) else None for names in rows]


def time_column(times: list[int], bad: Bad) -> I64:
    """Times as int64; the range is checked later, with the record's own time."""
    column = int_array(times)
    if column is not None:
        return column
    column = np.zeros(len(times), np.int64)
    for row, time in enumerate(times):
        if -(2**63) <= time < 2**63:
            column[row] = time
        else:
            bad.append(BadRow(row, Reason.BAD_TIME, f"ts_ms: got {time:.3e}"))
    return column


def _leads(record_e: I64, users: list[Any]) -> tuple[list[int], list[Any]]:
    """Records, and the user of the first event of each."""
    starts = np.flatnonzero(np.diff(record_e, prepend=-1))
    if len(starts) == len(users):
        return record_e.tolist(), users
    return record_e[starts].tolist(), [users[start] for start in starts.tolist()]
