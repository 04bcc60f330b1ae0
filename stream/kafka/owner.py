"""The owner's side of a worker: pipeline, snapshots and what to fetch next. Knows no event loop.

All methods run in the pipeline thread. Positions advance inside a call and snapshots are calls of
their own, so that no snapshot can be cut into a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import FaultError
from stream.item_pending import ItemPosition
from stream.kafka.contract import Engine, PipelineReport
from stream.kafka.record_batch import record_batch
from stream.positions import Position
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the event loop has to do after a call."""

    dead_letters: Sequence[DeadLetter]
    snapshot_due: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The state of things between batches."""

    step: Step
    durable: Mapping[TopicPartition, Position] | None
    status: dict[str, Any]


class Owner:
    """Holds the engine while this worker owns the partitions."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.next_offset: dict[TopicPartition, int] = {}
        self.wanted: frozenset[TopicPartition] | None = None
        """Partitions to fetch. Replaced, never changed: other threads read it."""
        self.records = 0
        self.gaps = 0
        self.torn = False
        """True once a call failed half way: the state is not fit for a snapshot."""

    def assign(self, starts: Mapping[TopicPartition, Position]) -> None:
        """Begin at these positions."""
        self.engine.pipeline.assign(starts)
        self.next_offset = {tp: position.next_offset for tp, position in starts.items()}
        self.wanted = self.engine.pipeline.wants()

    def process(self, tp: TopicPartition, records: Sequence[Any], now_ms: int) -> Step:
        """Hand the fetched records of a partition to the pipeline."""
        batch = record_batch(tp, records).from_offset(self.next_offset[tp])
        if not len(batch):
            return Step(dead_letters=(), snapshot_due=False)
        missing = int(batch.offset_n[0]) - self.next_offset[tp]
        if missing:
            # Legal where a transaction's markers or a retention limit took offsets away; a number
            # that nobody explains is a fault of the shell.
            self.gaps += 1
            log.warning(
                "%s/%d: %d offsets from %d on are not in the log",
                tp.topic, tp.partition, missing, self.next_offset[tp],
            )  # fmt: skip
        with self._whole():
            report = self.engine.pipeline.process([batch], now_ms)
            self.next_offset[tp] = int(batch.offset_n[-1]) + 1
            self.records += len(batch)
            return self._step(report)

    def offer_items(self, source_id: str, batches: Sequence[RecordBatch]) -> tuple[Step, bool]:
        """Hand records of item-vectors over; with them whether more may come."""
        with self._whole():
            report = self.engine.pipeline.offer_items(source_id, batches)
            return self._step(report), self.engine.pipeline.wants_items()

    def item_positions(self) -> Mapping[int, ItemPosition]:
        """Where reading item-vectors continues, by partition."""
        return self.engine.pipeline.item_positions()

    def wants_items(self) -> bool:
        """Whether records of item-vectors may come."""
        return self.engine.pipeline.wants_items()

    def pulse(self, silent: Sequence[TopicPartition], elapsed_ms: int, now_ms: int) -> Pulse:
        """Idle time, if any partition is silent, and what a snapshot has made durable.

        Raises FaultError when another worker has claimed a later epoch.
        """
        if self.engine.checkpoints.fenced():
            raise FaultError(
                f"another worker took over (a later epoch than {self.engine.checkpoints.epoch} "
                "exists): this one stops; what it learned since its last snapshot is learned there"
            )
        step = Step(dead_letters=(), snapshot_due=False)
        if silent:
            with self._whole():
                step = self._step(self.engine.pipeline.idle(silent, elapsed_ms, now_ms))
        return Pulse(step=step, durable=self.engine.checkpoints.durable(), status=self.status())

    def take_snapshot(self) -> None:
        """Let a snapshot of this moment be written."""
        self.engine.checkpoints.take()

    def stop(self) -> Mapping[TopicPartition, Position] | None:
        """A last snapshot, unless the state is torn; its positions."""
        checkpoints = self.engine.checkpoints
        try:
            return None if self.torn or checkpoints.fenced() else checkpoints.final()
        finally:
            checkpoints.close()

    def status(self) -> dict[str, Any]:
        """Figures for people, JSON-able."""
        positions = self.engine.pipeline.positions()
        return {
            "epoch": self.engine.checkpoints.epoch,
            "records": self.records,
            "offset_gaps": self.gaps,
            "positions": {_name(tp): p.next_offset for tp, p in sorted(positions.items())},
            "fetched": {_name(tp): n for tp, n in sorted(self.next_offset.items())},
            "pipeline": self.engine.pipeline.status(),
        }

    def _step(self, report: PipelineReport) -> Step:
        self.wanted = self.engine.pipeline.wants()
        return Step(dead_letters=report.dead_letters, snapshot_due=self.engine.checkpoints.due())

    def _whole(self) -> _Whole:
        return _Whole(self)


class _Whole:
    """Marks the owner's state as torn when the block raises."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        if self._owner.torn:
            raise FaultError("the pipeline failed before and takes nothing more")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._owner.torn |= kind is not None


def _name(tp: TopicPartition) -> str:
    return f"{tp.topic}/{tp.partition}"
