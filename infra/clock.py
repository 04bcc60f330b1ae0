"""The wall clock as a seam. The pipeline's own clock is event time and never comes from here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What time it is, for latency figures, idle detection and file stamps only."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some moment; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


@dataclass(slots=True)
class FixedClock:
    """A clock that moves only when told to, for tests and for output that must not vary."""

    time_ms: int = 0

    def now_ms(self) -> int:
        """The time it was set to."""
        return self.time_ms

    def monotonic_s(self) -> float:
        """The same, in seconds."""
        return self.time_ms / 1000

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass."""
        assert ms >= 0, ms
        self.time_ms += ms
