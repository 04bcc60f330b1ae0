"""OnlinePipeline: records in, a report out; the whole state in between (pure).

decode, sequence, join, batch, assemble, predict, learn. Knows no clock, socket, file or global;
`now_ms` is used for nothing but the report. Replay and worker run this same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.batch import MiniBatch
from learners.learner import Learner
from stream import kernels as k
from stream.assemble import Assembler
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.columns import EventKind
from stream.event_keys import Chunk, EventKeys
from stream.feature_plan import FeaturePlan
from stream.items import ItemTable
from stream.join import JoinState
from stream.keys import ints_of_keys, key_of_str
from stream.ledger import Ledger
from stream.partition_clock import ClockLimits
from stream.positions import Position
from stream.prediction_memory import Predicted, PredictionMemory
from stream.predictions import Predictions, field_reader
from stream.progressive import ProgressiveMetrics
from stream.records import RecordBatch, TopicPartition
from stream.samples import Samples
from stream.sequencer import DeadLetter, Released, Sequencer

UNKNOWN_FIELDS_MAX = 1_000

Span = Callable[[str], AbstractContextManager[Any]]


def no_span(name: str) -> AbstractContextManager[None]:
    """The span that measures nothing."""
    del name
    return nullcontext()


@dataclass(slots=True, kw_only=True)
class PipelineReport:
    """What one `process` did: rows released, samples learned, predictions, dead letters."""

    now_ms: int
    events: int = 0
    samples: int = 0
    steps: int = 0
    predictions: list[Predictions] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    clock_ms: int = 0


class OnlinePipeline:
    """The stages, wired once. One thread calls all of it."""

    def __init__(
        self,
        plan: FeaturePlan,
        learner: Learner,
        items: ItemTable,
        *,
        span: Span = no_span,
        on_device: bool = False,
        arms: int = 1,
        incoming: ItemTable | None = None,
    ) -> None:
        """Empty state; `assign` says which partitions there are.

        `on_device`: the learner's weights are not in this process's memory, but on a GPU. `arms`:
        logits a row, of learners side by side; live metrics are those of the first. `incoming`:
        vectors of another encoder version, read beside those of `items`.
        """
        stream, topics = plan.config.stream, plan.config.topics
        self.plan, self.learner, self.items = plan, learner, items
        self.tables: tuple[ItemTable, ...] = (items,) if incoming is None else (items, incoming)
        self._span = span
        self._impressions = ImpressionDecoder(plan.impression_spec)
        self._clicks = ClickDecoder(plan.click_spec)
        self._topics = {topics.impressions: 0, topics.clicks: 1}
        limits = ClockLimits(max_jump_ms=stream.max_jump_ms, max_future_ms=stream.max_future_ms)
        self.sequencer = Sequencer(limits=limits, buffered_max=stream.buffered_max)
        self.join = JoinState(plan.shape, plan.params())
        self.predicted = PredictionMemory(arms)
        self.weights_ms = 0
        self._keys = EventKeys(plan, items)
        self._assembler = Assembler(plan, items, compact=on_device, incoming=incoming)
        self.ledger = Ledger()
        self.metrics = ProgressiveMetrics()
        self.counts: dict[str, int] = {
            "events": 0, "rejected": 0, "steps": 0, "unknown_click_kinds": 0
        }  # fmt: skip
        self.rejected_by_reason: dict[str, int] = {}
        self.unknown_fields: dict[str, int] = {}
        self._fields = {name: field_reader(plan, name) for name in plan.config.report.fields}
        self._started = False
        self._evicted = 0

    def assign(self, positions: Sequence[Position]) -> None:
        """Take partitions on, at their positions; those held already stay as they are."""
        self.sequencer.assign(self._topics, positions)

    def wants(self) -> frozenset[TopicPartition]:
        """Partitions whose records may be fetched now."""
        return self.sequencer.wants()

    def positions(self) -> Mapping[TopicPartition, Position]:
        """How far each partition has been released and processed."""
        return self.sequencer.positions()

    @property
    def topics(self) -> Mapping[str, int]:
        """The topics that are sequenced, with their rank."""
        return self._topics

    def rebase(self, positions: Sequence[Position]) -> None:
        """Continue with another source: positions restart, clocks and state go on (rule 7)."""
        self.sequencer.rebase(positions)

    def drop(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions that no longer exist; state that came of them stays."""
        self.sequencer.drop(partitions)

    def mark_finished(self, partitions: Iterable[TopicPartition]) -> None:
        """Replay only: these partitions of the present source bring no more records."""
        for tp in partitions:
            self.sequencer.finish(tp)

    def drain(self) -> PipelineReport:
        """Replay only: the source has ended, so everything buffered is released."""
        self.mark_finished(self.sequencer.partitions)
        return self.process([], 0)

    def finish(self) -> PipelineReport:
        """Replay only: close all windows, as the watermark records of `produce` do live."""
        report = self.drain()
        clock = self.join.clock_ms
        if clock:
            stream = self.plan.config.stream
            rest = self.plan.config.window_ms + stream.lateness_ms + stream.linger_ms + 1
            last = max(clock, self.join.last_settle_ms - self.plan.config.window_ms)
            self._tick(last + rest, report)
        report.clock_ms = self.join.clock_ms
        return report

    def process(
        self,
        batches: Sequence[RecordBatch],
        now_ms: int,
        *,
        finished: Iterable[TopicPartition] = (),
    ) -> PipelineReport:
        """Take records of any partitions and do all that they allow.

        `finished` partitions bring no more records after these (replay only).
        """
        report = PipelineReport(now_ms=now_ms)
        with self._span("decode"):
            for batch in batches:
                self._push(batch)
        self.mark_finished(finished)
        with self._span("sequence"):
            released = self.sequencer.release()
        if released is not None:
            self._run(released, report)
        report.clock_ms = self.join.clock_ms
        return report

    def idle(
        self, silent: Sequence[TopicPartition], elapsed_ms: int, now_ms: int
    ) -> PipelineReport:
        """Live only: silent partitions no longer hold others back (rule 2).

        When all are silent, event time goes on by `elapsed_ms`. Each advance is counted. A stream
        that has not begun is not idle: leaving partitions out now would order its first events
        by their arrival.
        """
        report = PipelineReport(now_ms=now_ms)
        if not self.join.clock_ms and not self.sequencer.buffered:
            return report
        all_silent = set(silent) >= set(self.sequencer.partitions)
        advanced = self.sequencer.set_idle(silent)
        released = self.sequencer.release()
        if released is not None:
            self._run(released, report)
        elif all_silent and self.join.clock_ms:
            self._tick(self.join.clock_ms + elapsed_ms, report)
            advanced = True
        self.sequencer.idle_advances += advanced
        report.clock_ms = self.join.clock_ms
        return report

    def _push(self, batch: RecordBatch) -> None:
        decoder = self._impressions if self._topics[batch.tp.topic] == 0 else self._clicks
        columns = decoder.decode(batch)
        for name, n in columns.unknown_fields.items():
            if name not in self.unknown_fields and len(self.unknown_fields) >= UNKNOWN_FIELDS_MAX:
                continue
            self.unknown_fields[name] = self.unknown_fields.get(name, 0) + n
        self.sequencer.push(batch, columns)

    def _run(self, released: Released, report: PipelineReport) -> None:
        if not self._started and released.clock_n[-1] > 0:
            # Rejected records before the first event have no time of their own.
            first_ms = int(released.clock_n[np.argmax(released.clock_n > 0)])
            for table in self.tables:
                table.apply_until(first_ms)
            self._started = True
        for letter in released.rejected:
            self._reject(letter, report)
        unknown = (released.click_kind_n < 0) & np.isin(
            released.kind_n, (EventKind.CLICK, EventKind.ORGANIC)
        )
        self.counts["unknown_click_kinds"] += int(np.count_nonzero(unknown))
        verdicts = self._events(self._keys.chunk(released), report)
        for i in np.flatnonzero(verdicts == k.TOO_LATE):
            detail = f"ts_ms {released.ts_ms_n[i]} is below the floor of the duplicate memory"
            self._reject(released.dead_letter(int(i), "too_late", detail), report)

    def _reject(self, letter: DeadLetter, report: PipelineReport) -> None:
        report.dead_letters.append(letter)
        if letter.reason != "too_late":
            self.counts["rejected"] += 1
        n = self.rejected_by_reason.get(letter.reason, 0)
        self.rejected_by_reason[letter.reason] = n + 1

    def _events(self, chunk: Chunk, report: PipelineReport) -> NDArray[np.uint8]:
        """Run the join over a chunk, with a learn step wherever a batch closes."""
        n = len(chunk.events.kind)
        start, size = 0, self.plan.config.stream.max_slice_events
        if chunk.names is not None:
            self._note_names(chunk)
        while start < n:
            stop = min(n, start + size)
            self.join.reserve(stop - start)
            while start < stop:
                with self._span("join"):
                    start, status = self.join.advance(chunk.events, start, stop, chunk.shown)
                if status == k.BATCH:
                    version = self.items.version
                    self._step(report)
                    if self.items.version != version:
                        self._keys.refresh(chunk, start)
        self._forget_names(chunk)
        self.counts["events"] += n
        report.events += n
        return chunk.events.verdict

    def _tick(self, clock_ms: int, report: PipelineReport) -> None:
        """Let event time alone go on; no event is counted."""
        self._events(self._keys.tick(clock_ms), report)
        self.counts["events"] -= 1
        report.events -= 1

    def _note_names(self, chunk: Chunk) -> None:
        """Keep string ids while their impressions are open: keys do not give them back."""
        rows = np.flatnonzero(chunk.events.kind == EventKind.IMPRESSION)
        keys = chunk.events.key[rows].tolist()
        for key, m in zip(keys, chunk.events.row[rows].tolist(), strict=True):
            name = chunk.names[m] if chunk.names is not None else None
            if name is not None:
                self.join.names.setdefault(key, name)

    def _forget_names(self, chunk: Chunk) -> None:
        if self.join.names and self.join.scalar(k.EVICTED) != self._evicted:
            self._evicted = self.join.scalar(k.EVICTED)
            self.join.drop_names_of_closed()
        if chunk.names is None:
            return
        unused = chunk.events.verdict != k.OK
        for key in chunk.events.key[unused].tolist():
            if key in self.join.names and not self.join.is_open(key):
                del self.join.names[key]

    def _step(self, report: PipelineReport) -> None:
        """One learn step: item updates, predictions of what was shown since the last, learning."""
        for table in self.tables:
            table.apply_until(self.join.clock_ms)
        stream = self.plan.config.stream
        if stream.predict_at == "impression":
            self._predict()
        else:
            self.join.fresh()
        slots = self.join.out()
        with self._span("assemble"):
            samples = self.join.samples(slots, settled=True)
            batch = self._assembler.batch(samples)
        with self._span("train_step"):
            step = self.learner.learn_many(batch)
        if stream.predict_at == "settle":
            logits = step.logits_B.detach().cpu().numpy().reshape(len(slots), -1)
            self._keep(slots, logits, batch)
        settled_ms = int(samples.ts_ms_n.max()) + self.plan.config.window_ms
        self.weights_ms = max(self.weights_ms, settled_ms)
        predicted = self.predicted.get(slots)
        labels = batch.labels_BK.numpy()
        report.predictions.append(self._predictions(samples, batch, predicted))
        report.samples += len(samples)
        report.steps += 1
        self.counts["steps"] += 1
        self.ledger.add(samples.key_n, labels)
        self.metrics.add(predicted.logit_nA[:, 0], labels[:, self.plan.spec.trained_column])
        self.join.free(slots)

    def _predict(self) -> None:
        """Predict all impressions released since the last step, with the weights as they are."""
        slots = self.join.fresh()
        size = 4 * self.plan.config.stream.batch_size
        for first in range(0, len(slots), size):
            part = slots[first : first + size]
            with self._span("predict"):
                batch = self._assembler.prediction_batch(self.join.samples(part))
                logits = self.learner.predict_many(batch).cpu().numpy()
                self._keep(part, logits.reshape(len(part), -1), batch)

    def _keep(self, slots: NDArray[np.int64], logit_nA: NDArray[Any], batch: MiniBatch) -> None:
        missing = batch.content.missing_B.numpy() if batch.content else np.ones(len(slots), bool)
        self.predicted.put(slots, logit_nA, self.counts["steps"], self.weights_ms, ~missing)

    def predict(self, batch: MiniBatch) -> NDArray[np.float32]:
        """Logits of a `prediction_batch` by the weights as they are, float32 [n, arms]."""
        logits: NDArray[np.float32] = self.learner.predict_many(batch).cpu().numpy()
        return logits.reshape(len(batch), -1)

    def prediction_batch(self, samples: Samples) -> MiniBatch:
        """What the learner predicts of: one row a sample, without labels."""
        return self._assembler.prediction_batch(samples)

    def _predictions(self, s: Samples, batch: MiniBatch, predicted: Predicted) -> Predictions:
        n = len(s)
        lengths = s.history_len_n or (np.zeros(n, np.int64),)
        names = [self.join.names.get(key) for key in s.key_n.tolist()] if self.join.names else None
        return Predictions(
            request_n=s.request_n, item_n=s.item_n, user_n=s.user_n, ts_ms_n=s.ts_ms_n,
            labels_nK=batch.labels_BK.numpy(), predicted=predicted, names=names,
            history_len_n=np.sum(lengths, axis=0),
            fields={name: read(batch) for name, read in self._fields.items()},
        )  # fmt: skip

    def field_names(self) -> dict[int, str]:
        """Texts behind the values of reported fields, as far as they are still remembered."""
        if not self._fields:
            return {}
        texts = [*self._impressions.texts(), *self.items.texts()]
        keys = np.array([key_of_str(text) for text in texts], np.int64)
        return dict(zip(ints_of_keys(keys).tolist(), texts, strict=True))

    def export_full(self) -> list[Part]:
        """The whole state as parts; between two calls of `process` it is a consistent cut."""
        meta = {
            "sequencer": self.sequencer.export(), "counts": dict(self.counts),
            "rejected_by_reason": dict(self.rejected_by_reason),
            "unknown_fields": dict(self.unknown_fields), "ledger": self.ledger.to_map(),
            "clock_jumps": self.sequencer.clock_jumps,
            "idle_advances": self.sequencer.idle_advances, "started": self._started,
            "weights_ms": self.weights_ms,
        }  # fmt: skip
        return [
            Part(name="pipeline", part_class="train", meta=meta),
            *self.join.export_full(),
            self.predicted.export(self.join.slots_in_use()),
            *(part for table in self.tables for part in table.export_full()),
            *self.metrics.export_full(),
            *self.learner.export_full(),
        ]

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the state of parts; continues bit for bit where `export_full` was called."""
        meta = parts["pipeline"].meta
        self.sequencer.restore(meta["sequencer"])
        self.sequencer.clock_jumps = meta["clock_jumps"]
        self.sequencer.idle_advances = meta["idle_advances"]
        self.counts = dict(meta["counts"])
        self.rejected_by_reason = dict(meta["rejected_by_reason"])
        self.unknown_fields = dict(meta["unknown_fields"])
        self.ledger = Ledger.from_map(meta["ledger"])
        self._started = meta["started"]
        self.weights_ms = meta["weights_ms"]
        self.predicted.apply(parts)
        self.join.apply(parts)
        self.items.apply(parts)
        for table in self.tables[1:]:
            # A version that comes in now has no part yet: it is read from the beginning.
            if table.part_name in parts:
                table.apply(parts)
        self.metrics.apply(parts)
        self.learner.apply(parts)
