"""Events in row form (single, or in an envelope) to blocks, through msgspec structs made to measure.

The structs hold only the fields that configuration reads: msgspec skips all others in C. Decodes
no columnar envelope and diagnoses nothing; what does not fit raises in `Forms.decode`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream.codec_blocks import Block
from stream.codec_fill import filled
from stream.codec_salvage import TopicTypes
from stream.codec_spec import DecodeSpec, DenseSource
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
from stream.events import TopicRole, Value, Version
from stream.keys import keys_of_ints

_Field = tuple[str, Any] | tuple[str, Any, Any]


@dataclass(frozen=True, slots=True)
class Forms:
    """The struct types of one topic, and the decoder of their union."""

    decode: Callable[[bytes], Any]
    single: type[msgspec.Struct]
    envelope: type[msgspec.Struct]
    columnar: type[msgspec.Struct]
    types: TopicTypes
    getters: dict[str, Callable[[Any], Any]]


def forms_of(spec: DecodeSpec) -> Forms:
    """Struct types that hold what `spec` reads."""
    if spec.role is TopicRole.IMPRESSIONS:
        body, getters = _impression_fields(spec)
        names = ("impression", "impressions", "impression_columns")
    else:
        assert spec.role is TopicRole.CLICKS, spec.role
        body, getters = _CLICK_FIELDS, {}
        names = ("click", "clicks", "click_columns")
    inner = msgspec.defstruct("Body", body, gc=False)
    events = Annotated[list[inner], msgspec.Meta(min_length=1, max_length=spec.events_max)]  # type: ignore[valid-type]
    rows = Annotated[int, msgspec.Meta(ge=1, le=spec.events_max)]
    single = _tagged(names[0], [("v", Version), *body])
    envelope = _tagged(names[1], [("v", Version), ("events", events)])
    columnar = _tagged(names[2], [("v", Version), ("n", rows), ("columns", dict[str, Any])])
    # A watermark's time is checked with all others, so that the reason is the same.
    mark = _tagged("watermark", [("v", Version), ("ts_ms", int)], base=WatermarkMessage)
    types = TopicTypes(
        single=names[0],
        envelope=names[1],
        body=inner,
        others={names[2]: columnar, "watermark": mark},
    )
    decoder = msgspec.msgpack.Decoder(single | envelope | columnar | mark)  # type: ignore[operator]
    return Forms(decoder.decode, single, envelope, columnar, types, getters)


class WatermarkMessage(msgspec.Struct, gc=False):
    """What all decoded watermarks are an instance of."""


_CLICK_FIELDS: list[_Field] = [
    ("item_id", int | str),
    ("user_id", int | str),
    ("ts_ms", int),
    ("kind", str),
    ("request_id", int | str | None, None),
]


def _tagged(
    tag: str, fields: Sequence[_Field], base: type[msgspec.Struct] | None = None
) -> type[msgspec.Struct]:
    bases = None if base is None else (base,)
    return msgspec.defstruct(tag, fields, bases=bases, gc=False, tag_field="type", tag=tag)


def _impression_fields(
    spec: DecodeSpec,
) -> tuple[list[_Field], dict[str, Callable[[Any], Any]]]:
    shown: list[_Field] = [
        ("item_id", int | str),
        ("position", int, -1),
        ("propensity", float | None, None),
    ]
    body: list[_Field] = [("request_id", int | str), ("user_id", int | str), ("ts_ms", int)]
    context, getters = _open_map(spec, "context.")
    features, more = _open_map(spec, "features.")
    if features is not None:
        shown.append(("features", features, msgspec.field(default_factory=features)))
    item = msgspec.defstruct("Shown", shown, gc=False)
    body.append(("items", Annotated[list[item], msgspec.Meta(min_length=1)]))  # type: ignore[valid-type]
    if context is not None:
        body.append(("context", context, msgspec.field(default_factory=context)))
    return body, getters | more


def _open_map(
    spec: DecodeSpec, prefix: str
) -> tuple[type[msgspec.Struct] | None, dict[str, Callable[[Any], Any]]]:
    """A struct with the configured names of an open map; names need not be identifiers."""
    names = spec.names_in(prefix)
    if not names:
        return None, {}
    rename = {f"f{i}": name for i, name in enumerate(names)}
    numeric = {source.path for source in spec.dense} - {
        source.path for source in spec.sources if not isinstance(source, DenseSource)
    }
    number = int | float | bool | None
    fields = [
        (f"f{i}", number if prefix + name in numeric else Value, None)
        for i, name in enumerate(names)
    ]
    struct = msgspec.defstruct(prefix.rstrip("."), fields, rename=rename, gc=False)
    return struct, {prefix + name: attrgetter(f"f{i}") for i, name in enumerate(names)}


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
        self, events: list[Any], shown: list[Any], event_of_row: I64 | None, forms: Forms, cache: KeyCache
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
        return self._by_row(path, field_keys(self._values(path), self._cache, inner, path), inner, bad)

    def multi(self, path: str, length: int, salt: np.int64, bad: Bad) -> I64:
        inner: Bad = []
        keys = multi_keys(self._values(path), length, salt, self._cache, inner, path)
        return self._by_row(path, keys, inner, bad)

    def floats(self, path: str, bad: Bad) -> NDArray[np.float32]:
        inner: Bad = []
        return self._by_row(path, float_column(self._values(path), inner, path), inner, bad)


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
            list(chain.from_iterable([value] * len(items) for value, items in zip(column, lists, strict=True)))
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
