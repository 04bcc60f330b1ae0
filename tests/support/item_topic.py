"""Items for a topic and what is on item-vectors, read by another library than what is tested."""

from __future__ import annotations

import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from embeddings.vector_codec import ItemVector, decode_item_vector
from stream.codec_write import encode_event, encode_key, item_body
from tests.support.kafka_topics import send


def rows_of(broker: str, topic: str, partitions: int) -> list[ItemVector]:
    """All rows on the topic, each partition's in its order."""
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest")
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        rows: list[ItemVector] = []
        deadline = time.monotonic() + 30
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            assert time.monotonic() < deadline, "the topic was not read within 30 s"
            for records in consumer.poll(200).values():
                for one in records:
                    row = decode_item_vector(one.value)
                    assert isinstance(row, ItemVector), row
                    rows.append(row)
    finally:
        consumer.close()
    return rows


def by_item(rows: list[ItemVector]) -> dict[int | str, list[ItemVector]]:
    """Rows by item, in their order."""
    found: dict[int | str, list[ItemVector]] = {}
    for one in rows:
        found.setdefault(one.item_id, []).append(one)
    return found


def send_items(broker: str, topic: str, partitions: int, items: list[dict[str, Any]]) -> None:
    """Item events in their order, each to its id's partition; `image` and the like included."""
    send(
        broker,
        topic,
        [
            (body["item_id"] % partitions, encode_key(body["item_id"]), _event(body), ())
            for body in items
        ],
    )


def _event(body: dict[str, Any]) -> bytes:
    return encode_event("item", item_body(**body))
