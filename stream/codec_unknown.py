"""Counts of fields that are in events but that nothing reads. Looks at a sample of records only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from stream.codec_salvage import unpacked
from stream.codec_spec import DecodeSpec
from stream.records import RecordBatch

SAMPLE_EVERY: Final = 64
"""Records whose offset is a multiple of this are looked at: the same in every run."""
NAMES_MAX: Final = 1_000
_HEAD: Final = frozenset({"v", "type", "events", "n", "columns"})
_EVENT: Final = frozenset(
    {"request_id", "user_id", "ts_ms", "items", "item_id", "kind", "context", "served"}
)
_SHOWN: Final = frozenset({"item_id", "position", "features", "propensity"})


def unknown_fields(batch: RecordBatch, spec: DecodeSpec, every: int = SAMPLE_EVERY) -> dict[str, int]:
    """Events that have each unread field, by name, in records at offsets divisible by `every`.

    Names in open maps are unread when no path of `spec` names them (`context.X`). Beyond 1,000
    distinct names further ones count together as `…`.
    """
    counts: dict[str, int] = {}
    read = {source.path for source in spec.sources}
    for record in (batch.offset_n % every == 0).nonzero()[0].tolist():
        value = batch.values[record]
        message = "" if value is None or len(value) > spec.value_bytes_max else unpacked(value)
        if isinstance(message, dict):
            for name, n in _unread(message, read):
                place = name if name in counts or len(counts) < NAMES_MAX else "…"
                counts[place] = counts.get(place, 0) + n
    return counts


def _unread(message: dict[Any, Any], read: set[str]) -> Iterator[tuple[str, int]]:
    columns, n = message.get("columns"), message.get("n")
    if isinstance(columns, dict) and isinstance(n, int):
        known = read | _EVENT | {"position"}
        yield from ((name, n) for name in columns if name not in known)
        return
    yield from ((str(name), 1) for name in message if name not in _HEAD and name not in _EVENT)
    events = message.get("events")
    for event in events if isinstance(events, list) else [message]:
        if isinstance(event, dict):
            yield from _unread_of_event(event, read, is_inner=event is not message)


def _unread_of_event(
    event: dict[Any, Any], read: set[str], *, is_inner: bool
) -> Iterator[tuple[str, int]]:
    if is_inner:
        yield from ((str(name), 1) for name in event if name not in _EVENT)
    yield from _unread_of_map("context", event.get("context"), read)
    shown = event.get("items")
    for item in shown if isinstance(shown, list) else ():
        if isinstance(item, dict):
            yield from ((f"items.{name}", 1) for name in item if name not in _SHOWN)
            yield from _unread_of_map("features", item.get("features"), read)


def _unread_of_map(prefix: str, fields: object, read: set[str]) -> Iterable[tuple[str, int]]:
    if not isinstance(fields, dict):
        return ()
    return [(path, 1) for name in fields if (path := f"{prefix}.{name}") not in read]
