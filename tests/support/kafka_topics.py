"""Topics and records of tests: made through kafka-python, so not by what is tested."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic


def unique(name: str) -> str:
    """A name that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def make_topics(broker: str, topics: dict[str, int], **configs: str) -> None:
    """Create topics with these partition counts."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.create_topics(
            [
                NewTopic(name=name, num_partitions=n, replication_factor=1, topic_configs=configs)
                for name, n in topics.items()
            ]
        )
        admin.wait_for_topics(list(topics), timeout_ms=60_000)
    finally:
        admin.close()


Record = tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]


def send(
    broker: str, topic: str, records: Iterable[Record], *, compression: str | None = None
) -> int:
    """Send (partition, key, value, headers); returns their number once all have arrived."""
    producer = KafkaProducer(
        bootstrap_servers=broker,
        compression_type=compression,
        linger_ms=5,
        enable_idempotence=False,
        acks=1,
    )
    try:
        futures = [
            producer.send(topic, value=value, key=key, headers=list(headers), partition=partition)
            for partition, key, value, headers in records
        ]
        producer.flush(timeout=60)
        for future in futures:
            future.get(timeout=10)
    finally:
        producer.close()
    return len(futures)


def send_in_transaction(broker: str, topic: str, records: Iterable[Record]) -> None:
    """Send in one transaction: behind the records stands its marker, which has an offset too."""
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=unique("t"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for partition, key, value, headers in records:
            producer.send(topic, value=value, key=key, headers=list(headers), partition=partition)
        producer.commit_transaction()
    finally:
        producer.close()


def send_numbers(broker: str, topic: str, partitions: int, each: int) -> None:
    """`each` records of 100 bytes to each partition."""
    filler = b"x" * 90
    send(
        broker,
        topic,
        ((p, b"k", b"%d:" % i + filler, ()) for i in range(each) for p in range(partitions)),
    )
