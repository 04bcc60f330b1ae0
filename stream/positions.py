"""Positions: how far each partition has been released and processed, with proof of identity.

An offset alone has no identity: a recreated topic or a second log starts at 0 again. A position
therefore names its source and the record before it (rule 7). Knows neither Kafka nor files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from stream.records import TopicPartition

MASK64 = (1 << 64) - 1
LIVE_SOURCE = "kafka:"
"""What names of sources begin with that are topics of a broker, not logs."""


def record_hash(key: bytes | None, value: bytes | None) -> int:
    """Hash of a record's bytes, 64 bits; a null differs from an empty value."""
    h = xxhash.xxh3_64()
    for part in (key, value):
        h.update(b"\x00" if part is None else b"\x01" + len(part).to_bytes(8, "little") + part)
    return h.intdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a partition continues: the record at `next_offset`, from row `index` of it on.

    `last_hash` is the hash of the record before it (0: there was none). `count` and `offset_sum`
    (modulo 2^64) cover all records consumed whole from this source: the arithmetic proof that none
    was lost or taken twice.
    """

    source_id: str
    topic: str
    partition: int
    next_offset: int = 0
    index: int = 0
    last_hash: int = 0
    count: int = 0
    offset_sum: int = 0

    @property
    def tp(self) -> TopicPartition:
        """Topic and partition."""
        return TopicPartition(self.topic, self.partition)

    def after(
        self, offsets: NDArray[np.int64], last: tuple[bytes | None, bytes | None] | None, index: int
    ) -> Position:
        """The position after whole records `offsets` (rising), then `index` rows of the next.

        `last` holds key and value of the last whole record; None when there was none.
        """
        if not len(offsets):
            return replace(self, index=index)
        assert int(offsets[0]) >= self.next_offset, (self, int(offsets[0]))
        total = int(offsets.astype(np.uint64).sum(dtype=np.uint64))
        assert last is not None
        return replace(
            self,
            next_offset=int(offsets[-1]) + 1,
            index=index,
            last_hash=record_hash(*last),
            count=self.count + len(offsets),
            offset_sum=(self.offset_sum + total) & MASK64,
        )

    def to_map(self) -> dict[str, Any]:
        """A msgpack-able map."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_map(cls, value: dict[str, Any]) -> Position:
        """The inverse of `to_map`."""
        return cls(**value)
