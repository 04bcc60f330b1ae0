"""Checkpoints: the pipeline's state to snapshots and back (shell).

A snapshot is one consistent cut: it is taken between two calls of the pipeline and holds positions,
join, learner and a hard-link checkpoint of the item vectors. The pipeline's thread only copies;
another one writes. Offsets in the snapshot are the truth, commits to Kafka come afterwards.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infra import config as loader
from infra.errors import InputError
from infra.snapshot_format import Damage, SnapshotRef
from infra.snapshot_store import SnapshotStore
from infra.snapshot_writer import SnapshotWriter
from infra.state import Meta
from learners.growth import INCOMING
from learners.modules.catalog import BUILDERS
from learners.net_learner import NetLearner
from stream import kernels as k
from stream.composition import Composition, next_store_path
from stream.config import Config
from stream.positions import Position
from stream.records import TopicPartition

VECTORS = "vectors"
NEXT_VECTORS = "nextvectors"
# What may differ between a snapshot and the run that continues it: nothing that state depends on.
_FREE: tuple[str, ...] = (
    "snapshot.", "stream.max_slice_events", "stream.buffered_max", "stream.idle_ms", "ranker.grow",
    "items.cache_rows", "items.pending_bytes_max", "topics.", "kafka.", "worker.", "telemetry.",
)  # fmt: skip
_OF_MODULES = tuple(f"ranker.options.{module}." for module in BUILDERS)
_GROW = "; ranker.grow = true takes modules on and drops others, all else goes on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The snapshot that a run starts from; None for a fresh start. `notes` are for a person."""

    ref: SnapshotRef | None
    meta: Meta = field(default_factory=dict)
    damaged: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()


def machine() -> dict[str, Any]:
    """What bit-identity is bound to: torch version, threads, device."""
    cuda = torch.cuda.is_available()
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
    }


def misfits(saved: Mapping[str, Any], config: Config) -> list[str]:
    """How the configuration of a snapshot differs from `config` in what state depends on.

    Where the ranker may grow, its modules are free: the ranker itself refuses what does not fit.
    A new encoder version may come in.
    """
    lines = loader.differences(saved, loader.to_dict(config))
    free = _FREE
    before = saved.get("items", {}).get("next", "")
    if not before or config.ranker.grow:  # a version comes in, or is given up
        free += ("items.next",)
    if config.ranker.grow:
        free += _OF_MODULES
    return [line for line in lines if not line.lstrip().startswith(free)]


def _growth(learner: object) -> list[str]:
    """What a ranker that was restored has begun and dropped, for a person."""
    if not isinstance(learner, NetLearner):
        return []
    change = learner.change
    if INCOMING in change.begun:
        return ["a new encoder version comes in: its weights begin at 0, no score changes"]
    if INCOMING in change.dropped:
        return ["the encoder version that came in is given up, with what was learned by it"]
    return [f"module '{name}' begins afresh" for name in change.begun] + [
        f"module '{name}' of the snapshot is dropped" for name in change.dropped
    ]


