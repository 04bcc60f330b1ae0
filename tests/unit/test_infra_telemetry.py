import threading

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from infra.broker_process import free_port
from infra.otel import ENDPOINT_VARIABLE, SERIES_MAX, OtelTelemetry, connect
from infra.telemetry import NO_TELEMETRY, Metric, TelemetryConfig
from tests.support.otlp_receiver import OtlpReceiver

METRICS = (
    Metric(name="m.events", kind="counter", unit="{event}", description="Events."),
    Metric(name="m.open", kind="updown", unit="{window}", description="Open windows."),
    Metric(name="m.lag", kind="gauge", unit="{message}", description="Lag."),
    Metric(name="m.step", kind="histogram", unit="s", description="Step.", buckets=(0.1, 1, 10)),
)


@pytest.fixture(autouse=True)
def no_configured_receiver(monkeypatch):
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)


class Memory:
    def __init__(self, **options):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.telemetry = OtelTelemetry(
            METRICS,
            processor=SimpleSpanProcessor(self.exporter),
            reader=self.reader,
            service="test",
            version="1",
            **options,
        )

    def metrics(self):
        data = self.reader.get_metrics_data()
        scopes = [s for r in data.resource_metrics for s in r.scope_metrics]
        return {m.name: m for s in scopes for m in s.metrics}

    def points(self, name):
        return {tuple(p.attributes.items()): p.value for p in self.metrics()[name].data.data_points}


@pytest.fixture
def memory():
    memory = Memory()
    yield memory
    memory.telemetry.close()


def test_counts_are_summed_by_attributes_and_read_when_sent(memory):
    memory.telemetry.count("m.events", 2, {"topic": "a", "partition": 1})
    memory.telemetry.count("m.events", 3, {"partition": 1, "topic": "a"})
    memory.telemetry.count("m.events", attributes={"topic": "b"})
    assert memory.points("m.events") == {
        (("partition", 1), ("topic", "a")): 5,
        (("topic", "b"),): 1,
    }


def test_totals_and_gauges_are_replaced(memory):
    for value in (7, 5):
        memory.telemetry.gauge("m.lag", value)
        memory.telemetry.gauge("m.open", value)
    for value in (7, 9):
        memory.telemetry.total("m.events", value)
    assert memory.points("m.lag") == {(): 5}
    assert memory.points("m.open") == {(): 5}
    assert memory.points("m.events") == {(): 9}


def test_histograms_have_the_buckets_of_the_table(memory):
    for value in (0.05, 0.5, 100, float("nan")):
        memory.telemetry.observe("m.step", value, {"phase": "forward"})
    point = memory.metrics()["m.step"].data.data_points[0]
    assert tuple(point.explicit_bounds) == (0.1, 1, 10)
    assert list(point.bucket_counts) == [1, 1, 0, 1]
    assert memory.metrics()["m.step"].unit == "s"


def test_unknown_names_and_wrong_kinds_are_our_mistake(memory):
    with pytest.raises(KeyError):
        memory.telemetry.count("m.unknown")
    with pytest.raises(AssertionError):
        memory.telemetry.gauge("m.events", 1)


def test_series_are_bounded(memory):
    for i in range(SERIES_MAX + 50):
        memory.telemetry.count("m.events", 1, {"user": i})
    memory.telemetry.count("m.events", 1, {"user": 0})
    points = memory.points("m.events")
    assert len(points) == SERIES_MAX
    assert points[("user", 0),] == 2


def test_spans_nest_and_carry_attributes_and_kind(memory):
    with (
        memory.telemetry.span("process impressions", {"n": 3}, kind="consumer"),
        memory.telemetry.span("join") as inner,
    ):
        inner.set("closed", 4)
    join, process = memory.exporter.get_finished_spans()
    assert (join.name, dict(join.attributes)) == ("join", {"closed": 4})
    assert (process.kind, dict(process.attributes)) == (SpanKind.CONSUMER, {"n": 3})
    assert join.parent.span_id == process.context.span_id


