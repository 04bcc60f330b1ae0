"""The pipeline and its snapshots behind the worker's contract. Adapts; decides and learns nothing.

Everything is made, used and closed in the pipeline thread.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.clock import Clock, SystemClock
from infra.errors import FaultError
from infra.telemetry import NO_TELEMETRY, Telemetry
from stream.checkpoint import Checkpointer, Restored
from stream.composition import Composition, compose, next_store_path
from stream.config import Config
from stream.item_pending import ItemPosition, earliest
from stream.kafka.contract import MakeEngine
from stream.late_vectors import LateVectorLog
from stream.metrics import PipelineProbe
from stream.pipeline import PipelineReport
from stream.positions import Position
from stream.prediction_log import PredictionLog
from stream.records import RecordBatch, TopicPartition
from stream.replay.report import counts_of

_VECTORS = "vectors"
_PREDICTION_PARTS, _LATE_PARTS = "prediction_parts", "late_vector_parts"
_LATENCIES_MAX = 10_000


class Latency:
    """How long the newest samples took from their record's sending to the weights."""

    def __init__(self) -> None:
        self._latency_ms: deque[int] = deque(maxlen=_LATENCIES_MAX)

    def add(self, report: PipelineReport, latency_ms: int) -> None:
        """Take what one call of the pipeline learned."""
        if report.samples:
            self._latency_ms.append(latency_ms)

    def quantiles(self) -> dict[str, float] | None:
        """Median and 99th percentile, None where nothing was learned yet."""
        if not self._latency_ms:
            return None
        latency = np.array(self._latency_ms)
        return {f"p{q}": float(np.percentile(latency, q)) for q in (50, 99)}


class RunLog:
    """What a replay of the run's record is compared with, and what it needs to be equal."""

    def __init__(self, folder: Path, trained_column: int) -> None:
        self.predictions = PredictionLog(folder, trained_column)
        self.late = LateVectorLog(folder)

    def flush(self) -> dict[str, list[str]]:
        """Make all durable; the names of the parts, as a snapshot holds them."""
        return {_PREDICTION_PARTS: self.predictions.flush(), _LATE_PARTS: self.late.flush()}

    def begin(self, epoch: int, meta: Mapping[str, Any]) -> None:
        """Continue behind the parts of a snapshot; raises InputError where one is missing."""
        self.predictions.begin(epoch, meta.get(_PREDICTION_PARTS, []))
        self.late.begin(epoch, meta.get(_LATE_PARTS, []))

    def finish(self) -> None:
        """Write all so far as files; a later run goes on behind them."""
        self.predictions.finish(keep_parts=True)
        self.late.finish()


