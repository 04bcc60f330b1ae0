"""Item updates that wait for their key to pass, in key order. Applies none of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from infra.state import Part

NEVER_MS = -(1 << 62)
"""A clock before all events."""

_BYTES_PER_UPDATE = 400
"""What Python takes for one waiting update besides its value."""


class Place(NamedTuple):
    """Where on the topic an update stands."""

    partition: int
    offset: int
    event_index: int


class ItemUpdate(NamedTuple):
    """One upsert, or a deletion (`value` None), of the item-vectors topic.

    `event_index` is the event's place in its record. `value` is kept undecoded.
    """

    partition: int
    offset: int
    event_index: int
    ts_ms: int
    item_key: int
    value: bytes | None

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.partition, self.offset, self.event_index)


class LateUpdate(NamedTuple):
    """An update that came after its time: it counts from the first boundary behind `after_ms`."""

    partition: int
    offset: int
    event_index: int
    after_ms: int


class ItemPosition(NamedTuple):
    """Where a partition continues: at event `event_index` of the record at `offset`."""

    source_id: str
    offset: int
    event_index: int

    def to_bytes(self) -> bytes:
        """A msgpack list."""
        packed: bytes = msgpack.packb(list(self))
        return packed

    @classmethod
    def from_bytes(cls, value: bytes) -> ItemPosition:
        """The inverse of `to_bytes`."""
        return cls(*msgpack.unpackb(value))


def earliest(tables: Sequence[Mapping[int, ItemPosition]]) -> dict[int, ItemPosition]:
    """Where reading continues for several tables of one topic, by partition.

    A partition that one of them has not begun, or that they have of different sources, begins anew.
    """
    found: dict[int, ItemPosition] = {}
    for partition in set.intersection(*(set(positions) for positions in tables)):
        of = [positions[partition] for positions in tables]
        if len({position.source_id for position in of}) == 1:
            found[partition] = min(of, key=lambda position: position[1:])
    return found


class _Waiting(NamedTuple):
    """A waiting update; the first three are its key. `sequence` keeps a partition's own order."""

    clock_ms: int
    partition: int
    sequence: int
    source_id: str
    update: ItemUpdate


