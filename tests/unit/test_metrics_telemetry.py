import re
import threading
import time

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanProto

from infra import config as loader
from infra.otel import ENDPOINT_VARIABLE, connect
from infra.telemetry import NO_TELEMETRY, NoTelemetry, TelemetryConfig
from stream import metric_table as t
from stream.config import Config
from stream.kafka.embed_counts import EmbedCounts, EmbedProbe
from stream.kafka.engine import engine_maker
from stream.method_metrics import FIGURES
from stream.metrics import PipelineProbe
from stream.pipeline import PipelineReport, no_span
from stream.positions import Position
from stream.records import TopicPartition
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.streams import SMALL, T0, click, impression, record_batch, watermark

IMPRESSIONS, CLICKS = TopicPartition("impressions", 0), TopicPartition("clicks", 0)
# Their stage does not come up in the run below: no tables in this learner.
ABSENT = {t.ROWS.name, t.ADMISSIONS.name, t.EVICTIONS.name}
# Nor methods, nor a second version of vectors: test_method_metrics.
ABSENT |= {figure.row.name for figure in FIGURES.values()}
ABSENT |= {t.METHOD_LOSS.name, t.VERSION_SHARE.name}


@pytest.fixture(autouse=True)
def no_configured_receiver(monkeypatch):
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)


def batches():
    shown = [impression(i, i % 3, 100 * i, [i % 4], tab=1) for i in range(12)]
    clicked = [click(i % 3, i % 4, 100 * i + 50, "click", i) for i in range(0, 12, 3)]
    end = watermark(30_000)
    return [
        record_batch(IMPRESSIONS, 0, [*shown, (b"k", b"not an event"), end]),
        record_batch(CLICKS, 0, [*clicked, end]),
    ]


def run_engine(folder, telemetry):
    config = loader.build(Config, SMALL | {"items": {"dim": 4}})
    make = engine_maker(config, folder, predictions=False, note=print, telemetry=telemetry)
    engine = make([IMPRESSIONS, CLICKS])
    try:
        pipeline = engine.pipeline
        pipeline.assign(
            {tp: Position(source_id="s", topic=tp.topic, partition=0) for tp in engine_partitions()}
        )
        learned = sum(pipeline.process([batch], 0).samples for batch in batches())
        engine.checkpoints.final()
        pipeline.status()
    finally:
        engine.checkpoints.close()
    return learned


def engine_partitions():
    return IMPRESSIONS, CLICKS


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    with OtlpReceiver() as receiver:
        config = TelemetryConfig(endpoint=receiver.endpoint, interval_s=60)
        telemetry = connect(config, t.METRICS, service="millrace-worker", version="1")
        try:
            PipelineProbe(telemetry).lags({IMPRESSIONS: 7, CLICKS: None})
            learned = run_engine(tmp_path_factory.mktemp("worker"), telemetry)
            tell_of_an_embedder(telemetry)
        finally:
            telemetry.close()
        yield receiver, learned


def tell_of_an_embedder(telemetry):
    probe, counts = EmbedProbe(telemetry), EmbedCounts()
    for refused in ({"no_file": 1}, {"no_file": 1, "broken": 2}):
        counts.add(EmbedCounts(items=3, vectors=2, encoded=1, reused=1, done=1, refused=refused))
        probe.encoded(3, 0.2)
        probe.written([0, int(time.time() * 1_000)])
        probe.totals(counts, 5)


def points(metric):
    data = getattr(metric, metric.WhichOneof("data"))
    return list(data.data_points)


def value(point):
    return getattr(point, point.WhichOneof("value"))


def attributes(carrier):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in carrier.attributes}


def by(receiver, row, *names):
    found = receiver.metrics()[row.name]
    return {tuple(attributes(p)[n] for n in names): value(p) for p in points(found)}


KINDS = {"counter": "sum", "updown": "sum", "gauge": "gauge", "histogram": "histogram"}


def test_every_metric_of_the_table_arrives_as_the_table_says(received):
    metrics = received[0].metrics()
    assert set(metrics) == {row.name for row in t.TABLE_OF_METRICS} - ABSENT
    for row in t.TABLE_OF_METRICS:
        if row.name in ABSENT:
            continue
        metric = metrics[row.name]
        assert (metric.unit, metric.description) == (row.metric.unit, row.metric.description)
        assert metric.WhichOneof("data") == KINDS[row.metric.kind], row.name
        if row.metric.kind in {"counter", "updown"}:
            assert metric.sum.is_monotonic == (row.metric.kind == "counter"), row.name
        assert points(metric), row.name
        for point in points(metric):
            assert set(attributes(point)) == set(row.attributes), row.name
            if row.metric.kind == "histogram":
                assert tuple(point.explicit_bounds) == row.metric.buckets
                assert point.count >= 1


