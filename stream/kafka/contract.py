"""What the Kafka shell needs of the pipeline and its snapshots. Implements none of it.

Everything here runs in the pipeline thread only, never on an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from stream.item_pending import ItemPosition
from stream.positions import Position
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter


class PipelineReport(Protocol):
    """What one call of the pipeline did."""

    @property
    def dead_letters(self) -> Sequence[DeadLetter]:
        """Events that were not used and go to the dead-letter topic."""
        ...


class Pipeline(Protocol):
    """Records in, learned samples out; see `stream/pipeline`."""

    def assign(self, partitions: Mapping[TopicPartition, Position]) -> None:
        """Take the partitions on, each at its position; one of another source restarts there."""
        ...

    def process(self, batches: Sequence[RecordBatch], now_ms: int) -> PipelineReport:
        """Take records of any mix of partitions; what can be released is learned from."""
        ...

    def wants(self) -> frozenset[TopicPartition] | None:
        """Partitions whose records may be fetched now; None for all."""
        ...

    def positions(self) -> Mapping[TopicPartition, Position]:
        """How far each partition has been released and processed."""
        ...

    def idle(
        self, silent: Sequence[TopicPartition], elapsed_ms: int, now_ms: int
    ) -> PipelineReport:
        """Let the partitions that are at their end and silent no longer hold others back."""
        ...

    def offer_items(self, source_id: str, batches: Sequence[RecordBatch]) -> PipelineReport:
        """Take records of item-vectors, the side input."""
        ...

    def wants_items(self) -> bool:
        """False while the item updates that wait fill their room."""
        ...

    def item_positions(self) -> Mapping[int, ItemPosition]:
        """Where reading item-vectors continues, by partition; none where it begins."""
        ...

    def status(self) -> dict[str, Any]:
        """Counts and figures for people, JSON-able."""
        ...


class Checkpoints(Protocol):
    """Snapshots of one owner, fenced by the epoch it claimed."""

    @property
    def epoch(self) -> int:
        """The epoch claimed, 1 or more."""
        ...

    def due(self) -> bool:
        """True when a snapshot should be taken after this batch."""
        ...

    def take(self) -> None:
        """Copy the state and let it be written beside training."""
        ...

    def durable(self) -> Mapping[TopicPartition, Position] | None:
        """Positions of the newest durable snapshot; None when it is the one told last.

        Raises what writing it raised.
        """
        ...

    def fenced(self) -> bool:
        """True when another worker claimed a later epoch: this one must stop."""
        ...

    def final(self) -> Mapping[TopicPartition, Position]:
        """Take a last snapshot and wait until it is durable; its positions."""
        ...

    def close(self) -> None:
        """End the writer; what is under way is finished first."""
        ...


class Engine(Protocol):
    """A pipeline, restored from the newest snapshot, and its checkpoints."""

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, at the positions of `restored`."""
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """Its snapshots."""
        ...

    @property
    def restored(self) -> Mapping[TopicPartition, Position]:
        """Positions of the snapshot that was loaded; empty where there was none."""
        ...


MakeEngine = Callable[[Sequence[TopicPartition]], Engine]
"""Claims an epoch, loads the newest snapshot, builds the pipeline over these partitions."""
