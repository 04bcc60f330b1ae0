"""Item records into the item table: item vectors as they are, items through the embedder. Pure.

Live, every process reads the item-vectors topic; a replay of a log without that topic encodes its
items inline, at their place, by the same pure embedder (rule 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embeddings.embedder import Embedder
from embeddings.item_content import ItemContent
from embeddings.vector_codec import BadVector, decode_item_vector
from stream.codec_items import ItemEvent, decode_items
from stream.columns import Rejected
from stream.item_pending import ItemUpdate
from stream.items import ItemTable, update_of
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
    """Offers item records to item tables; what cannot be used comes back as dead letters.

    Each table gets the vectors of its own encoder version and no other.
    """

    def __init__(
        self, items: ItemTable, embedder: Embedder,
        incoming: tuple[ItemTable, Embedder] | None = None,
    ) -> None:  # fmt: skip
        """`embedder` must be of the version that the table's store holds; so for `incoming`."""
        self._pairs = [(items, embedder), *([incoming] if incoming else [])]
        self._by_version = {table.encoder_version: table for table, _ in self._pairs}
        assert len(self._by_version) == len(self._pairs), "two tables of one encoder version"
        self._items = items
        self.rejected = 0

    def vectors(self, source_id: str, batches: Sequence[RecordBatch]) -> list[DeadLetter]:
        """Take records of the item-vectors topic; those of versions not read here are skipped."""
        letters: list[DeadLetter] = []
        for batch in batches:
            taken: dict[str, list[tuple[int, ItemUpdate]]] = {v: [] for v in self._by_version}
            for record, value in enumerate(batch.values):
                offset = int(batch.offset_n[record])
                if value is None and batch.keys[record] is not None:
                    self._items.counts.tombstones += 1
                    continue
                item = (
                    BadVector(reason="null_value", detail="a record without key and value")
                    if value is None
                    else decode_item_vector(value)
                )
                if isinstance(item, BadVector):
                    letters.append(_letter(batch, record, 0, item.reason, item.detail))
                elif item.encoder not in taken:
                    self._items.counts.other_versions += 1
                else:
                    assert value is not None
                    update = update_of(batch.tp.partition, offset, 0, item, value)
                    taken[item.encoder].append((record, update))
            letters += self._offer(source_id, batch, taken)
        self.rejected += len(letters)
        return letters

    def _offer(
        self, source_id: str, batch: RecordBatch,
        taken: Mapping[str, Sequence[tuple[int, ItemUpdate]]],
    ) -> list[DeadLetter]:  # fmt: skip
        """Offer each table its own records of a batch, and let it move on past all of them."""
        letters = []
        for version, table in self._by_version.items():
            mine = taken[version]
            for refused in table.offer(source_id, [update for _, update in mine]):
                reason = refused.reason
                letters.append(
                    _letter(batch, mine[refused.place][0], 0, reason.reason, reason.detail)
                )
            if len(batch):
                last = ItemUpdate(batch.tp.partition, int(batch.offset_n[-1]), 0, 0, 0, None)
                table.skip(source_id, last)
        return letters

    def items(self, source_id: str, batches: Sequence[RecordBatch]) -> list[DeadLetter]:
        """Take records of the items topic: encode what is new and offer it, for each version."""
        letters: dict[tuple[str, int, int, int], DeadLetter] = {}
        for table, embedder in self._pairs:
            for batch in batches:
                for letter in self._encoded(source_id, batch, table, embedder):
                    letters[(*letter.tp, letter.offset, letter.index)] = letter
        self.rejected += len(letters)
        return list(letters.values())

    def _encoded(
        self, source_id: str, batch: RecordBatch, table: ItemTable, embedder: Embedder
    ) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        events = self._new(source_id, batch, table, letters)
        embedded = embedder.embed([content_of(e) for e in events])
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
        table.offer(source_id, updates)
        return letters

    @staticmethod
    def _new(
        source_id: str, batch: RecordBatch, table: ItemTable, letters: list[DeadLetter]
    ) -> list[ItemEvent]:
        """Items of the batch from the table's position on; bad ones become letters."""
        at = table.next_positions().get(batch.tp.partition)
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
