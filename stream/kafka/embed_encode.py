"""A batch of item events through the embedder: rows, dead letters and counts. Sends nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from embeddings.embedder import Embedder, ItemVectorRow
from embeddings.row_memory import Place
from stream.codec_items import ItemEvent
from stream.columns import Rejected
from stream.item_intake import content_of
from stream.kafka.embed_counts import EmbedCounts
from stream.kafka.embed_queue import Entry
from stream.kafka.embed_sources import EmbedSources
from stream.sequencer import DeadLetter, dead_letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A batch of item events and what came of them; `counts` are of this batch alone."""

    entries: Sequence[Entry]
    rows: Sequence[tuple[Entry, ItemVectorRow]]
    letters: Sequence[DeadLetter]
    counts: EmbedCounts
    seconds: float


class Encoding:
    """Knows the embedder, and which log the item events are of. One thread calls it."""

    def __init__(self, embedder: Embedder, sources: EmbedSources) -> None:
        self._embedder = embedder
        self._logs = [
            xxhash.xxh3_64_intdigest(f"{sources.items_id}/{p} {embedder.form}".encode()) >> 1
            for p in range(sources.items_partitions)
        ]

    def __call__(self, entries: Sequence[Entry]) -> Encoded:
        """What comes of these item events."""
        began = time.perf_counter()
        good = [(e, e.found) for e in entries if isinstance(e.found, ItemEvent)]
        letters = [e.found for e in entries if isinstance(e.found, DeadLetter)]
        places = [Place(self._logs[e.tp.partition], e.offset, e.event) for e, _ in good]
        embedded = self._embedder.embed([content_of(event) for _, event in good], places)
        for index, bad in embedded.rejected:
            entry, event = good[index]
            refused = Rejected(
                record=event.record, index=event.index, detail=bad.detail,
                reason=bad.reason,  # type: ignore[arg-type]  # a word of the wire, from below
            )  # fmt: skip
            letters.append(dead_letter(entry.batch, refused))
        counts = EmbedCounts(
            items=len(good), vectors=len(embedded.rows), unchanged=embedded.unchanged,
            done=embedded.done, rejected=len(letters), refused=self._embedder.refusals(),
        )  # fmt: skip
        for row in embedded.rows:
            setattr(counts, row.made, getattr(counts, row.made) + 1)
        return Encoded(
            entries=entries, rows=[(good[row.index][0], row) for row in embedded.rows],
            letters=letters, counts=counts, seconds=time.perf_counter() - began,
        )  # fmt: skip
