"""What every importer is told, and what it says afterwards. Reads and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stream.events import EVENTS_PER_ENVELOPE_MAX

Progress = Callable[[int], None]
"""Hears of the number of records written so far."""


def unheard(_: int) -> None:
    """Nobody listens to progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Partitions of each topic, events in a row envelope (1: single events), span of impressions.

    `to_ms` 0: no end.
    """

    partitions: int = 4
    envelope: int = 1
    from_ms: int = 0
    to_ms: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.partitions < 1:
            raise ValueError(f"partitions must be at least 1, got {self.partitions}")
        if not 1 <= self.envelope <= EVENTS_PER_ENVELOPE_MAX:
            raise ValueError(
                f"envelope must be 1 to {EVENTS_PER_ENVELOPE_MAX}, got {self.envelope}"
            )
        if self.to_ms and self.from_ms >= self.to_ms:
            raise ValueError("the span of impressions is empty: its start must lie before its end")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportCounts:
    """Events written by kind, records by topic, and the log's identity.

    `impressions` counts items shown, not requests.
    """

    impressions: int
    clicks: int
    organic: int
    items: int
    records: Mapping[str, int]
    source_id: str
