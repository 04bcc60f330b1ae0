"""Item records into the item table: item vectors as they are, items through the embedder. Pure.

Live, every process reads the item-vectors topic; a replay of a log without that topic encodes its
items inline, at their place, by the same pure embedder (rule 6).
"""

from __future__ import annotations

from collections.abc import Sequence

from embeddings.embedder import Embedder
from embeddings.item_content import ItemContent
from embeddings.vector_codec import BadVector
from stream.codec_items import ItemEvent, decode_items
from stream.columns import Rejected
from stream.item_pending import ItemUpdate
from stream.items import ItemTable, update_of_value
from stream.keys import key_of
from stream.records import RecordBatch
from stream.sequencer import DeadLetter, dead_letter


def content_of(event: ItemEvent) -> ItemContent:
    """The item of an event, as the encoders know it."""
    body = event.item
    return ItemContent(
        item_id=body.item_id, ts_ms=body.ts_ms, title=body.title, text=body.text,
        image=body.image, attributes=body.attributes, vectors=body.vectors or {},
        deleted=body.deleted,
    )  # fmt: skip


class ItemIntake:
    """Offers item records to an item table; what cannot be used comes back as dead letters."""

    def __init__(self, items: ItemTable, embedder: Embedder) -> None:
        """`embedder` must be of the version that the table's store holds."""
        self._items = items
        self._embedder = embedder
        self.rejected = 0

    def vectors(self, source_id: str, batches: Sequence[RecordBatch]) -> list[DeadLetter]:
        """Take records of the item-vectors topic."""
        updates: list[ItemUpdate] = []
        origins: list[tuple[RecordBatch, int]] = []
        letters: list[DeadLetter] = []
        for batch in batches:
            for record, value in enumerate(batch.values):
                offset = int(batch.offset_n[record])
                update = (
                    BadVector(reason="null_value", detail="a record without value")
                    if value is None
                    else update_of_value(batch.tp.partition, offset, 0, value)
                )
                if isinstance(update, BadVector):
                    letters.append(_letter(batch, record, 0, update.reason, update.detail))
                else:
                    updates.append(update)
                    origins.append((batch, record))
        for refused in self._items.offer(source_id, updates):
            batch, record = origins[refused.place]
            reason = refused.reason
            letters.append(_letter(batch, record, 0, reason.reason, reason.detail))
        self.rejected += len(letters)
        return letters

    def items(self, source_id: str, batches: Sequence[RecordBatch]) -> list[DeadLetter]:
        """Take records of the items topic: encode what is new and offer it."""
        letters: list[DeadLetter] = []
        for batch in batches:
            events = self._new(source_id, batch, letters)
            embedded = self._embedder.embed([content_of(e) for e in events])
            for index, bad in embedded.rejected:
                e = events[index]
                letters.append(_letter(batch, e.record, e.index, bad.reason, bad.detail))
            updates = [
                ItemUpdate(
                    partition=batch.tp.partition,
                    offset=int(batch.offset_n[events[row.index].record]),
                    event_index=events[row.index].index, ts_ms=row.ts_ms,
                    item_key=key_of(row.item_id), value=None if row.deleted else row.value,
                )
                for row in embedded.rows
            ]  # fmt: skip
            self._items.offer(source_id, updates)
        self.rejected += len(letters)
        return letters

    def _new(
        self, source_id: str, batch: RecordBatch, letters: list[DeadLetter]
    ) -> list[ItemEvent]:
        """Items of the batch from the table's position on; bad ones become letters."""
        at = self._items.next_positions().get(batch.tp.partition)
        first = (at.offset, at.event_index) if at and at.source_id == source_id else (-1, 0)
        events = []
        for found in decode_items(batch):
            if (int(batch.offset_n[found.record]), found.index) < first:
                continue
            if isinstance(found, Rejected):
                letters.append(dead_letter(batch, found))
            else:
                events.append(found)
        return events


def _letter(batch: RecordBatch, record: int, index: int, reason: str, detail: str) -> DeadLetter:
    return DeadLetter(
        tp=batch.tp, offset=int(batch.offset_n[record]), index=index, reason=str(reason),
        detail=detail, key=batch.keys[record], value=batch.values[record],
    )  # fmt: skip
