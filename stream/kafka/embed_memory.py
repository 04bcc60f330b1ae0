"""The embedder's memory of item-vectors: a RocksDB filled from the topic, and rows under way.

A row's header says what it was made of, so that a restart knows what is encoded already. A row
without that header (a broker or tool lost it) is encoded once more.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xxhash

from embeddings.row_memory import Place, Remembered
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from stream.codec_write import encode_vector_key
from stream.item_pending import ItemPosition

HEADER: Final = "millrace-made-of"
_FORM: Final = struct.Struct("<16s16sqqi")
_NOTHING: Final = bytes(_FORM.size)
_IDENTITY: Final = "rows of item-vectors, 1"
_OVERTAKEN_MAX: Final = 10_000


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


class Overtaken(NamedTuple):
    """A row that was followed by an older one: `packed` is its header and value."""

    partition: int
    key: bytes
    packed: bytes

    @property
    def header(self) -> bytes:
        """What it was made of."""
        return self.packed[: _FORM.size]

    @property
    def value(self) -> bytes:
        """The row."""
        return self.packed[_FORM.size :]


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
        self._overtaken: dict[int, Overtaken] = {}
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
        """Take records of the topic, in their order.

        One that an embedder sent too late, after a newer row of its item, is not taken: the newer
        row is among `overtaken`, until it is on the topic again.
        """
        named = [(_key(r.key), r) for r in records if r.key is not None]
        keys = np.unique(np.fromiter((key for key, _ in named), np.int64, len(named)))
        at = ItemPosition(self._source_id, records[-1].offset + 1, 0)
        with self._writing:
            if self._closed:
                return
            rows = dict(zip(keys.tolist(), self._store.get_many(keys), strict=True))
            for key, r in named:
                header = dict(r.headers).get(HEADER, _NOTHING)
                before = rows[key]
                if before is not None and r.value is not None and _is_later(before, header):
                    if len(self._overtaken) < _OVERTAKEN_MAX:
                        self._overtaken[key] = Overtaken(partition, r.key, before)
                    continue
                self._overtaken.pop(key, None)
                rows[key] = None if r.value is None else header + r.value
            gone = [key for key, row in rows.items() if row is None]
            kept = {key: row for key, row in rows.items() if row is not None}
            self._store.put_many(
                np.fromiter(kept, np.int64, len(kept)),
                list(kept.values()),
                np.array(gone, np.int64) if gone else NO_KEYS,
                {f"{self._topic}/{partition}": at.to_bytes()},
            )
        with self._lock:
            self.next_offset[partition] = at.offset
            sent = self._sent.get(partition, deque())
            while sent and sent[0].offset < at.offset:
                self._settle(sent.popleft())

    def overtaken(self) -> list[Overtaken]:
        """Rows to be sent again, as an older one of their item came after them; told once."""
        with self._writing:
            found = list(self._overtaken.values())
            self._overtaken.clear()
        return found

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


def _is_later(stored: bytes, header: bytes) -> bool:
    """Whether a stored row was made of a later event of the same log than this header's."""
    one, other = remembered(stored[: _FORM.size], b""), remembered(header, b"")
    if one is None or other is None or one.place is None or other.place is None:
        return False
    return one.place.reaches(other.place) and one.place != other.place


def _key(record_key: bytes) -> int:
    """A signed 64-bit key of a record key."""
    key: int = xxhash.xxh3_64_intdigest(record_key)
    return key - (1 << 64) if key >= 1 << 63 else key
