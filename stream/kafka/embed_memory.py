"""The embedder's memory of item-vectors: a RocksDB filled from the topic, and rows under way.

A row's header says what it was made of, so that a restart knows what is encoded already. A row
without that header (a broker or tool lost it) is encoded once more.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition

from embeddings.row_memory import Place, Remembered
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from stream.codec_write import encode_vector_key
from stream.item_pending import ItemPosition
from stream.kafka.settings import KafkaConfig

HEADER: Final = "millrace-made-of"
_FORM: Final = struct.Struct("<16s16sqqi")
_NOTHING: Final = bytes(_FORM.size)
_IDENTITY: Final = "rows of item-vectors, 1"
_POLL_MS: Final = 200
_RECORDS_MAX: Final = 2_000


def header_of(row: Remembered) -> bytes:
    """What a row was made of, as bytes: two digests and the place of its item event."""
    log, offset, event = row.place or (0, -1, 0)
    return _FORM.pack(row.content, row.row, log, offset, event)


def remembered(header: bytes, value: bytes) -> Remembered | None:
    """The inverse of `header_of`; None for what it did not write."""
    if len(header) != _FORM.size or header == _NOTHING:
        return None
    content, row, log, offset, event = _FORM.unpack(header)
    place = Place(log, offset, event) if offset >= 0 else None
    # A deletion has no content: its digest is 16 zero bytes, which no content has.
    return Remembered(content=content, row=row, value=value, place=place)


class _Sent(NamedTuple):
    """A row that the broker has taken and the reader has not read yet."""

    offset: int
    key: int
    row: Remembered


class TopicMemory:
    """A RowMemory of all that is on item-vectors. Encoder's and reader's threads call it.

    What the store holds was read from the topic, with the position up to which it was read. Rows
    that are encoded and not read back yet are kept beside it: `under_way` of them. Rows of other
    encoder versions have other keys: none is taken for one of ours.
    """

    def __init__(self, path: Path, topic: str, source_id: str, version: str = "") -> None:
        """Opens the store at `path`, emptied where it is of another log. Raises as a store does.

        `version`: of the encoder whose rows are asked for and sent.
        """
        self._path, self._topic, self._source_id = path, topic, source_id
        self._version = version
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closed = False
        self._ahead: dict[int, Remembered] = {}
        self._sent: dict[int, deque[_Sent]] = {}
        self._store = self._opened()
        found = self._positions()
        if any(at.source_id != source_id for at in found.values()):
            self.clear()
            found = {}
        self.next_offset = {partition: at.offset for partition, at in found.items()}

    def clear(self) -> None:
        """Forget everything: the topic is read anew."""
        self._store.close()
        shutil.rmtree(self._path, ignore_errors=True)
        self._store = self._opened()
        self.next_offset = {}

    def close(self) -> None:
        """Close the store, once a write is done that goes on."""
        with self._writing:
            self._closed = True
            self._store.close()

    def record_key(self, item_id: int | str) -> bytes:
        """The record key of an item's row."""
        return encode_vector_key(self._version, item_id)

    @property
    def under_way(self) -> int:
        """Rows encoded and not read back yet."""
        return len(self._ahead)

    def get_many(self, item_ids: Sequence[int | str]) -> list[Remembered | None]:
        """What is remembered of these items, in their order."""
        keys = [_key(self.record_key(item_id)) for item_id in item_ids]
        with self._lock:
            ahead = [self._ahead.get(key) for key in keys]
        missing = [n for n, row in enumerate(ahead) if row is None]
        found = self._store.get_many(np.array([keys[n] for n in missing], np.int64))
        for n, stored in zip(missing, found, strict=True):
            if stored is not None:
                ahead[n] = remembered(stored[: _FORM.size], stored[_FORM.size :])
        return ahead

    def put_many(self, item_ids: Sequence[int | str], rows: Sequence[Remembered]) -> None:
        """Remember rows that are about to be sent."""
        keys = [_key(self.record_key(item_id)) for item_id in item_ids]
        with self._lock:
            self._ahead.update(zip(keys, rows, strict=True))

    def sent(self, partition: int, offset: int, item_id: int | str, row: Remembered) -> None:
        """The broker has this row at that offset."""
        key = _key(self.record_key(item_id))
        with self._lock:
            if self.next_offset.get(partition, 0) > offset:
                self._settle(_Sent(offset, key, row))
            else:
                self._sent.setdefault(partition, deque()).append(_Sent(offset, key, row))

    def read(self, partition: int, records: Sequence[Any]) -> None:
        """Take records of the topic, in their order."""
        last = {_key(r.key): r for r in records if r.key is not None}
        values = {
            key: dict(r.headers).get(HEADER, _NOTHING) + r.value
            for key, r in last.items()
            if r.value is not None
        }
        gone = [key for key, r in last.items() if r.value is None]
        at = ItemPosition(self._source_id, records[-1].offset + 1, 0)
        with self._writing:
            if self._closed:
                return
            self._store.put_many(
                np.fromiter(values, np.int64, len(values)),
                list(values.values()),
                np.array(gone, np.int64) if gone else NO_KEYS,
                {f"{self._topic}/{partition}": at.to_bytes()},
            )
        with self._lock:
            self.next_offset[partition] = at.offset
            sent = self._sent.get(partition, deque())
            while sent and sent[0].offset < at.offset:
                self._settle(sent.popleft())

    def _settle(self, sent: _Sent) -> None:
        if self._ahead.get(sent.key) is sent.row:
            del self._ahead[sent.key]

    def _opened(self) -> RocksVectorStore:
        config = RocksVectorStoreConfig(path=self._path, block_cache_mb=16, write_buffer_mb=16)
        return RocksVectorStore(config, _IDENTITY)

    def _positions(self) -> dict[int, ItemPosition]:
        found = {}
        for name, position in self._store.positions().items():
            topic, _, partition = name.rpartition("/")
            if topic == self._topic:
                found[int(partition)] = ItemPosition.from_bytes(position)
        return found


