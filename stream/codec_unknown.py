"""Counts of fields that are in events but that nothing reads. Looks at a sample of records only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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


def unknown_fields(
    batch: RecordBatch, spec: DecodeSpec, every: int = SAMPLE_EVERY
) -> dict[str, int]:
    """Events that have each unread field, by name, in records at offsets divisible by `every`.

    Names in open maps are unread when no path of `spec` names them (`context.X`). Beyond 1,000
    distinct names further ones count together as `…`.
    """
    found = _Found()
    for record in (batch.offset_n % every == 0).nonzero()[0].tolist():
        value = batch.values[record]
        message = "" if value is None or len(value) > spec.value_bytes_max else unpacked(value)
        if isinstance(message, dict):
            found.take(message)
    return found.unread({source.path for source in spec.sources})


_Maps = Counter[tuple[object, ...]]


def _names(maps: _Maps) -> Iterator[tuple[object, int]]:
    return ((name, n) for names, n in maps.items() for name in names)


class _Found:
    """Names seen, by where they stand. Maps are counted by all their names at once: few differ."""

    def __init__(self) -> None:
        self._events: _Maps = Counter()
        self._shown: _Maps = Counter()
        self._maps: dict[str, _Maps] = {"context": Counter(), "features": Counter()}
        self._columns: Counter[object] = Counter()

    def take(self, message: dict[Any, Any]) -> None:
        """Count one message."""
        columns, n = message.get("columns"), message.get("n")
        if isinstance(columns, dict) and isinstance(n, int):
            for name in columns:
                self._columns[name] += n
            return
        self._events[*message] += 1
        events = message.get("events")
        if not isinstance(events, list):
            self._take_maps(message)
            return
        for event in events:
            if isinstance(event, dict):
                self._events[*event] += 1
                self._take_maps(event)

    def _take_maps(self, event: dict[Any, Any]) -> None:
        self._count("context", event.get("context"))
        shown = event.get("items")
        for item in shown if isinstance(shown, list) else ():
            if isinstance(item, dict):
                self._shown[*item] += 1
                self._count("features", item.get("features"))

    def _count(self, prefix: str, fields: object) -> None:
        if isinstance(fields, dict):
            self._maps[prefix][*fields] += 1

    def unread(self, read: set[str]) -> dict[str, int]:
        """Names that nothing reads, in order of name."""
        names: Counter[str] = Counter()
        for name, n in _names(self._events):
            if name not in _HEAD and name not in _EVENT:
                names[str(name)] += n
        for name, n in _names(self._shown):
            if name not in _SHOWN:
                names[f"items.{name}"] += n
        for prefix, fields in self._maps.items():
            for name, n in _names(fields):
                names[f"{prefix}.{name}"] += n
        for name, n in self._columns.items():
            if name not in _EVENT and name != "position":
                names[str(name)] += n
        unread = sorted((name, n) for name, n in names.items() if name not in read)
        kept = dict(unread[:NAMES_MAX])
        if len(unread) > NAMES_MAX:
            kept["…"] = sum(n for _, n in unread[NAMES_MAX:])
        return kept
