"""Record batches of the items topic to Item events; off the hot path, one event at a time.

Knows nothing of item vectors' bytes: `embeddings.vector_codec` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from stream.codec_salvage import TopicTypes, salvage
from stream.codec_write import encode_key
from stream.columns import Reason, Rejected
from stream.events import (
    EVENTS_PER_ENVELOPE_MAX,
    ID_BYTES_MAX,
    TIME_MAX_MS,
    TIME_MIN_MS,
    VALUE_BYTES_MAX,
    Item,
    ItemBody,
    Items,
)
from stream.records import RecordBatch

MAX_FUTURE_MS: Final = 3_600_000


_DECODER: Final = msgspec.msgpack.Decoder(Item | Items)
_TYPES: Final = TopicTypes(single="item", envelope="items", body=ItemBody, others={})


@dataclass(frozen=True, slots=True)
class ItemEvent:
    """An item and its place: record in the batch, index in the envelope."""

    record: int
    index: int
    item: ItemBody


def decode_items(
    batch: RecordBatch, max_future_ms: int = MAX_FUTURE_MS
) -> list[ItemEvent | Rejected]:
    """All items of the batch in (record, index) order, bad ones as Rejected; never raises."""
    return [
        one if isinstance(one, Rejected) else _checked(one, batch, max_future_ms)
        for record, value in enumerate(batch.values)
        for one in _of_record(value, record)
    ]


def _of_record(value: bytes | None, record: int) -> list[ItemEvent | Rejected]:
    if value is not None and len(value) <= VALUE_BYTES_MAX:
        try:
            message = _DECODER.decode(value)
        except (ValueError, RecursionError, MemoryError):
            pass  # diagnosed below
        else:
            bodies = [message] if isinstance(message, Item) else message.events
            return [ItemEvent(record, index, body) for index, body in enumerate(bodies)]
    salvaged = salvage(
        value,
        record,
        types=_TYPES,
        value_bytes_max=VALUE_BYTES_MAX,
        events_max=EVENTS_PER_ENVELOPE_MAX,
    )
    found: list[ItemEvent | Rejected] = [
        ItemEvent(record, index, body) for index, body in salvaged.bodies
    ]
    return sorted(found + list(salvaged.rejected), key=lambda one: one.index)


def _checked(event: ItemEvent, batch: RecordBatch, max_future_ms: int) -> ItemEvent | Rejected:
    item, key = event.item, batch.keys[event.record]
    stamp = int(batch.timestamp_ms_n[event.record])
    reason, detail = None, ""
    if isinstance(item.item_id, str) and len(item.item_id.encode()) > ID_BYTES_MAX:
        reason, detail = Reason.BAD_ID, f"item_id: over {ID_BYTES_MAX} bytes"
    elif not TIME_MIN_MS <= item.ts_ms < TIME_MAX_MS:
        reason, detail = Reason.BAD_TIME, f"ts_ms: got {item.ts_ms}"
    elif stamp > 0 and item.ts_ms - stamp > max_future_ms:
        detail = f"ts_ms {item.ts_ms}: over {max_future_ms} ms ahead of its record's {stamp}"
        reason = Reason.FUTURE_TIME
    elif key is not None and encode_key(item.item_id) != key:
        reason, detail = Reason.KEY_MISMATCH, f"record key {key[:64]!r} is not its id"
    elif not isinstance(item.image, (bytes, str, type(None))):
        got = type(item.image).__name__
        reason, detail = Reason.WRONG_TYPE, f"image: expected bytes or a URI, got {got}"
    if reason is None:
        return event
    return Rejected(record=event.record, index=event.index, reason=reason, detail=detail)
