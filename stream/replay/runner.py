"""Replay: record logs through the very pipeline that a worker runs (shell).

Several logs form one chain per partition: positions restart, clocks and state go on, and windows
are closed after the last one only (rule 7).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.errors import InputError
from stream.checkpoint import Checkpointer, Restored
from stream.composition import Composition, Variation, compose, next_store_path
from stream.config import Config
from stream.item_pending import Place
from stream.late_vectors import read_late_vectors
from stream.pipeline import PipelineReport
from stream.positions import Position, record_hash
from stream.prediction_log import PredictionLog
from stream.record_log import RecordLog, RecordLogUnusable
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter

CHUNK_BYTES = 2 << 20
CHUNK_RECORDS_MAX = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """What to replay and where to put it. `snapshot_every` samples; 0: no snapshots."""

    logs: tuple[Path, ...]
    report: Path
    snapshot_every: int = 0
    resume: bool = False
    new_log: bool = False
    chunk_records: int = 0
    """Records of one call of the pipeline; 0: about 2 MiB of them. Results do not depend on it."""
    late_vectors: Path | None = None
    """When a live worker got the log's item vectors, where that was late; see `late_vectors`."""
    variation: Variation | None = None
    """Several learners side by side, or permuted content; then there are no snapshots."""


@dataclass(slots=True, kw_only=True)
class ReplayResult:
    """A finished replay. Seconds are wall time.

    `from_first_impression_s` leaves history out, and the chunk of the first impression with it,
    which held `first_samples` samples.
    """

    composition: Composition
    predictions: Path
    restored: Restored
    seconds: float
    from_first_impression_s: float
    first_samples: int
    samples_run: int
    events_run: int
    snapshots: int
    log_end_ms: int
    """Event time at which the logs end: windows open then were closed early."""
    source_ids: list[str] = field(default_factory=list)
    items_rejected_by_reason: dict[str, int] = field(default_factory=dict)

    @property
    def samples_per_s(self) -> float:
        """Speed without the history before the first impression; of all, where a log is short."""
        rest = self.samples_run - self.first_samples
        if rest < self.samples_run / 2:
            return self.samples_run / max(self.seconds, 1e-9)
        return rest / max(self.from_first_impression_s, 1e-9)


