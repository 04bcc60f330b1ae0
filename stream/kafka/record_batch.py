"""Records of a Kafka client as the pipeline's RecordBatch. Copies no value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stream.records import RecordBatch, TopicPartition


def record_batch(tp: TopicPartition, records: Sequence[Any]) -> RecordBatch:
    """A batch of aiokafka or kafka-python records, which must be of `tp` and in offset order."""
    n = len(records)
    return RecordBatch(
        tp=TopicPartition(tp.topic, tp.partition),
        offset_n=np.fromiter((r.offset for r in records), np.int64, n),
        timestamp_ms_n=np.fromiter((r.timestamp for r in records), np.int64, n),
        keys=[r.key for r in records],
        values=[r.value for r in records],
    )