def test_an_exception_is_recorded_and_goes_on(memory):
    with pytest.raises(ValueError, match="boom"), memory.telemetry.span("join"):
        raise ValueError("boom")
    (span,) = memory.exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "ValueError"
    assert span.events[0].name == "exception"


def test_a_traceparent_given_on_links_to_its_span(memory):
    with memory.telemetry.span("send", kind="producer"):
        header = memory.telemetry.traceparent()
    assert memory.telemetry.traceparent() is None
    with memory.telemetry.span("process", links=[header, "junk", *[header] * 20]):
        pass
    send, process = memory.exporter.get_finished_spans()
    assert len(process.links) == 15
    assert process.links[0].context.span_id == send.context.span_id


def test_sampling_leaves_spans_out():
    memory = Memory(sample_ratio=0)
    with memory.telemetry.span("join"):
        pass
    memory.telemetry.close()
    assert memory.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"unit": "1"}, "unit '1'"),
        ({"unit": "ms"}, "unit 'ms'"),
        ({"buckets": (1.0,)}, "only that, has buckets"),
        ({"kind": "histogram", "buckets": ()}, "only that, has buckets"),
        ({"kind": "histogram", "buckets": (2.0, 1.0)}, "buckets must rise"),
    ),
)
def test_a_metric_that_receivers_disagree_on_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Metric(**({"name": "x", "kind": "gauge", "unit": "s", "description": "X."} | options))


@pytest.mark.parametrize(
    "options", ({"endpoint": "localhost"}, {"sample_ratio": 2}, {"interval_s": 0})
)
def test_a_configuration_that_cannot_work_is_refused(options):
    with pytest.raises(ValueError, match=r"must"):
        TelemetryConfig(**options)


def test_without_a_receiver_there_is_neither_thread_nor_work(monkeypatch):
    before = threading.active_count()
    assert connect(TelemetryConfig(), METRICS, service="t", version="1") is NO_TELEMETRY
    monkeypatch.setenv(ENDPOINT_VARIABLE, "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert connect(TelemetryConfig(), METRICS, service="t", version="1") is NO_TELEMETRY
    assert threading.active_count() == before
    with NO_TELEMETRY.span("x", {"a": 1}, links=["y"]) as span:
        span.set("b", 2)
    NO_TELEMETRY.count("anything")
    NO_TELEMETRY.total("anything", 1)
    NO_TELEMETRY.gauge("anything", 1)
    NO_TELEMETRY.observe("anything", 1)
    assert NO_TELEMETRY.traceparent() is None
    NO_TELEMETRY.close()


@pytest.mark.parametrize("by_variable", (False, True))
def test_a_real_receiver_gets_every_span_and_the_last_counts(monkeypatch, by_variable):
    before = threading.active_count()
    with OtlpReceiver() as receiver:
        if by_variable:
            monkeypatch.setenv(ENDPOINT_VARIABLE, receiver.endpoint)
        config = TelemetryConfig(endpoint="" if by_variable else receiver.endpoint, interval_s=60)
        telemetry = connect(config, METRICS, service="millrace-worker", version="9")
        for i in range(1500):
            with telemetry.span("process", {"i": i}):
                telemetry.count("m.events", 2, {"topic": "a"})
        telemetry.observe("m.step", 0.5)
        telemetry.close()
        assert {s.attributes[0].value.int_value for s in receiver.spans()} == set(range(1500))
        metrics = receiver.metrics()
        assert metrics["m.events"].sum.data_points[0].as_int == 3000
        assert list(metrics["m.step"].histogram.data_points[0].explicit_bounds) == [0.1, 1, 10]
        for resource in receiver.resources():
            assert resource["service.name"] == "millrace-worker"
            assert resource["service.version"] == "9"
    assert threading.active_count() == before


def test_a_receiver_that_is_away_does_not_keep_the_process_from_ending():
    before = threading.active_count()
    config = TelemetryConfig(endpoint=f"http://127.0.0.1:{free_port()}", timeout_s=0.5)
    telemetry = connect(config, METRICS, service="t", version="1")
    with telemetry.span("x"):
        pass
    telemetry.close()
    assert threading.active_count() == before
