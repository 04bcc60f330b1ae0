"""Small streams for tests: configuration, records from literals, a pipeline that keeps samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from embeddings.vector_cache import VectorCacheConfig
from embeddings.vectors import MemoryVectorStore
from infra import config as loader
from infra.state import Part
from learners.batch import MiniBatch
from learners.learner import StepReport
from stream.codec_write import (
    click_body,
    encode_envelope,
    encode_event,
    encode_key,
    encode_watermark,
    impression_body,
)  # fmt: skip
from stream.config import Config
from stream.feature_plan import plan
from stream.items import ItemTable, ItemTableConfig
from stream.pipeline import OnlinePipeline
from stream.positions import Position
from stream.predictions import Predictions
from stream.records import RecordBatch, TopicPartition
from stream.samples import Samples

T0 = 1_650_000_000_000

SMALL: dict[str, Any] = {
    "stream": {
        "lateness_ms": 500, "linger_ms": 4_000, "dedup_horizon_ms": 20_000, "batch_size": 4,
        "max_jump_ms": 600_000, "session_gap_ms": 1_000, "predict_at": "impression",
    },
    "items": {"dim": 0},
    "label": {"click": {"window_ms": 2_000}, "like": {"window_ms": 6_000}},
    "ranker": {"name": "base_rate", "label": "click"},
    "feature": [
        {"name": "user", "path": "user"},
        {"name": "item", "path": "item"},
        {"name": "tab", "path": "context.tab"},
        {"name": "gap", "path": "user.gap", "kind": "dense", "scale": "log1p"},
        {"name": "session", "path": "user.session_position", "kind": "dense"},
        {"name": "clicked", "path": "user.clicked", "kind": "dense"},
        {"name": "seen", "path": "user.interactions", "kind": "dense"},
    ],
    "counter": [
        {"name": "user", "keys": ["user"], "open": True},
        {"name": "item", "keys": ["item"], "half_life_hours": 0.001},
        {"name": "user_tab", "keys": ["user", "tab"]},
    ],
    "history": [{"name": "recent", "kinds": ["click", "watch"], "length": 5}],
}  # fmt: skip


def small_config(**stream: Any) -> Config:
    """The small configuration, with changes to [stream]."""
    return loader.build(Config, SMALL | {"stream": SMALL["stream"] | stream})


class NoLearning:
    """A learner that predicts a count, so that predictions show when they were made."""

    def __init__(self) -> None:
        self.learned: list[np.ndarray] = []
        self.steps = 0

    def learn_many(self, batch: MiniBatch) -> StepReport:
        self.steps += 1
        zero = torch.zeros(())
        return StepReport(logits_B=self.predict_many(batch), loss=zero, skipped=zero)

    def predict_many(self, batch: MiniBatch) -> torch.Tensor:
        return torch.full((len(batch),), float(self.steps))

    def export_full(self) -> Sequence[Part]:
        return [Part(name="learner", part_class="train", meta={"steps": self.steps})]

    def export_since(self, mark: int) -> Sequence[Part]:
        del mark
        return self.export_full()

    def apply(self, parts: dict[str, Part]) -> None:
        self.steps = parts["learner"].meta["steps"]

    def counts(self) -> dict[str, int]:
        return {"steps": self.steps}


class SamplePipeline(OnlinePipeline):
    """A pipeline that keeps the samples of every batch."""

    def __init__(self, config: Config) -> None:
        feature_plan = plan(config)
        store = MemoryVectorStore("none")
        items = ItemTable(store, ItemTableConfig(), VectorCacheConfig(dim=1, rows_max=64))
        super().__init__(feature_plan, NoLearning(), items)
        self.batches: list[Samples] = []
        self.dead: list[Any] = []
        build = self._assembler.batch

        def keep(samples: Samples) -> MiniBatch:
            self.batches.append(samples)
            return build(samples)

        self._assembler.batch = keep  # type: ignore[method-assign]  # a test's tap
        self.predictions: list[Predictions] = []

    def _predictions(self, *args: Any) -> Predictions:
        self.predictions.append(super()._predictions(*args))
        return self.predictions[-1]


def record_batch(
    tp: TopicPartition, offset: int, values: Sequence[tuple[bytes | None, bytes | None]]
) -> RecordBatch:
    """Consecutive records from key-value pairs; record timestamps lie far in the future."""
    return RecordBatch(
        tp=tp,
        offset_n=np.arange(offset, offset + len(values), dtype=np.int64),
        timestamp_ms_n=np.full(len(values), T0 + 10**9, np.int64),
        keys=[k for k, _ in values],
        values=[v for _, v in values],
    )


def impression(
    request: Any, user: Any, ts: int, items: Iterable[Any], **context: Any
) -> tuple[bytes, bytes]:
    """Key and value of an impression record; `ts` counts from T0."""
    shown = [{"item_id": item, "position": i} for i, item in enumerate(items)]
    body = impression_body(
        request_id=request, user_id=user, ts_ms=T0 + ts, items=shown, context=context
    )
    return encode_key(user), encode_event("impression", body)


def click(
    user: Any, item: Any, ts: int, kind: str = "click", request: Any = None
) -> tuple[bytes, bytes]:
    """Key and value of a click record; without request it is organic."""
    body = click_body(item_id=item, user_id=user, ts_ms=T0 + ts, kind=kind, request_id=request)
    return encode_key(user), encode_event("click", body)


def envelope(kind: str, bodies: Sequence[dict[str, Any]]) -> tuple[None, bytes]:
    """Key and value of an envelope record."""
    return None, encode_envelope(kind, bodies)


def watermark(ts: int) -> tuple[None, bytes]:
    """Key and value of a watermark record."""
    return None, encode_watermark(T0 + ts)


Log = dict[TopicPartition, list[tuple[bytes | None, bytes | None]]]


def run(
    config: Config, log: Log, cuts: Iterable[tuple[TopicPartition, int]] | None = None
) -> SamplePipeline:
    """A pipeline after the whole log; `cuts` are (partition, number of records) to push next."""
    pipeline = SamplePipeline(config)
    assign(pipeline, log)
    feed(pipeline, log, dict.fromkeys(log, 0), cuts)
    return pipeline


def assign(pipeline: OnlinePipeline, log: Log) -> None:
    """Assign the partitions of a log, from their beginning."""
    pipeline.assign(
        [Position(source_id="test", topic=tp.topic, partition=tp.partition) for tp in log]
    )


def feed(
    pipeline: OnlinePipeline,
    log: Log,
    at: dict[TopicPartition, int],
    cuts: Iterable[tuple[TopicPartition, int]] | None = None,
) -> list[Any]:
    """Push records by `cuts`, then what is left; returns the reports."""
    reports = []
    rest = [(tp, len(log[tp])) for tp in log]
    for tp, n in [*(cuts or []), *rest]:
        values = log[tp][at[tp] : at[tp] + n]
        if values:
            batch = record_batch(tp, at[tp], values)
            at[tp] += len(values)
            reports.append(pipeline.process([batch], 0))
    return reports
