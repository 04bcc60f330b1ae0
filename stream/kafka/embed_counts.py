"""What the embedder did: counts, and what it tells the telemetry seam. Encodes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.telemetry import NO_TELEMETRY, Telemetry
from stream import metric_table as t

_TOLD = ("encoded", "reused", "supplied", "deleted", "unchanged", "done", "rejected")


@dataclass(slots=True, kw_only=True)
class EmbedCounts:
    """What one run did with so many `items`; of them `vectors` rows were written.

    Rows: `encoded`, `reused` (only attributes changed), `supplied` (the sender's vector),
    `deleted`. No row: `unchanged`, `done` (written before a restart), `rejected` (dead letters).
    `refused`: pictures and the like that could not be used, by reason; the rest of the item was.
    """

    items: int = 0
    vectors: int = 0
    encoded: int = 0
    reused: int = 0
    supplied: int = 0
    deleted: int = 0
    unchanged: int = 0
    done: int = 0
    rejected: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def add(self, more: EmbedCounts) -> None:
        """Add a batch; its `refused` are totals since the start and replace those before."""
        for name in ("items", "vectors", *_TOLD):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.refused = dict(more.refused)

    def to_map(self) -> dict[str, Any]:
        """All counts by name."""
        return asdict(self)

    def text(self) -> str:
        """One line for a person; what never happened is left out, but for the first four."""
        words = [
            f"{self.items:,} items", f"{self.vectors:,} vectors written",
            f"{self.unchanged:,} unchanged", f"{self.rejected:,} rejected",
        ]  # fmt: skip
        more = {"encoded": self.encoded, "with the vector they had": self.reused,
                "with the sender's vector": self.supplied, "deleted": self.deleted,
                "written before": self.done}  # fmt: skip
        words += [f"{n:,} {name}" for name, n in more.items() if n]
        words += [f"{n:,} refused as {reason}" for reason, n in sorted(self.refused.items())]
        return ", ".join(words)


class EmbedProbe:
    """Sends the embedder's counts and times. Called from the event loop alone."""

    def __init__(self, telemetry: Telemetry) -> None:
        """`NO_TELEMETRY` makes every call return at once."""
        self._to = telemetry
        self._off = telemetry is NO_TELEMETRY

    def encoded(self, items: int, seconds: float) -> None:
        """A batch of so many items went through the encoders."""
        if not self._off:
            self._to.observe(t.EMBED_BATCH.name, seconds)
            self._to.observe(t.EMBED_BATCH_ITEMS.name, items)

    def written(self, sent_ms: Sequence[int]) -> None:
        """The broker has the rows of item events that were sent at these times."""
        if self._off:
            return
        now_ms = time.time_ns() // 1_000_000
        for ms in sent_ms:
            self._to.observe(t.EMBED_LATENCY.name, max(0, now_ms - ms) / 1_000)

    def totals(self, counts: EmbedCounts, waiting: int) -> None:
        """Running totals and what waits."""
        if self._off:
            return
        for outcome in _TOLD:
            self._to.total(t.EMBED_ITEMS.name, getattr(counts, outcome), {t.OUTCOME: outcome})
        for reason, n in counts.refused.items():
            self._to.total(t.EMBED_REFUSED.name, n, {t.ERROR_TYPE: reason})
        self._to.gauge(t.EMBED_WAITING.name, waiting)