class Checkpointer:
    """Snapshots of one pipeline, below one epoch."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        """`scratch` is on the same file system as `folder`; store checkpoints pass through it."""
        self.store = SnapshotStore(folder)
        self._scratch = scratch
        self._writer: SnapshotWriter | None = None
        self.epoch = 0
        self._last_samples = 0
        self._durable: Mapping[TopicPartition, Position] | None = None
        self._submitted: Mapping[TopicPartition, Position] = {}
        self.taken = 0

    def find(self) -> Restored:
        """The newest valid snapshot and what was damaged on the way to it."""
        found = self.store.latest_valid()
        meta = self.store.manifest(found.ref).meta if found.ref else {}
        return Restored(ref=found.ref, meta=meta, damaged=found.damaged)

    def prepare_vectors(self, ref: SnapshotRef | None, target: Path) -> tuple[str, ...]:
        """Put the snapshot's copy of the item vectors at `target`, ready to be opened.

        Those of a version that comes in are put beside.
        """
        if ref is None:
            return ()
        linked = self.store.manifest(ref).linked
        if VECTORS not in linked:
            return ("vectors: rebuilt (the snapshot has no copy; not bit-identical)",)
        for name, to in ((VECTORS, target), (NEXT_VECTORS, next_store_path(target))):
            if name in linked:
                self.store.copy_linked(ref, name, to, link_suffixes=(".sst", ".blob"))
        return ()

    @staticmethod
    def check(found: Restored, config: Config) -> None:
        """Raise InputError with a list where the snapshot's configuration does not fit."""
        different = misfits(found.meta["config"], config) if found.ref is not None else []
        if different:
            raise InputError(
                f"snapshot {found.ref} does not fit this configuration: {'; '.join(different)}. "
                "Use the snapshot's configuration, or another snapshot directory"
                + (_GROW if all(line.startswith(_OF_MODULES) for line in different) else "")
            )

    def restore(self, found: Restored, composition: Composition) -> Restored:
        """Bring the pipeline to the snapshot; raises InputError with a list where it cannot fit."""
        notes = list(found.notes)
        self.check(found, composition.config)
        if found.ref is not None:
            parts, _ = self.store.load(found.ref, verified=True)
            try:
                composition.pipeline.apply(parts)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"snapshot {found.ref} does not fit: {error}") from error
            notes += _growth(composition.pipeline.learner)
            if VECTORS not in self.store.manifest(found.ref).linked:
                for table in composition.pipeline.tables:
                    table.read_again()
            here = machine()
            notes += [
                f"not bit-identical: {name} is {here[name]}, the snapshot's was {old}"
                for name, old in found.meta["machine"].items()
                if here.get(name) != old
            ]
        self._last_samples = composition.pipeline.ledger.samples
        return Restored(ref=found.ref, meta=found.meta, damaged=found.damaged, notes=tuple(notes))

    def claim(self, parent: SnapshotRef | None) -> None:
        """Start an epoch: what others write from now on is beside the point (rule 13)."""
        self.epoch = self.store.claim_epoch(parent)
        self._writer = SnapshotWriter(self.store, self.epoch)

    def due(self, composition: Composition) -> bool:
        """Whether `snapshot.every_samples` were learned since the last one."""
        learned = composition.pipeline.ledger.samples - self._last_samples
        every = composition.config.snapshot.every_samples
        return every > 0 and learned >= every and not self._busy()

    def take(self, composition: Composition, extra: Meta | None = None) -> bool:
        """Copy the state and let it be written; False while an earlier one is being written."""
        assert self._writer is not None, "claim an epoch first"
        if self._writer.busy():
            return False
        self._collect(composition)
        pipeline = composition.pipeline
        self._scratch.mkdir(parents=True, exist_ok=True)
        linked = {}
        for name, table in zip((VECTORS, NEXT_VECTORS), pipeline.tables, strict=False):
            linked[name] = self._scratch / f"checkpoint-{uuid.uuid4().hex}"
            table.checkpoint(linked[name])
        self._submitted = dict(pipeline.positions())
        self._last_samples = pipeline.ledger.samples
        meta: Meta = {
            "config": loader.to_dict(composition.config),
            "machine": machine(),
            "positions": [p.to_map() for p in self._submitted.values()],
            "ledger": pipeline.ledger.to_map(),
            "samples": pipeline.ledger.samples,
            "clock_ms": pipeline.join.clock_ms,
            "watermark_ms": pipeline.join.clock_ms - pipeline.plan.config.stream.lateness_ms,
            "open": pipeline.join.scalar(k.OPEN_COUNT),
            "idle_advances": pipeline.sequencer.idle_advances,
            **(extra or {}),
        }
        taken = self._writer.submit(
            pipeline.ledger.samples, pipeline.export_full(), meta,
            linked_dirs=linked,
        )  # fmt: skip
        self.taken += taken
        return taken

    def durable(self, composition: Composition) -> Mapping[TopicPartition, Position] | None:
        """Positions of a snapshot that became durable since the last call, if one has."""
        self._collect(composition)
        done, self._durable = self._durable, None
        return done

    def wait(self, composition: Composition) -> None:
        """Wait until the snapshot under way is durable; raises what writing it raised."""
        if self._writer is not None and self._writer.wait() is not None:
            self._landed(composition)

    def close(self) -> None:
        """End the writer's thread."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _busy(self) -> bool:
        return self._writer is not None and self._writer.busy()

    def _collect(self, composition: Composition) -> None:
        if self._writer is not None and self._writer.finished() is not None:
            self._landed(composition)

    def _landed(self, composition: Composition) -> None:
        self._durable = self._submitted
        self.store.prune(composition.config.snapshot.keep)