def test_the_numbers_are_those_of_the_run(received):
    receiver, learned = received
    assert learned == 12
    assert by(receiver, t.EXAMPLES) == {(): 12}
    assert by(receiver, t.CONSUMED, t.DESTINATION) == {("impressions",): 14, ("clicks",): 5}
    settled = by(receiver, t.IMPRESSIONS, t.LABEL, t.OUTCOME)
    assert settled["click", "clicked"] == 4
    assert settled["click", "expired"] == 8
    assert by(receiver, t.CLICKS, t.OUTCOME)["matched",] == 4
    assert by(receiver, t.OPEN) == {(): 0}
    assert by(receiver, t.CONTENT, t.OUTCOME) == {("vector",): 0, ("no_vector",): 12}
    assert by(receiver, t.LAG, t.DESTINATION, t.PARTITION) == {("impressions", "0"): 7}
    assert sum(by(receiver, t.REJECTED, t.ERROR_TYPE).values()) == 1
    assert by(receiver, t.POSITION, t.DESTINATION)["impressions",] == (T0 + 30_000) / 1_000
    assert by(receiver, t.POSITIVE_RATE, t.WINDOW)["all",] == pytest.approx(4 / 12)


def test_the_embedder_tells_what_became_of_items(received):
    receiver, _ = received
    items = by(receiver, t.EMBED_ITEMS, t.OUTCOME)
    assert {outcome: n for (outcome,), n in items.items() if n} == {
        "encoded": 2, "reused": 2, "done": 2
    }  # fmt: skip
    assert by(receiver, t.EMBED_REFUSED, t.ERROR_TYPE) == {("no_file",): 1, ("broken",): 2}
    assert by(receiver, t.EMBED_WAITING) == {(): 5}
    (latency,) = points(receiver.metrics()[t.EMBED_LATENCY.name])
    assert (latency.count, latency.bucket_counts[-1]) == (4, 2)
    (batch,) = points(receiver.metrics()[t.EMBED_BATCH_ITEMS.name])
    assert (batch.count, batch.sum) == (2, 6)


def test_spans_nest_by_batch_and_carry_their_attributes(received):
    spans = received[0].spans()
    roots = {span.name: span for span in spans if not span.parent_span_id}
    assert set(roots) == {"process impressions", "process clicks"}
    assert {span.name for span in spans if span.parent_span_id} == set(t.STAGES)
    ids = {span.span_id for span in roots.values()}
    assert all(span.parent_span_id in ids for span in spans if span.parent_span_id)
    last = roots["process clicks"]
    assert last.kind == SpanProto.SPAN_KIND_CONSUMER
    assert attributes(last) == {
        t.SYSTEM: "kafka",
        t.OPERATION: "process",
        t.OPERATION_TYPE: "process",
        t.DESTINATION: "clicks",
        t.MESSAGE_COUNT: 5,
        t.EVENT_COUNT: 18,
        t.EXAMPLE_COUNT: 12,
    }


def test_without_telemetry_nothing_is_measured_and_no_thread_starts(tmp_path):
    before = set(threading.enumerate())
    telemetry = connect(TelemetryConfig(), t.METRICS, service="s", version="1")
    assert telemetry is NO_TELEMETRY
    assert run_engine(tmp_path, telemetry) == 12
    assert set(threading.enumerate()) <= before, "a thread was started"
    assert PipelineProbe(telemetry).span is no_span


def test_a_probe_of_nothing_hands_the_report_through():
    class Refusing(NoTelemetry):
        def span(self, *_, **__):
            raise AssertionError("measured")

    report = PipelineReport(now_ms=1)
    assert PipelineProbe(NO_TELEMETRY).process(batches(), lambda: report) is report
    # A call without records has no topic to name its span after.
    assert PipelineProbe(Refusing()).process([], lambda: report) is report


@pytest.mark.parametrize("row", t.TABLE_OF_METRICS, ids=lambda row: row.name)
def test_rows_follow_the_naming_rules(row):
    assert re.fullmatch(r"(ranker|messaging)(\.[a-z][a-z0-9_]*)+", row.name)
    assert row.metric.unit == "s" or re.fullmatch(r"\{[a-z]+\}", row.metric.unit)
    assert row.metric.description.endswith(".")
    assert not re.search(r"user|item_id|request", " ".join(row.attributes))
    if row.name.endswith((".duration", ".timestamp")):
        assert row.metric.unit == "s"


def test_names_differ():
    names = [row.name for row in t.TABLE_OF_METRICS]
    assert len(set(names)) == len(names)
    rows = [value for value in vars(t).values() if isinstance(value, t.Row)]
    assert len(rows) == len(names), "a row is missing in the table"
