"""Warm-up: a few made-up events through a throw-away pipeline, so that nothing compiles later.

Compiling the loops takes seconds and holds Python's lock; a worker that did it with its first
batches would stand still while its group expects heartbeats. Learns nothing that is kept.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stream.codec_write import click_body, encode_event, encode_key, impression_body, item_body
from stream.composition import compose
from stream.config import Config
from stream.positions import Position
from stream.records import RecordBatch, TopicPartition

_T0_MS = 1_600_000_000_000
_SAMPLES = 32


def warm_up(config: Config) -> int:
    """Samples that the throw-away pipeline learned, through every stage of `config`."""
    small = replace(config, stream=replace(config.stream, batch_size=8, predict_at="impression"))
    composition = compose(small, None)
    pipeline, topics = composition.pipeline, config.topics
    try:
        kinds = config.click_kinds
        shown, clicks, items = [], [], []
        for i in range(_SAMPLES):
            ts_ms = _T0_MS + 1_000 * i
            item = item_body(item_id=i % 4, ts_ms=_T0_MS - 1, attributes={"warm": ["up"]})
            items.append((b"%d" % (i % 4), encode_event("item", item)))
            body = impression_body(
                request_id=i, user_id=i % 3, ts_ms=ts_ms, items=[{"item_id": i % 4, "position": 0}]
            )
            shown.append((encode_key(i % 3), encode_event("impression", body)))
            for kind in kinds:
                organic = click_body(item_id=i % 4, user_id=i % 3, ts_ms=ts_ms, kind=kind)
                joined = {**organic, "request_id": i}
                clicks += [(encode_key(i % 3), encode_event("click", c)) for c in (organic, joined)]
        intake = composition.intake()
        intake.items("warm-up", [_records(topics.items, items)])
        pipeline.assign(
            [
                Position(source_id="warm-up", topic=topic, partition=0)
                for topic in (topics.impressions, topics.clicks)
            ]
        )
        pipeline.process(
            [_records(topics.impressions, shown), _records(topics.clicks, clicks)], _T0_MS
        )
        pipeline.finish()
        return pipeline.ledger.samples
    finally:
        composition.close()


def _records(topic: str, rows: list[tuple[bytes, bytes]]) -> RecordBatch:
    return RecordBatch(
        tp=TopicPartition(topic, 0),
        offset_n=np.arange(len(rows), dtype=np.int64),
        timestamp_ms_n=np.full(len(rows), _T0_MS + 10**9, np.int64),
        keys=[key for key, _ in rows],
        values=[value for _, value in rows],
    )
