"""Engine: a pipeline restored from the newest snapshot, and its checkpoints, for a live worker.

Runs in the pipeline thread only; knows neither Kafka nor Faust. State of a group lives in one
folder: `snapshots/` (shared by owner and standbys), `vectors/<epoch>/` (the owner's own store).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.snapshot_format import Damage
from stream import kernels as k
from stream.checkpoint import Checkpointer, Restored
from stream.composition import Composition, compose
from stream.config import Config
from stream.item_intake import ItemIntake
from stream.item_pending import ItemPosition
from stream.pipeline import PipelineReport, Span, no_span
from stream.positions import Position
from stream.prediction_log import PredictionLog
from stream.records import RecordBatch, TopicPartition
from stream.replay.report import counts_of
from stream.sequencer import DeadLetter

LATENCIES_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Where an owner's state is; `report` is where predictions go, None for nowhere."""

    state: Path
    report: Path | None = None


@dataclass(slots=True, kw_only=True)
class Offered:
    """What came of an offer of item vectors."""

    dead_letters: Sequence[DeadLetter] = field(default_factory=list)


class LivePipeline:
    """The pipeline as the worker's shell calls it, with predictions and latencies kept."""

    def __init__(self, composition: Composition, predictions: PredictionLog | None) -> None:
        """`predictions` takes what was predicted, where it is wanted."""
        self._composition = composition
        self._pipeline = composition.pipeline
        self._intake = ItemIntake(self._pipeline.items, composition.embedder)
        self.predictions = predictions
        self._latencies_ms: list[float] = []
        self._rebased = False

    def assign(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Take the partitions on, each at its position; one of another source restarts there."""
        held = self._pipeline.positions()
        moved = [
            p for tp, p in partitions.items() if tp in held and held[tp].source_id != p.source_id
        ]
        if moved:
            self._pipeline.rebase(moved)
        self._pipeline.assign(list(partitions.values()))

    def process(self, batches: Sequence[RecordBatch], now_ms: int) -> PipelineReport:
        """Take records of any mix of partitions; what can be released is learned from."""
        report = self._pipeline.process(batches, now_ms)
        if report.steps:
            sent_ms = max(int(b.timestamp_ms_n[-1]) for b in batches if len(b))
            self._latencies_ms += [time.time() * 1_000 - sent_ms] * report.steps
            del self._latencies_ms[:-LATENCIES_MAX]
        return self._kept(report)

    def wants(self) -> frozenset[TopicPartition] | None:
        """Partitions whose records may be fetched now."""
        return self._pipeline.wants()

    def positions(self) -> Mapping[TopicPartition, Position]:
        """How far each partition has been released and processed."""
        return self._pipeline.positions()

    def idle(
        self, silent: Sequence[TopicPartition], elapsed_ms: int, now_ms: int
    ) -> PipelineReport:
        """Let the partitions that are at their end and silent no longer hold others back."""
        return self._kept(self._pipeline.idle(silent, elapsed_ms, now_ms))

    def offer_items(self, source_id: str, batches: Sequence[RecordBatch]) -> Offered:
        """Take records of item-vectors, the side input."""
        return Offered(dead_letters=self._intake.vectors(source_id, batches))

    def wants_items(self) -> bool:
        """False while the item updates that wait fill their room."""
        return self._pipeline.items.wants_more()

    def item_positions(self) -> Mapping[int, ItemPosition]:
        """Where reading item-vectors continues, by partition; none where it begins."""
        return self._pipeline.items.next_positions()

    def status(self) -> dict[str, Any]:
        """Counts, progressive metrics and latencies, JSON-able."""
        pipeline = self._pipeline
        latencies = np.array(self._latencies_ms or [np.nan])
        return {
            **counts_of(pipeline),
            "open_impressions": pipeline.join.scalar(k.OPEN_COUNT),
            "items_pending": pipeline.items.pending,
            "clock_ms": pipeline.join.clock_ms,
            "metrics": pipeline.metrics.scores(),
            "recent_metrics": pipeline.metrics.scores(recent=True),
            "ledger": pipeline.ledger.to_map(),
            "settle_to_update_ms": {
                "p50": _number(np.quantile(latencies, 0.5)),
                "p99": _number(np.quantile(latencies, 0.99)),
            },
        }

    def _kept(self, report: PipelineReport) -> PipelineReport:
        if self.predictions is not None:
            for predictions in report.predictions:
                self.predictions.append(predictions)
        return report


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class LiveCheckpoints:
    """The checkpoints as the worker's shell calls them."""

    def __init__(self, checkpointer: Checkpointer, composition: Composition,
                 live: LivePipeline) -> None:  # fmt: skip
        """Both belong to one owner."""
        self._checkpointer, self._composition, self._live = checkpointer, composition, live

    @property
    def epoch(self) -> int:
        """The epoch claimed, 1 or more."""
        return self._checkpointer.epoch

    def due(self) -> bool:
        """True when a snapshot should be taken after this batch."""
        return self._checkpointer.due(self._composition)

    def take(self) -> None:
        """Copy the state and let it be written beside training."""
        self._checkpointer.take(self._composition, self._extra())

    def durable(self) -> Mapping[TopicPartition, Position] | None:
        """Positions of the newest durable snapshot; None when it is the one told last."""
        return self._checkpointer.durable(self._composition)

    def fenced(self) -> bool:
        """True when another worker claimed a later epoch: this one must stop."""
        return self._checkpointer.store.fenced(self.epoch)

    def final(self) -> Mapping[TopicPartition, Position]:
        """Take a last snapshot and wait until it is durable; its positions."""
        self._checkpointer.wait(self._composition)
        self._checkpointer.take(self._composition, self._extra())
        self._checkpointer.wait(self._composition)
        if self._live.predictions is not None:
            self._live.predictions.finish(keep_parts=True)
        return self._checkpointer.durable(self._composition) or self._live.positions()

    def close(self) -> None:
        """End the writer; what is under way is finished first."""
        try:
            self._checkpointer.close()
        finally:
            self._composition.close()

    def _extra(self) -> dict[str, Any]:
        log = self._live.predictions
        return {} if log is None else {"prediction_parts": log.flush()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What `stream.kafka.contract.Engine` asks for."""

    pipeline: LivePipeline
    checkpoints: LiveCheckpoints
    restored: Mapping[TopicPartition, Position]
    notes: tuple[str, ...]
    damaged: tuple[Damage, ...]


def make_engine(config: Config, options: EngineConfig, *, span: Span = no_span) -> Engine:
    """Load the newest snapshot, claim the next epoch, build the pipeline.

    Raises InputError where they do not fit, SnapshotCorrupt where none is readable.
    """
    checkpointer = Checkpointer(options.state / "snapshots", options.state)
    found = checkpointer.find()
    checkpointer.claim(found.ref)
    vectors = options.state / "vectors" / str(checkpointer.epoch)
    for old in vectors.parent.glob("*") if vectors.parent.is_dir() else ():
        # A worker that lost its place may still write there: nobody will look.
        shutil.rmtree(old, ignore_errors=True)
    vectors.parent.mkdir(parents=True, exist_ok=True)
    notes = checkpointer.prepare_vectors(found.ref, vectors)
    composition = compose(config, vectors, span=span)
    found = Restored(ref=found.ref, meta=found.meta, damaged=found.damaged, notes=notes)
    restored = checkpointer.restore(found, composition)
    predictions = None
    if options.report is not None:
        column = composition.plan.spec.trained_column
        predictions = PredictionLog(options.report, column)
        predictions.truncate(int(restored.meta.get("prediction_parts", 0)))
    live = LivePipeline(composition, predictions)
    return Engine(
        pipeline=live,
        checkpoints=LiveCheckpoints(checkpointer, composition, live),
        restored=dict(composition.pipeline.positions()),
        notes=restored.notes,
        damaged=restored.damaged,
    )