class LivePipeline:
    """`contract.Pipeline` over the composed pipeline, with a run log where one is wanted."""

    def __init__(
        self,
        composition: Composition,
        log: RunLog | None,
        clock: Clock,
        probe: PipelineProbe,
    ) -> None:
        self._composition, self._log, self._clock = composition, log, clock
        if log is not None:
            for table in composition.pipeline.tables:
                table.note_late = log.late.append
        self._probe = probe
        self._pipeline = composition.pipeline
        self._intake = composition.intake()
        self._latency = Latency()

    def assign(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Take the partitions on; those of another source than restored restart there."""
        held = self._pipeline.positions()
        moved = [
            p for tp, p in partitions.items() if tp in held and held[tp].source_id != p.source_id
        ]
        if moved:
            self._pipeline.rebase(moved)
        self._pipeline.drop(tp for tp in held if tp not in partitions)
        self._pipeline.assign(list(partitions.values()))

    def process(self, batches: Sequence[RecordBatch], now_ms: int) -> PipelineReport:
        """Take records; see `OnlinePipeline.process`."""
        sent_ms = min((int(b.timestamp_ms_n[0]) for b in batches if len(b)), default=now_ms)
        report = self._probe.process(batches, lambda: self._pipeline.process(batches, now_ms))
        return self._taken(report, sent_ms)

    def idle(
        self, silent: Sequence[TopicPartition], elapsed_ms: int, now_ms: int
    ) -> PipelineReport:
        """Idle time; see `OnlinePipeline.idle`."""
        return self._taken(self._pipeline.idle(silent, elapsed_ms, now_ms), now_ms)

    def wants(self) -> frozenset[TopicPartition]:
        """Partitions to fetch."""
        return self._pipeline.wants()

    def positions(self) -> Mapping[TopicPartition, Position]:
        """Released and processed."""
        return self._pipeline.positions()

    def offer_items(self, source_id: str, batches: Sequence[RecordBatch]) -> PipelineReport:
        """Records of item-vectors."""
        letters = self._intake.vectors(source_id, batches)
        return PipelineReport(now_ms=self._clock.now_ms(), dead_letters=letters)

    def wants_items(self) -> bool:
        """Whether there is room for more of them."""
        return all(table.wants_more() for table in self._pipeline.tables)

    def item_positions(self) -> Mapping[int, ItemPosition]:
        """Where reading them continues."""
        return earliest([table.next_positions() for table in self._pipeline.tables])

    def flush_log(self) -> dict[str, list[str]]:
        """Make the run log durable; what a snapshot must say of it."""
        return {} if self._log is None else self._log.flush()

    def join_log(self) -> None:
        """Write all of the run log so far as files; a later run goes on behind them."""
        if self._log is not None:
            self._log.finish()

    def status(self) -> dict[str, Any]:
        """Counts of the report, progressive metrics, latencies; telemetry is told as well."""
        self._probe.publish(self._pipeline)
        clock_ms = self._pipeline.join.clock_ms
        beside = len(self._pipeline.tables) > 1
        share = getattr(self._pipeline.learner, "present_share", None) if beside else None
        return {
            **({} if share is None else {"present_version_share": share}),
            **counts_of(self._pipeline),
            "learner": dict(self._pipeline.learner.counts()),
            "clock_ms": clock_ms,
            "waiting_items": sum(table.pending for table in self._pipeline.tables),
            "metrics": self._pipeline.metrics.scores(),
            "recent_metrics": self._pipeline.metrics.scores(recent=True),
            "settle_to_update_ms": self._latency.quantiles(),
        }

    def _taken(self, report: PipelineReport, sent_ms: int) -> PipelineReport:
        latency_ms = self._clock.now_ms() - sent_ms
        self._latency.add(report, latency_ms)
        if report.samples:
            self._probe.updated(latency_ms)
        if self._log is not None:
            for predictions in report.predictions:
                self._log.predictions.append(predictions)
        return report


class LiveCheckpoints:
    """`contract.Checkpoints` over the checkpointer."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        composition: Composition,
        pipeline: LivePipeline,
        probe: PipelineProbe,
        close: Callable[[], None],
    ) -> None:
        self._checkpointer, self._composition = checkpointer, composition
        self._pipeline, self._probe, self._close = pipeline, probe, close
        self._taken_s = 0.0

    @property
    def epoch(self) -> int:
        """The epoch claimed."""
        return self._checkpointer.epoch

    def due(self) -> bool:
        """Whether enough was learned since the last snapshot."""
        return self._checkpointer.due(self._composition)

    def take(self) -> None:
        """Copy the state; another thread writes it."""
        extra = self._pipeline.flush_log()
        began = time.monotonic()
        if self._checkpointer.take(self._composition, extra):
            self._taken_s = began
            self._probe.snapshot_taken(time.monotonic() - began)

    def durable(self) -> Mapping[TopicPartition, Position] | None:
        """Positions of a snapshot that became durable since asked last."""
        positions = self._checkpointer.durable(self._composition)
        if positions is not None:
            now_ms = time.time_ns() // 1_000_000
            self._probe.snapshot_durable(time.monotonic() - self._taken_s, now_ms)
        return positions

    def fenced(self) -> bool:
        """Whether a later epoch exists."""
        return self._checkpointer.store.fenced(self.epoch)

    def final(self) -> Mapping[TopicPartition, Position]:
        """A last snapshot, durable when this returns."""
        self._checkpointer.wait(self._composition)
        self.durable()
        self.take()
        self._checkpointer.wait(self._composition)
        positions = self.durable()
        if positions is None:
            raise FaultError("the final snapshot did not become durable")
        self._pipeline.join_log()
        return positions

    def close(self) -> None:
        """End the writer, close the store."""
        try:
            self._checkpointer.close()
        finally:
            self._close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEngine:
    """`contract.Engine`: what an owner runs."""

    pipeline: LivePipeline
    checkpoints: LiveCheckpoints
    restored: Mapping[TopicPartition, Position]


def engine_maker(
    config: Config,
    folder: Path,
    *,
    predictions: bool,
    note: Callable[[str], None],
    clock: Clock | None = None,
    telemetry: Telemetry = NO_TELEMETRY,
) -> MakeEngine:
    """A function that claims an epoch below `folder`/snapshots and restores the newest snapshot.

    Item vectors are kept in a directory of their own below `folder`/vectors for as long as the
    engine lives: an owner that was paused may still hold its one. `predictions` keeps a run log in
    `folder`. `note` is told what a person should know, such as damaged snapshots.
    `telemetry` is measured into by whoever owns the engine; who made it closes it.
    """

    def make(_partitions: Sequence[TopicPartition]) -> LiveEngine:
        began = time.monotonic()
        probe = PipelineProbe(telemetry)
        checkpointer = Checkpointer(folder / "snapshots", folder / "scratch")
        found = checkpointer.find()
        checkpointer.check(found, config)
        shutil.rmtree(folder / _VECTORS, ignore_errors=True)
        vectors = folder / _VECTORS / uuid.uuid4().hex
        vectors.parent.mkdir(parents=True, exist_ok=True)
        notes = checkpointer.prepare_vectors(found.ref, vectors)
        composition = compose(config, vectors, span=probe.span)
        log = RunLog(folder, composition.plan.spec.trained_column) if predictions else None
        found = checkpointer.restore(
            Restored(ref=found.ref, meta=found.meta, damaged=found.damaged, notes=notes),
            composition,
        )
        for damage in found.damaged:
            note(f"damaged snapshot: {damage}")
        for line in found.notes:
            note(line)
        checkpointer.claim(found.ref)
        if log is not None:
            log.begin(checkpointer.epoch, found.meta)
        pipeline = LivePipeline(composition, log, clock or SystemClock(), probe)

        probe.recovered(time.monotonic() - began)

        def close() -> None:
            composition.close()
            for store in (vectors, next_store_path(vectors)):
                shutil.rmtree(store, ignore_errors=True)

        return LiveEngine(
            pipeline=pipeline,
            checkpoints=LiveCheckpoints(checkpointer, composition, pipeline, probe, close),
            restored=dict(composition.pipeline.positions()),
        )

    return make