class Replay:
    """One replay from start to end."""

    def __init__(self, config: Config, options: ReplayConfig) -> None:
        """Open the logs and the report folder; restore if asked. Raises InputError."""
        assert not (options.variation and (options.snapshot_every or options.resume))
        self._options = options
        self._logs = [opened(path) for path in options.logs]
        _check_partitions(self._logs, config)
        _make_folder(options.report)
        vectors = options.report / "vectors"
        self._checkpoints: Checkpointer | None = None
        found = Restored(ref=None)
        if options.snapshot_every or options.resume:
            self._checkpoints = Checkpointer(options.report / "snapshots", options.report)
            if options.resume:
                found = self._checkpoints.find()
                self._checkpoints.check(found, config)  # before the store, which tells less
            notes = self._checkpoints.prepare_vectors(found.ref, vectors)
            found = Restored(ref=found.ref, meta=found.meta, damaged=found.damaged, notes=notes)
        late = None
        if options.late_vectors is not None:
            late = read_late_vectors(options.late_vectors)
            _check_late(late, self._logs, config.topics.item_vectors)
        self._composition = compose(config, vectors, variation=options.variation)
        for table in self._composition.pipeline.tables:
            table.follow(late or {})
        try:
            self.restored = self._restore(found)
        except BaseException:
            self._composition.close()
            raise
        self._intake = self._composition.intake()
        self._items_rejected: dict[str, int] = dict(self.restored.meta.get("items_rejected", {}))
        self._refused_before: dict[str, int] = dict(self.restored.meta.get("items_refused_to", {}))
        self._refused_to = dict(self._refused_before)
        self._first_impression_s = 0.0
        self._first_samples = 0
        self._events_run = 0
        self._ends: dict[TopicPartition, int] = {}

    def _restore(self, found: Restored) -> Restored:
        """Bring pipeline and prediction log to the snapshot, and claim an epoch below it."""
        if self._checkpoints is not None:
            found = self._checkpoints.restore(found, self._composition)
        positions = list(self._composition.pipeline.positions().values())
        held = {p.source_id for p in positions}
        for log in self._logs:
            if log.source_id in held:
                _check_positions(log, positions)
        if held and not any(log.source_id in held for log in self._logs):
            if not self._options.new_log:
                raise InputError(
                    f"snapshot {found.ref} was taken on another log than "
                    f"{', '.join(str(log.path) for log in self._logs)}: give its log as well, or "
                    "--new-log to keep model and user state and begin at the start of this one"
                )
            note = "none of the logs is the snapshot's: positions start anew, state goes on"
            found = replace(found, notes=(*found.notes, note))
        column = self._composition.plan.spec.trained_column
        arms = tuple(self._options.variation.arms) if self._options.variation else ()
        self._log = PredictionLog(self._options.report, column, arms)
        if self._checkpoints is not None:
            self._checkpoints.claim(found.ref)
        epoch = self._checkpoints.epoch if self._checkpoints is not None else 0
        self._log.begin(epoch, found.meta.get("prediction_parts", []))
        return found

    def run(self, progress: Callable[[int, int], None] | None = None) -> ReplayResult:
        """Replay all logs; `progress` is told (records done, records in all)."""
        composition, pipeline = self._composition, self._composition.pipeline
        before = pipeline.ledger.samples
        total, done = sum(len(log) for log in self._logs), 0
        started = time.perf_counter()
        try:
            for log in self._remaining_logs():
                for batches in log.batches(self._chunk_records(log)):
                    self._chunk(log, batches)
                    done += sum(len(b) for b in batches)
                    if progress is not None:
                        progress(done, total)
            if self._checkpoints is not None:
                self._snapshot(final=True)
            self._take(pipeline.drain())
            log_end_ms = pipeline.join.clock_ms
            self._take(pipeline.finish())
            predictions = self._log.finish(
                keep_parts=self._checkpoints is not None, names=pipeline.field_names()
            )
        except BaseException:
            composition.close()
            raise
        finally:
            if self._checkpoints is not None:
                self._checkpoints.close()
        ended = time.perf_counter()
        first = self._first_impression_s or started
        return ReplayResult(
            composition=composition,
            predictions=predictions,
            restored=self.restored,
            seconds=ended - started,
            from_first_impression_s=ended - first,
            first_samples=max(self._first_samples - before, 0),
            samples_run=pipeline.ledger.samples - before,
            events_run=self._events_run,
            snapshots=self._checkpoints.taken if self._checkpoints else 0,
            log_end_ms=log_end_ms,
            source_ids=[log.source_id for log in self._logs],
            items_rejected_by_reason=self._items_rejected,
        )

    def _remaining_logs(self) -> Any:
        """Logs from the one that the positions name, each one taken on as it begins."""
        pipeline = self._composition.pipeline
        held = {p.source_id for p in pipeline.positions().values()}
        names = [log.source_id for log in self._logs]
        # The last one that is held: partitions that it does not have stay where they ended. None
        # held is another day: model and user state go on, positions start anew.
        start = max((i for i, name in enumerate(names) if name in held), default=0)
        for log in self._logs[start:]:
            positions = [
                Position(source_id=log.source_id, topic=tp.topic, partition=tp.partition)
                for tp in log.topic_partitions
                if tp.topic in pipeline.topics
            ]
            if log.source_id not in held and pipeline.positions():
                self._take(pipeline.drain())
                pipeline.rebase(positions)
            pipeline.assign(positions)
            self._ends = log.last_offsets()
            at = pipeline.positions()
            pipeline.mark_finished(
                tp
                for tp in pipeline.sequencer.partitions
                if at[tp].source_id != log.source_id or at[tp].next_offset > self._ends.get(tp, -1)
            )
            yield log

    def _chunk_records(self, log: RecordLog) -> int:
        """Records a chunk: few where they are envelopes, whose columns should stay in cache."""
        fit = int(CHUNK_BYTES / log.mean_record_bytes)
        return self._options.chunk_records or min(max(fit, 16), CHUNK_RECORDS_MAX)

    def _chunk(self, log: RecordLog, batches: list[RecordBatch]) -> None:
        pipeline, topics = self._composition.pipeline, self._composition.config.topics
        mine: list[RecordBatch] = []
        for batch in batches:
            if batch.tp.topic == topics.item_vectors:
                self._refuse(log, self._intake.vectors(log.source_id, [batch]))
            elif batch.tp.topic == topics.items and topics.item_vectors not in log.partitions:
                self._refuse(log, self._intake.items(log.source_id, [batch]))
            elif batch.tp.topic in pipeline.topics:
                rest = batch.from_offset(pipeline.positions()[batch.tp].next_offset)
                if len(rest):
                    mine.append(rest)
        finished = [b.tp for b in mine if int(b.offset_n[-1]) >= self._ends.get(b.tp, -1)]
        self._take(pipeline.process(mine, 0, finished=finished))
        if not self._first_impression_s and any(b.tp.topic == topics.impressions for b in mine):
            # After the chunk: all history before the first impression is released with it.
            self._first_impression_s = time.perf_counter()
            self._first_samples = pipeline.ledger.samples
        if self._checkpoints is not None and self._options.snapshot_every:
            self._snapshot(final=False)

    def _refuse(self, log: RecordLog, letters: Sequence[DeadLetter]) -> None:
        """Count unusable item records, those before the snapshot not again."""
        for letter in letters:
            place = f"{log.source_id}/{letter.tp.topic}/{letter.tp.partition}"
            if letter.offset <= self._refused_before.get(place, -1):
                continue
            self._refused_to[place] = max(letter.offset, self._refused_to.get(place, -1))
            n = self._items_rejected.get(letter.reason, 0)
            self._items_rejected[letter.reason] = n + 1

    def _take(self, report: PipelineReport) -> None:
        self._events_run += report.events
        for predictions in report.predictions:
            self._log.append(predictions)

    def _snapshot(self, *, final: bool) -> None:
        checkpoints, composition = self._checkpoints, self._composition
        assert checkpoints is not None
        if not final and not checkpoints.due(composition):
            return
        checkpoints.wait(composition)
        extra = {
            "prediction_parts": self._log.flush(),
            "items_rejected": dict(self._items_rejected),
            "items_refused_to": dict(self._refused_to),
        }
        checkpoints.take(composition, extra)
        if final:
            checkpoints.wait(composition)


