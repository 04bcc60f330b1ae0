"""Scoring: impressions to probabilities by the state of a snapshot. Learns and changes nothing.

Decoder, keys, join kernel and assemble are those of the pipeline. Each impression meets user
state, counters and item vectors as the snapshot has them; impressions do not see one another.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

from infra import config as loader
from infra.errors import InputError
from infra.snapshot_format import MANIFEST, SnapshotCorrupt, SnapshotRef, parse_folder
from infra.snapshot_store import SnapshotStore
from learners.batch import MiniBatch
from learners.content_cosines import ContentCosines
from learners.step_inputs import histories_of
from stream import kernels as k
from stream.checkpoint import Checkpointer, Restored
from stream.codec import ImpressionDecoder
from stream.columns import EventColumns, EventKind
from stream.composition import compose
from stream.config import Config
from stream.event_keys import Chunk, EventKeys
from stream.join import JoinState
from stream.predictions import original_ids
from stream.record_log import RecordLog
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter, Released, dead_letter

CHUNK_RECORDS: Final = 4_096
Id = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is to be logged with the rows' impressions: the ranker's own, not what these brought.

    `values_nN` float32: `name` of the version `feature_version`, scored by `model`.
    """

    model: str
    feature_version: str
    name: str
    values_nN: NDArray[np.float32]

    def maps(self) -> list[dict[str, Any]]:
        """`served` of an impression of each row alone.

        That of an impression of several items has their features one behind the other.
        """
        head = {"model": self.model, "feature_version": self.feature_version}
        return [{**head, "features": {self.name: row}} for row in self.values_nN.tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One row for each item shown, in the order of the events, and the events not understood.

    `logit_n` and `probability_n` are float32 [n]; the probability is that of the label that the
    snapshot's ranker is trained on. `served` is there where the ranker reads it back
    (`ranker.options.simtier.served`).
    """

    request_ids: list[Id]
    item_ids: list[Id]
    user_ids: list[Id]
    ts_ms_n: NDArray[np.int64]
    logit_n: NDArray[np.float32]
    probability_n: NDArray[np.float32]
    rejected: list[DeadLetter]
    served: Served | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.logit_n)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as maps."""
        names = ("request_id", "item_id", "user_id", "ts_ms", "logit", "probability")
        columns = (self.request_ids, self.item_ids, self.user_ids, self.ts_ms_n.tolist(),
                   self.logit_n.tolist(), self.probability_n.tolist())  # fmt: skip
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.served is not None:
            for row, value in zip(rows, self.served.maps(), strict=True):
                row["served"] = value
        return rows


class Scorer:
    """The model and the state of one snapshot, in memory and in a folder of its own."""

    def __init__(self, snapshot: Path) -> None:
        """Load one snapshot's folder, or the newest valid one of a folder of snapshots.

        Raises InputError where there is none or it does not fit this version, SnapshotCorrupt for
        a damaged one. The snapshot is only read.
        """
        folder, ref = _located(snapshot)
        self._scratch = Path(tempfile.mkdtemp(prefix="millrace-score-"))
        try:
            self._load(folder, ref)
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def _load(self, folder: Path, ref: SnapshotRef | None) -> None:
        checkpoints = Checkpointer(folder, self._scratch)
        found = checkpoints.find() if ref is None else _sound(checkpoints.store, ref)
        if found.ref is None:
            raise InputError(f"'{folder}': there is no snapshot in it")
        config = loader.build(Config, found.meta["config"])
        notes = checkpoints.prepare_vectors(found.ref, self._scratch / "vectors")
        self._composition = compose(config, self._scratch / "vectors")
        try:
            self.restored = checkpoints.restore(found, self._composition)
        except BaseException:
            self._composition.close()
            raise
        self.notes = (*(f"damaged: {d}" for d in found.damaged), *notes, *self.restored.notes)
        self.config = config
        plan, pipeline = self._composition.plan, self._composition.pipeline
        self._decoder = ImpressionDecoder(plan.impression_spec)
        self._keys = EventKeys(plan, pipeline.items)
        self._join = pipeline.join
        # What was released is known, also the last key time's; an impression comes after it.
        self._join.apply_pending()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def close(self) -> None:
        """Close the copy of the item vectors and remove it."""
        self._composition.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def score(self, impressions: Iterable[RecordBatch | Mapping[str, Any] | bytes]) -> Scores:
        """Scores of impressions: records, or events as maps or bytes of the wire format.

        A map without `type` and `v` is taken for one impression of version 1. What cannot be
        decoded is in `rejected`, with its place and the reason.
        """
        parts: list[Scores] = []
        events: list[bytes] = []
        offset = 0
        for one in impressions:
            if isinstance(one, RecordBatch):
                parts.append(self._score(one))
                continue
            events.append(one if isinstance(one, bytes) else event_bytes(one))
            if len(events) >= CHUNK_RECORDS:
                parts.append(self._score(_batch_of(events, offset)))
                offset += len(events)
                events = []
        if events or not parts:
            parts.append(self._score(_batch_of(events, offset)))
        return _joined(parts)

    def score_log(self, log: RecordLog) -> Scores:
        """Scores of a record log's impressions; raises InputError where it has none."""
        topic = self.config.topics.impressions
        if topic not in log.partitions:
            raise InputError(
                f"record log {log.path}: has no topic '{topic}', only {sorted(log.partitions)}"
            )
        batches = (batch for chunk in log.batches(CHUNK_RECORDS) for batch in chunk)
        return self.score(batch for batch in batches if batch.tp.topic == topic)

    def _score(self, batch: RecordBatch) -> Scores:
        columns = self._decoder.decode(batch)
        released = _released(batch, columns, self._join.clock_ms)
        room, slots = self._frozen(self._keys.chunk(released))
        names = released.impressions.names
        if names is not None:
            names = [names[m] for m in released.imp_n.tolist()]
        size = 4 * self.config.stream.batch_size
        logits, served = [np.zeros(0, np.float32)], list[NDArray[np.float32]]()
        for first in range(0, len(slots), size):
            samples = room.samples(slots[first : first + size])
            rows = self._composition.pipeline.prediction_batch(samples)
            logits.append(self._composition.pipeline.predict(rows)[:, 0])
            served.append(self._histograms_of(rows))
        logit_n = np.concatenate(logits)
        opened = room.opened
        request_ids, item_ids, user_ids = (
            list(ids)
            for ids in original_ids(
                opened.request[slots], opened.item[slots], opened.user[slots], names
            )
        )
        return Scores(
            request_ids=_plain(request_ids), item_ids=_plain(item_ids), user_ids=_plain(user_ids),
            ts_ms_n=opened.ts[slots], logit_n=logit_n,
            probability_n=(1 / (1 + np.exp(-logit_n.astype(np.float64)))).astype(np.float32),
            rejected=released.rejected, served=self._served(served),
        )  # fmt: skip

    def _histograms_of(self, batch: MiniBatch) -> NDArray[np.float32]:
        """Those of each row by the state that scores; none where the ranker reads none."""
        histograms = self._composition.histograms
        if histograms is None:
            return np.zeros((len(batch), 0), np.float32)
        cosines = ContentCosines(batch.content, histories_of(batch, self._composition.plan.spec))
        return histograms.counts(cosines, len(batch)).reshape(len(batch), -1)

    def _served(self, values: Sequence[NDArray[np.float32]]) -> Served | None:
        histograms = self._composition.histograms
        if histograms is None:
            return None
        encoder = self._composition.store.encoder_version
        return Served(
            model=str(self.restored.ref), name=histograms.layout.name,
            feature_version=histograms.layout.version(encoder),
            values_nN=np.concatenate([np.zeros((0, histograms.width), np.float32), *values]),
        )  # fmt: skip

    def _frozen(self, chunk: Chunk) -> tuple[JoinState, NDArray[np.int64]]:
        """A join with all impressions of a chunk open, and their slots in the chunk's order.

        The join's own kernel runs over empty queues beside the snapshot's users and counters.
        Nothing new gets a row there, and all events share one key time for each step of the
        counters' decay, so that no event changes what the next one sees.
        """
        n, plan = len(chunk.events.kind), self._composition.plan
        room = JoinState(plan.shape, plan.params())
        room.reserve(max(n, 1))
        room.params = room.params._replace(
            users_max=0, counters_max=0, open_max=n + 1, ids_max=2 * n + 2
        )
        room.users = self._join.users
        room.user_counters = self._join.user_counters
        room.global_counters = self._join.global_counters
        clock = chunk.events.clock
        step = clock // room.params.bucket_ms
        order = np.argsort(step, kind="stable")
        unique = np.arange(1, n + 1)  # an impression that is asked for twice is scored twice
        columns: list[Any] = [column[order] for column in chunk.events]
        events = k.Events(*columns)._replace(key=unique)
        bounds = np.flatnonzero(np.diff(step[order])) + 1
        for first, last in zip((0, *bounds.tolist()), (*bounds.tolist(), n), strict=True):
            if last > first:
                events.clock[first:last] = room.queues.scalars[k.CLOCK] = events.clock[first]
                room.advance(events, first, last, chunk.shown)
        slots = room.fresh()
        assert len(slots) == n, (len(slots), n)
        in_order = np.empty_like(slots)
        in_order[order] = slots
        return room, in_order


def _located(path: Path) -> tuple[Path, SnapshotRef | None]:
    """The store's folder, and the snapshot if `path` names one."""
    if (path / "epochs").is_dir():
        return path, None
    if (path / MANIFEST).is_file() and path.resolve().parent.name.isdecimal():
        place = path.resolve()
        ref = parse_folder(int(place.parent.name), place.name)
        if ref is not None:
            return place.parents[2], ref
    raise InputError(
        f"'{path}': expected a folder of snapshots (with 'epochs/' in it), or one snapshot's "
        "folder epochs/EPOCH/STEP"
    )


def _sound(store: SnapshotStore, ref: SnapshotRef) -> Restored:
    damaged = store.verify(ref)
    if damaged:
        raise SnapshotCorrupt("; ".join(str(one) for one in damaged))
    return Restored(ref=ref, meta=store.manifest(ref).meta)


def event_bytes(event: Mapping[str, Any]) -> bytes:
    """An event as on the wire; bytes that no decoder takes where a value has no form there."""
    try:
        return bytes(msgpack.packb({"v": 1, "type": "impression", **event}))
    except (TypeError, ValueError, OverflowError) as error:
        return f"no wire form: {error}".encode()


def _batch_of(values: Sequence[bytes], offset: int) -> RecordBatch:
    """Events as records without key and timestamp, so that neither is checked."""
    return RecordBatch(
        tp=TopicPartition("impressions", 0),
        offset_n=np.arange(offset, offset + len(values), dtype=np.int64),
        timestamp_ms_n=np.full(len(values), -1, np.int64),
        keys=[None] * len(values), values=list(values),
    )  # fmt: skip


def _released(batch: RecordBatch, columns: EventColumns, clock_ms: int) -> Released:
    """The impression rows, at their own time or the snapshot's where that is later."""
    rows = np.flatnonzero(columns.kind_n == EventKind.IMPRESSION)
    return Released(
        kind_n=columns.kind_n[rows], clock_n=np.maximum(columns.ts_ms_n[rows], clock_ms),
        ts_ms_n=columns.ts_ms_n[rows], request_n=columns.request_n[rows],
        item_n=columns.item_n[rows], user_n=columns.user_n[rows],
        click_kind_n=columns.click_kind_n[rows], imp_n=columns.imp_n[rows],
        impressions=columns.impressions, chunk_n=np.zeros(len(rows), np.int32),
        record_n=columns.record_n[rows], index_n=columns.index_n[rows], batches=[batch],
        rejected=[dead_letter(batch, r) for r in columns.rejected],
    )  # fmt: skip


def _plain(ids: list[Any]) -> list[Id]:
    return [one if isinstance(one, str) else int(one) for one in ids]


def _joined(parts: Sequence[Scores]) -> Scores:
    if len(parts) == 1:
        return parts[0]
    return Scores(
        request_ids=[i for p in parts for i in p.request_ids],
        item_ids=[i for p in parts for i in p.item_ids],
        user_ids=[i for p in parts for i in p.user_ids],
        ts_ms_n=np.concatenate([p.ts_ms_n for p in parts]),
        logit_n=np.concatenate([p.logit_n for p in parts]),
        probability_n=np.concatenate([p.probability_n for p in parts]),
        rejected=[r for p in parts for r in p.rejected],
        served=_joined_served([p.served for p in parts if p.served is not None]),
    )


def _joined_served(parts: Sequence[Served]) -> Served | None:
    if not parts:
        return None
    return replace(parts[0], values_nN=np.concatenate([part.values_nN for part in parts]))
