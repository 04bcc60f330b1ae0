"""The seam to whatever takes metrics and spans; without one, nothing happens. Knows no SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

Value = str | bool | int | float
Attributes = Mapping[str, Value]
MetricKind = Literal["counter", "updown", "gauge", "histogram"]
SpanKind = Literal["internal", "server", "client", "producer", "consumer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What is measured: a row of the table of all metrics.

    `unit` by UCUM: `s`, `By`, `{event}`. Times are seconds. `buckets` are the upper bounds of a
    histogram, and of nothing else.
    """

    name: str
    kind: MetricKind
    unit: str
    description: str
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is named differently by different receivers."""
        if self.unit in {"1", "", "ms"}:
            # A gauge of unit 1 is renamed to …_ratio on one of two ways out; ms are no base unit.
            raise ValueError(
                f"metric '{self.name}': unit '{self.unit}': expected s, By or {{word}}"
            )
        if bool(self.buckets) != (self.kind == "histogram"):
            raise ValueError(f"metric '{self.name}': a histogram, and only that, has buckets")
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"metric '{self.name}': buckets must rise")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """Where and how often. Off while neither `endpoint` nor the standard variable is set.

    `endpoint`: the receiver's root, such as http://localhost:4318. `sample_ratio`: the share of
    traces kept; a caller's decision to sample is followed.
    """

    endpoint: str = ""
    interval_s: float = 10
    sample_ratio: float = 1
    timeout_s: float = 5

    def __post_init__(self) -> None:
        """Check what types cannot."""
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must start with http:// or https://, got {self.endpoint}")
        if not 0 <= self.sample_ratio <= 1:
            raise ValueError(f"sample_ratio must lie in 0..1, got {self.sample_ratio}")
        if min(self.interval_s, self.timeout_s) <= 0:
            raise ValueError("interval_s and timeout_s must be positive")


class Span(Protocol):
    """A stretch of work under way."""

    def set(self, name: str, value: Value) -> None:
        """Set an attribute."""
        ...


class Telemetry(Protocol):
    """Where measurements go. Metrics are named as in the table it was made with.

    Counts and gauges are kept as plain numbers and read only when they are sent; a histogram's
    observation costs some microseconds: once per batch, never per event.
    """

    def count(self, name: str, value: float = 1, attributes: Attributes | None = None) -> None:
        """Add to a counter."""
        ...

    def total(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Set a counter to a running total that is kept elsewhere."""
        ...

    def gauge(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Set a gauge or an up-down counter."""
        ...

    def observe(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Add one observation to a histogram."""
        ...

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        links: Sequence[str] = (),
    ) -> AbstractContextManager[Span]:
        """A span around a `with` block; an exception is recorded and goes on.

        `links` are W3C `traceparent` values; what is not one is ignored, and so is all beyond the
        sixteenth.
        """
        ...

    def traceparent(self) -> str | None:
        """The current span as a W3C `traceparent`, for a message's header; None outside of one."""
        ...

    def close(self) -> None:
        """Send what is there, in bounded time, and end all threads."""
        ...


class NoSpan:
    """The span of nothing."""

    def set(self, name: str, value: Value) -> None:
        """Nothing."""


class NoTelemetry:
    """Takes everything, keeps nothing, starts no thread."""

    def count(self, name: str, value: float = 1, attributes: Attributes | None = None) -> None:
        """Nothing."""

    def total(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Nothing."""

    def gauge(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Nothing."""

    def observe(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """Nothing."""

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        links: Sequence[str] = (),
    ) -> AbstractContextManager[Span]:
        """A block around which nothing is measured."""
        return _NOTHING

    def traceparent(self) -> str | None:
        """None."""
        return None

    def close(self) -> None:
        """Nothing."""


_NOTHING: AbstractContextManager[Span] = nullcontext(NoSpan())
NO_TELEMETRY: Telemetry = NoTelemetry()
