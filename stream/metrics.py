"""What a running pipeline tells the telemetry seam: spans, durations, counts. Knows no SDK.

Names are those of `stream/metric_table`. Without telemetry nothing is measured.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from infra.telemetry import NO_TELEMETRY, Telemetry, Value
from stream import kernels as k
from stream import metric_table as t
from stream.items import ItemTable
from stream.method_metrics import publish_methods
from stream.pipeline import OnlinePipeline, PipelineReport, Span, no_span
from stream.records import RecordBatch, TopicPartition

_IDS = re.compile(r"^(ids\d+)_(rows|admitted|expired)$")
_IDS_ROWS = {"admitted": t.ADMISSIONS, "expired": t.EVICTIONS}
_CLICK_OUTCOMES = {
    "matched": k.JOINED,
    "late": k.LATE,
    "too_late": k.TOO_LATE_CLICK,
    "duplicate": k.DUPLICATE_CLICK,
    "orphan": k.ORPHAN,
    "organic": k.ORGANIC,
}
_SETTLED = {"clicked": k.POSITIVE, "expired": k.NEGATIVE, "evicted": k.EVICTED_OPEN}


class PipelineProbe:
    """Measures one pipeline. The pipeline's thread calls all of it but `lags`."""

    def __init__(self, telemetry: Telemetry) -> None:
        """`NO_TELEMETRY` makes every call return at once."""
        self._to = telemetry
        self._off = telemetry is NO_TELEMETRY

    @property
    def span(self) -> Span:
        """What the pipeline opens around each of its stages."""
        return no_span if self._off else self._stage

    def process(
        self, batches: Sequence[RecordBatch], work: Callable[[], PipelineReport]
    ) -> PipelineReport:
        """The report of `work`, which takes these batches, in a span of its own."""
        if self._off or not batches:
            return work()
        topic = batches[0].tp.topic
        attributes: dict[str, Value] = {
            t.SYSTEM: "kafka",
            t.OPERATION: "process",
            t.OPERATION_TYPE: "process",
            t.DESTINATION: topic,
            t.MESSAGE_COUNT: sum(len(batch) for batch in batches),
        }
        began = time.perf_counter()
        with self._to.span(f"process {topic}", attributes, kind="consumer") as span:
            report = work()
            span.set(t.EVENT_COUNT, report.events)
            span.set(t.EXAMPLE_COUNT, report.samples)
        self._to.observe(
            t.PROCESS.name,
            time.perf_counter() - began,
            {t.OPERATION: "process", t.DESTINATION: topic},
        )
        for batch in batches:
            self._to.count(t.CONSUMED.name, len(batch), _place(batch.tp))
        self._contents(report)
        return report

    def _contents(self, report: PipelineReport) -> None:
        for predictions in report.predictions:
            found = int(np.count_nonzero(predictions.predicted.has_vector_n))
            missing = len(predictions) - found
            for outcome, n in (("vector", found), ("no_vector", missing)):
                self._to.count(t.CONTENT.name, n, {t.OUTCOME: outcome})

    def updated(self, latency_ms: float) -> None:
        """Samples settled and were learned, so long after their records were sent."""
        self._to.observe(t.SETTLE_TO_UPDATE.name, latency_ms / 1_000)

    def snapshot_taken(self, seconds: float) -> None:
        """The pipeline's thread stood still while the state was copied."""
        self._to.observe(t.SNAPSHOT.name, seconds, {t.PHASE: "stall"})

    def snapshot_durable(self, seconds: float, now_ms: int) -> None:
        """A snapshot is safe, so long after it was taken."""
        self._to.observe(t.SNAPSHOT.name, seconds, {t.PHASE: "write"})
        self._to.gauge(t.SNAPSHOT_DONE.name, now_ms / 1_000)

    def recovered(self, seconds: float) -> None:
        """A pipeline stands, restored from the newest snapshot if there is one."""
        self._to.gauge(t.RECOVERY.name, seconds)

    def lags(self, lags: Mapping[TopicPartition, int | None]) -> None:
        """Records that wait at the broker; None where its end is not known."""
        for tp, lag in lags.items():
            if lag is not None:
                self._to.gauge(t.LAG.name, lag, _place(tp))

    def publish(self, pipeline: OnlinePipeline) -> None:
        """Totals and gauges of the pipeline as it stands, for the next time they are sent."""
        if self._off:
            return
        self._ingest(pipeline)
        self._join(pipeline)
        self._learner(pipeline)
        self._items(pipeline.items)
        if len(pipeline.tables) > 1:
            share = getattr(pipeline.learner, "present_share", 1.0)
            self._to.gauge(t.VERSION_SHARE.name, share)
        for window, recent in (("all", False), ("recent", True)):
            for name, score in pipeline.metrics.scores(recent=recent).items():
                if score is not None and name in t.QUALITY:
                    self._to.gauge(t.QUALITY[name].name, score, {t.WINDOW: window})

    def _ingest(self, pipeline: OnlinePipeline) -> None:
        self._to.total(t.EVENTS.name, pipeline.counts["events"])
        for reason, n in pipeline.rejected_by_reason.items():
            self._to.total(t.REJECTED.name, n, {t.ERROR_TYPE: reason})
        self._to.total(t.CLOCK_JUMPS.name, pipeline.sequencer.clock_jumps)
        for row in pipeline.sequencer.export():
            if row["clock"]:
                place = _place(TopicPartition(row["topic"], row["partition"]))
                self._to.gauge(t.POSITION.name, row["clock"] / 1_000, place)
        self._to.total(t.IDLE_ADVANCES.name, pipeline.sequencer.idle_advances)
        if pipeline.join.clock_ms:
            watermark_ms = pipeline.join.clock_ms - pipeline.plan.config.stream.lateness_ms
            self._to.gauge(t.WATERMARK.name, watermark_ms / 1_000)

    def _join(self, pipeline: OnlinePipeline) -> None:
        join = pipeline.join
        tallies = join.queues.tallies
        for i, label in enumerate(pipeline.plan.config.label):
            for outcome, place in _SETTLED.items():
                attributes = {t.LABEL: label, t.OUTCOME: outcome}
                self._to.total(t.IMPRESSIONS.name, int(tallies[i, place]), attributes)
        for outcome, place in _CLICK_OUTCOMES.items():
            self._to.total(t.CLICKS.name, int(tallies[:, place].sum()), {t.OUTCOME: outcome})
        self._to.gauge(t.OPEN.name, join.scalar(k.OPEN_COUNT))
        self._to.total(t.DUPLICATES.name, join.scalar(k.DUPLICATES))

    def _learner(self, pipeline: OnlinePipeline) -> None:
        counts = pipeline.learner.counts()
        skipped = counts.get("skipped", 0)
        self._to.total(t.EXAMPLES.name, pipeline.ledger.samples - skipped)
        self._to.total(t.NONFINITE.name, skipped)
        for key, n in counts.items():
            if found := _IDS.match(key):
                table, what = found.groups()
                if what == "rows":
                    self._to.gauge(t.ROWS.name, n, {t.TABLE: table})
                else:
                    self._to.total(_IDS_ROWS[what].name, n, {t.TABLE: table})
        publish_methods(self._to, pipeline.learner, counts)

    def _items(self, items: ItemTable) -> None:
        for outcome in ("applied", "late", "rejected"):
            n = getattr(items.counts, outcome)
            self._to.total(t.ITEM_UPDATES.name, n, {t.OUTCOME: outcome})
        self._to.gauge(t.ITEMS_WAITING.name, items.pending)
        self._to.total(t.CACHE_LOOKUPS.name, items.cache.counts.lookups)
        self._to.total(t.CACHE_MISSES.name, items.cache.counts.missed)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with self._to.span(name):
            yield
        if name in t.TIMED_STAGES:
            self._to.observe(t.STEP.name, time.perf_counter() - began, {t.PHASE: name})


def _place(tp: TopicPartition) -> dict[str, str]:
    return {t.DESTINATION: tp.topic, t.PARTITION: str(tp.partition)}
