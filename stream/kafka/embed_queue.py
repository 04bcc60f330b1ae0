"""Item events between fetching and encoding: a queue bounded by items and bytes. Decodes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from stream.codec_items import ItemEvent, decode_items
from stream.columns import Rejected
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter, dead_letter


class Entry(NamedTuple):
    """One item event, or why there is none. `is_last`: of its record, which is done with it."""

    batch: RecordBatch
    offset: int
    event: int
    timestamp_ms: int
    nbytes: int
    is_last: bool
    found: ItemEvent | DeadLetter

    @property
    def tp(self) -> TopicPartition:
        """The partition that it came from."""
        return self.batch.tp


class ItemQueue:
    """Entries in the order of their partitions. Whoever fills it asks for room first.

    A fetch may overshoot the limits by what it brought: one record at least, or what the client
    had fetched ahead (1 MiB a partition).
    """

    def __init__(self, *, items_max: int, bytes_max: int) -> None:
        self._items_max, self._bytes_max = items_max, bytes_max
        self._entries: deque[Entry] = deque()
        self._changed = asyncio.Condition()
        self._closed = False
        self.nbytes = 0

    def __len__(self) -> int:
        """Entries that wait."""
        return len(self._entries)

    @property
    def has_room(self) -> bool:
        """Whether more may be fetched."""
        return len(self._entries) < self._items_max and self.nbytes < self._bytes_max

    async def room(self) -> None:
        """Wait until more may be fetched."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.has_room)

    async def put(self, entries: Sequence[Entry]) -> None:
        """Append entries, room or not."""
        self._entries.extend(entries)
        self.nbytes += sum(entry.nbytes for entry in entries)
        async with self._changed:
            self._changed.notify_all()

    async def take(self, items_max: int) -> list[Entry]:
        """What is there, at most so many; waits for the first. Empty: closed, and nothing left."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._entries or self._closed)
            taken = [self._entries.popleft() for _ in range(min(items_max, len(self._entries)))]
            self.nbytes -= sum(entry.nbytes for entry in taken)
            self._changed.notify_all()
        return taken

    async def clear(self) -> None:
        """Drop all that waits: it is fetched again, here or elsewhere."""
        self._entries.clear()
        self.nbytes = 0
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """No more will come."""
        self._closed = True
        async with self._changed:
            self._changed.notify_all()


def entries_of(batch: RecordBatch) -> list[Entry]:
    """The item events of fetched records, bad ones as dead letters, in their order."""
    decoded = decode_items(batch)
    entries = []
    for n, one in enumerate(decoded):
        is_last = n + 1 == len(decoded) or decoded[n + 1].record != one.record
        found = dead_letter(batch, one) if isinstance(one, Rejected) else one
        nbytes = len(batch.values[one.record] or b"") if is_last else 0
        entries.append(
            Entry(
                batch, int(batch.offset_n[one.record]), max(one.index, 0),
                int(batch.timestamp_ms_n[one.record]), nbytes, is_last, found,
            )
        )  # fmt: skip
    return entries