class PendingItems:
    """A queue by key (partition's clock, partition, place in the partition).

    A partition's clock is the running maximum of its `ts_ms`. Unlike those of impressions and
    clicks it may jump: a catalogue that is updated once a day has gaps of a day, and a clock that
    lagged behind them would show updates before their time. The key of a late update is that of
    the boundary which it missed.
    """

    def __init__(self, positions: Mapping[int, ItemPosition]) -> None:
        self.positions = dict(positions)
        self.nbytes = 0
        self._waiting: list[_Waiting] = []
        self._clocks: dict[int, int] = {}
        self._sequence = 0
        self._boundary_ms = NEVER_MS

    def __len__(self) -> int:
        """Updates that wait."""
        return len(self._waiting)

    def is_new(self, source_id: str, update: ItemUpdate) -> bool:
        """Whether the update lies at or behind its partition's position."""
        return not self.is_before(self.positions, source_id, update)

    @staticmethod
    def is_before(
        positions: Mapping[int, ItemPosition], source_id: str, update: ItemUpdate
    ) -> bool:
        """Whether the update lies before its partition's position, of the same source."""
        at = positions.get(update.partition)
        if at is None or at.source_id != source_id:
            return False
        return (update.offset, update.event_index) < (at.offset, at.event_index)

    def skip(self, source_id: str, update: ItemUpdate) -> None:
        """Moves the partition's position past an update that is not to be applied."""
        self.positions[update.partition] = ItemPosition(
            source_id, update.offset, update.event_index + 1
        )

    def hold(
        self, source_id: str, update: ItemUpdate, after_ms: int = NEVER_MS
    ) -> LateUpdate | None:
        """Takes the update, and tells what became of a late one: a boundary has passed its key.

        `after_ms`: the boundary that it missed in the run which is followed here.
        """
        self.skip(source_id, update)
        clock_ms = max(self._clocks.get(update.partition, NEVER_MS), update.ts_ms)
        self._clocks[update.partition] = clock_ms
        key_ms = max(clock_ms, self._boundary_ms, after_ms)
        entry = _Waiting(key_ms, update.partition, self._sequence, source_id, update)
        heapq.heappush(self._waiting, entry)
        self._sequence += 1
        self.nbytes += _nbytes(update)
        return LateUpdate(*update.place, key_ms) if key_ms > clock_ms else None

    def pop_due(self, clock_ms: int, rows_max: int) -> list[tuple[str, ItemUpdate]]:
        """Up to `rows_max` updates with keys below `clock_ms`, in key order, with their sources."""
        due: list[tuple[str, ItemUpdate]] = []
        while self._waiting and len(due) < rows_max and self._waiting[0].clock_ms < clock_ms:
            entry = heapq.heappop(self._waiting)
            self.nbytes -= _nbytes(entry.update)
            due.append((entry.source_id, entry.update))
        return due

    def pass_boundary(self, clock_ms: int) -> None:
        """Remembers how far boundaries have come."""
        self._boundary_ms = max(self._boundary_ms, clock_ms)

    def change_values(self, change: Callable[[bytes], bytes]) -> None:
        """Every value that waits becomes `change` of it; deletions, order and places stay."""
        for i, entry in enumerate(self._waiting):
            if entry.update.value is None:
                continue
            update = entry.update._replace(value=change(entry.update.value))
            self.nbytes += _nbytes(update) - _nbytes(entry.update)
            self._waiting[i] = entry._replace(update=update)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and meta of a part."""
        waiting = sorted(self._waiting)
        values = [b"" if w.update.value is None else w.update.value for w in waiting]
        columns = {
            "key": [(w.clock_ms, w.partition, w.sequence) for w in waiting],
            "place": [(w.update.offset, w.update.event_index, w.update.ts_ms) for w in waiting],
        }
        arrays: dict[str, NDArray[Any]] = {
            name: np.array(rows, np.int64).reshape(-1, 3) for name, rows in columns.items()
        }
        arrays["item_key"] = np.array([w.update.item_key for w in waiting], np.int64)
        arrays["is_delete"] = np.array([w.update.value is None for w in waiting], np.bool_)
        arrays["value_bytes"] = np.frombuffer(b"".join(values), np.uint8).copy()
        arrays["value_end"] = np.cumsum([len(value) for value in values], dtype=np.int64)
        meta = {
            "sources": [w.source_id for w in waiting],
            "positions": [[p, *at] for p, at in sorted(self.positions.items())],
            "clocks": [list(item) for item in sorted(self._clocks.items())],
            "sequence": self._sequence,
            "boundary_ms": self._boundary_ms,
        }
        return arrays, meta

    @classmethod
    def from_state(cls, part: Part) -> PendingItems:
        """The queue that `to_state` wrote; raises KeyError or TypeError on a misfit."""
        meta = part.meta
        queue = cls({p: ItemPosition(*at) for p, *at in meta["positions"]})
        queue._clocks = dict(meta["clocks"])
        queue._sequence = meta["sequence"]
        queue._boundary_ms = meta["boundary_ms"]
        blob = part.array("value_bytes", np.uint8).tobytes()
        keys = part.array("key", np.int64).tolist()
        places = part.array("place", np.int64).tolist()
        item_keys = part.array("item_key", np.int64).tolist()
        deletes = part.array("is_delete", np.bool_).tolist()
        ends = part.array("value_end", np.int64).tolist()
        start = 0
        for i, (clock_ms, partition, sequence) in enumerate(keys):
            value = None if deletes[i] else blob[start : ends[i]]
            start = ends[i]
            offset, event_index, ts_ms = places[i]
            update = ItemUpdate(partition, offset, event_index, ts_ms, item_keys[i], value)
            entry = _Waiting(clock_ms, partition, sequence, meta["sources"][i], update)
            heapq.heappush(queue._waiting, entry)
            queue.nbytes += _nbytes(update)
        return queue


def _nbytes(update: ItemUpdate) -> int:
    return _BYTES_PER_UPDATE + len(update.value or b"")