def _make_folder(report: Path) -> None:
    """The report folder, without the item vectors of an earlier run."""
    try:
        report.mkdir(parents=True, exist_ok=True)
        for store in (report / "vectors", next_store_path(report / "vectors")):
            shutil.rmtree(store, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"report directory '{report}': cannot be written ({error.strerror})"
        ) from error


def opened(path: Path) -> RecordLog:
    """The log at `path`; raises InputError."""
    try:
        return RecordLog(path)
    except RecordLogUnusable as error:
        raise InputError(str(error)) from error


def _check_partitions(logs: Sequence[RecordLog], config: Config) -> None:
    if not logs:
        raise InputError("replay: name at least one record log")
    for log in logs:
        have = log.partitions
        for topic in (config.topics.impressions, config.topics.clicks):
            if topic not in have:
                raise InputError(
                    f"record log {log.path}: has no topic '{topic}', only {sorted(have)}; "
                    "set topics.impressions and topics.clicks"
                )


def _check_late(late: Mapping[Place, int], logs: Sequence[RecordLog], topic: str) -> None:
    """The log must be the record of the worker whose late vectors are followed."""
    if len(logs) != 1 or topic not in logs[0].partitions:
        raise InputError(
            f"--late-vectors: needs one log, and the topic '{topic}' in it: the record of the "
            "worker's broker (`millrace record`)"
        )
    ends = logs[0].last_offsets()
    for place in late:
        tp = TopicPartition(topic, place.partition)
        if place.offset > ends.get(tp, -1):
            raise InputError(
                f"record log {logs[0].path}: {topic}/{place.partition} ends before offset "
                f"{place.offset}, which came late; record again, to a later end"
            )


def _check_positions(log: RecordLog, positions: Sequence[Position]) -> None:
    """The records before the positions must be the ones that were consumed (rule 7)."""
    for p in positions:
        if p.source_id != log.source_id or p.next_offset == 0 or not p.last_hash:
            continue
        record = log.find(p.topic, p.partition, p.next_offset - 1)
        if record is None:
            raise InputError(
                f"record log {log.path}: {p.topic}/{p.partition} ends before offset "
                f"{p.next_offset}, where the snapshot continues; give the whole log"
            )
        if record_hash(record.key, record.value) != p.last_hash:
            raise InputError(
                f"record log {log.path}: {p.topic}/{p.partition}, offset {p.next_offset - 1} is "
                "not the record that the snapshot consumed; the log was changed"
            )
