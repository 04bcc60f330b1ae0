"""The telemetry seam on OpenTelemetry's SDK, sent by OTLP/HTTP. Defines no metric and no span."""

from __future__ import annotations

import math
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from infra.telemetry import (
    NO_TELEMETRY,
    Attributes,
    Metric,
    Span,
    SpanKind,
    Telemetry,
    TelemetryConfig,
    Value,
)

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
LINKS_MAX = 16
SERIES_MAX = 1000
_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}

Series = tuple[tuple[str, Value], ...]


def connect(
    config: TelemetryConfig, metrics: Sequence[Metric], *, service: str, version: str
) -> Telemetry:
    """Telemetry that sends by OTLP/HTTP, or one that does nothing where no receiver is named."""
    root = (config.endpoint or os.environ.get(ENDPOINT_VARIABLE, "")).rstrip("/")
    if not root or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NO_TELEMETRY
    spans = OTLPSpanExporter(endpoint=f"{root}/v1/traces", timeout=config.timeout_s)
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{root}/v1/metrics", timeout=config.timeout_s),
        export_interval_millis=config.interval_s * 1000,
        export_timeout_millis=config.timeout_s * 1000,
    )
    return OtelTelemetry(
        metrics,
        processor=BatchSpanProcessor(spans, export_timeout_millis=config.timeout_s * 1000),
        reader=reader,
        service=service,
        version=version,
        sample_ratio=config.sample_ratio,
    )


class OtelTelemetry:
    """The SDK behind the seam. Sets no global provider, so that several can live in one process."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        *,
        processor: SpanProcessor,
        reader: MetricReader,
        service: str,
        version: str,
        sample_ratio: float = 1,
    ) -> None:
        """Create the instruments of `metrics`; `processor` and `reader` send."""
        resource = Resource.create(
            {
                "service.name": service,
                "service.version": version,
                "service.instance.id": uuid.uuid4().hex,
            }
        )
        self._tracers = TracerProvider(
            resource=resource,
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            shutdown_on_exit=False,
        )
        self._tracers.add_span_processor(processor)
        self._tracer = self._tracers.get_tracer("millrace", version)
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._lock = threading.Lock()
        # What is counted, until it is read: (metric, attributes) -> number.
        self._values: dict[str, dict[Series, float]] = {}
        self._kinds: dict[str, str] = {metric.name: metric.kind for metric in metrics}
        self._histograms: dict[str, Histogram] = {}
        assert len(self._kinds) == len(metrics), "metric names must differ"
        self._create(metrics, version)

    def count(self, name: str, value: float = 1, attributes: Attributes | None = None) -> None:
        """Add to a counter."""
        assert self._kinds[name] == "counter", name
        with self._lock:
            values, series = self._values[name], _series(attributes)
            self._keep(values, series, values.get(series, 0) + value)

    def total(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Set a counter to a running total that is kept elsewhere."""
        assert self._kinds[name] == "counter", name
        with self._lock:
            self._keep(self._values[name], _series(attributes), value)

    def gauge(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Set a gauge or an up-down counter."""
        assert self._kinds[name] in {"gauge", "updown"}, name
        with self._lock:
            self._keep(self._values[name], _series(attributes), value)

    def observe(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Add one observation to a histogram; what is not a number is left out."""
        if math.isfinite(value):
            self._histograms[name].record(value, attributes)

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        links: Sequence[str] = (),
    ) -> AbstractContextManager[Span]:
        """A span around a `with` block; an exception is recorded and goes on."""
        return self._span(name, attributes, kind, links)

    def traceparent(self) -> str | None:
        """The current span as a W3C `traceparent`; None outside of one."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Send what is there, in bounded time, and end all threads."""
        self._tracers.shutdown()
        self._meters.shutdown()

    @contextmanager
    def _span(
        self, name: str, attributes: Attributes | None, kind: SpanKind, links: Sequence[str]
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, kind=_KINDS[kind], attributes=attributes, links=_links(links)
        ) as span:
            try:
                yield _OtelSpan(span)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                raise

    def _create(self, metrics: Sequence[Metric], version: str) -> None:
        meter = self._meters.get_meter("millrace", version)
        for metric in metrics:
            name, unit, text = metric.name, metric.unit, metric.description
            if metric.kind == "histogram":
                self._histograms[name] = meter.create_histogram(
                    name, unit, text, explicit_bucket_boundaries_advisory=metric.buckets
                )
                continue
            self._values[name] = {}
            create: Callable[..., object] = {
                "counter": meter.create_observable_counter,
                "updown": meter.create_observable_up_down_counter,
                "gauge": meter.create_observable_gauge,
            }[metric.kind]
            create(name, callbacks=[self._reading(name)], unit=unit, description=text)

    def _reading(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                pairs = list(self._values[name].items())
            return [Observation(value, dict(series)) for series, value in pairs]

        return read

    def _keep(self, values: dict[Series, float], series: Series, value: float) -> None:
        # One series too many means that an attribute takes too many values: it is not worth an
        # error in production, but it must not grow without end either.
        if (series in values or len(values) < SERIES_MAX) and math.isfinite(value):
            values[series] = value


class _OtelSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set(self, name: str, value: Value) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)


def _series(attributes: Attributes | None) -> Series:
    return tuple(sorted(attributes.items())) if attributes else ()


def _links(traceparents: Sequence[str]) -> list[trace.Link]:
    links = []
    for text in traceparents[:LINKS_MAX]:
        context = trace.get_current_span(
            _PROPAGATOR.extract({"traceparent": text})
        ).get_span_context()
        if context.is_valid:
            links.append(trace.Link(context))
    return links
