"""Kafka records as the pipeline reads them. Pure: knows neither Kafka nor files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """Consecutive records of one partition, in offset order.

    `offset_n` and `timestamp_ms_n` are int64 [n]; offsets rise but may have gaps (compaction).
    """

    tp: TopicPartition
    offset_n: NDArray[np.int64]
    timestamp_ms_n: NDArray[np.int64]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def __len__(self) -> int:
        """Number of records."""
        return len(self.values)

    def rows(self, first: int, last: int) -> RecordBatch:
        """Records `first` to `last` (exclusive) of the batch."""
        return RecordBatch(
            tp=self.tp,
            offset_n=self.offset_n[first:last],
            timestamp_ms_n=self.timestamp_ms_n[first:last],
            keys=self.keys[first:last],
            values=self.values[first:last],
        )

    def from_offset(self, offset: int) -> RecordBatch:
        """The records at or behind `offset`; the batch itself when that is all of them."""
        first = int(np.searchsorted(self.offset_n, offset))
        return self if first == 0 else self.rows(first, len(self))