class MemoryReader:
    """Follows item-vectors, all partitions, outside of the consumer group, into a TopicMemory."""

    def __init__(
        self, kafka: KafkaConfig, topic: str, partitions: int, memory: TopicMemory
    ) -> None:
        self._memory = memory
        self._tps = [KafkaPartition(topic, p) for p in range(partitions)]
        self._moved = asyncio.Condition()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed-memory",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
        )

    async def start(self) -> None:
        """Connect, and seek to where the memory ends."""
        consumer, memory = self._consumer, self._memory
        await consumer.start()
        consumer.assign(self._tps)
        ends = await consumer.end_offsets(self._tps)
        firsts = await consumer.beginning_offsets(self._tps)
        if any(memory.next_offset.get(tp.partition, 0) > ends[tp] for tp in self._tps):
            # Records are gone from the topic: what they said must go from the memory as well.
            await asyncio.to_thread(memory.clear)
        for tp in self._tps:
            memory.next_offset.setdefault(tp.partition, 0)
            start = max(memory.next_offset[tp.partition], firsts[tp])
            memory.next_offset[tp.partition] = start
            consumer.seek(tp, start)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
            for tp, records in fetched.items():
                await asyncio.to_thread(self._memory.read, tp.partition, records)
            async with self._moved:
                self._moved.notify_all()

    async def caught_up(self) -> None:
        """Wait until all has been read that is on the topic now."""
        ends = await self._consumer.end_offsets(self._tps)
        await self.until(lambda memory: _reaches(memory.next_offset, ends))

    async def until(self, ready: Any) -> None:
        """Wait until `ready(memory)`, looked at after each fetch."""
        async with self._moved:
            await self._moved.wait_for(lambda: ready(self._memory))


def _reaches(next_offset: Mapping[int, int], ends: Mapping[KafkaPartition, int]) -> bool:
    return all(next_offset[tp.partition] >= end for tp, end in ends.items())


def _key(record_key: bytes) -> int:
    """A signed 64-bit key of a record key."""
    key: int = xxhash.xxh3_64_intdigest(record_key)
    return key - (1 << 64) if key >= 1 << 63 else key
