"""Sends a record log to Kafka: same topics, partitions, order and bytes. Changes no record.

Kafka's timestamp is the wall time of sending (rule 16). Delivery is at least once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from infra.errors import FaultError, InputError
from stream.codec_write import encode_watermark
from stream.kafka.closing import stop_client
from stream.kafka.connection import admin_client
from stream.kafka.event_time import event_time_ms
from stream.kafka.settings import ShellConfig
from stream.kafka.topics import describe
from stream.record_log import RecordLog
from stream.records import RecordBatch, TopicPartition

_BATCH_BYTES = 262_144
_UNDER_WAY_MAX = 32
_CHUNK_RECORDS = 4_096
_PACED_CHUNK_RECORDS = 64

Told = Callable[[int, int], None]
"""Is told (records sent, records in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceOptions:
    """`speed`: event time over wall time, None for as fast as possible.

    `topics`: the log's topics that are sent. `close_ms`: a watermark record that much after the
    last event goes to every partition of impressions and clicks; None for no watermark.
    """

    topics: Collection[str]
    speed: float | None
    close_ms: int | None


def check_partitions(config: ShellConfig, log: RecordLog, topics: Collection[str]) -> None:
    """Raise InputError where the broker's topics are not the log's in number of partitions."""
    wanted = {name: n for name, n in log.partitions.items() if name in topics}
    with admin_client(config.kafka) as admin:
        facts = describe(admin, sorted(wanted))
    for name, n in sorted(wanted.items()):
        if name not in facts:
            raise InputError(f"topic '{name}' does not exist (`millrace topics` creates it)")
        if facts[name].partitions != n:
            raise InputError(
                f"topic '{name}' has {facts[name].partitions} partitions, the log {log.path} has "
                f"{n}: a record must keep its partition; create the topic with {n}, or make the "
                "log again"
            )


async def produce(config: ShellConfig, log: RecordLog, options: ProduceOptions, told: Told) -> int:
    """Number of records sent, watermarks included, once the broker has all of them."""
    producer = AIOKafkaProducer(
        bootstrap_servers=config.kafka.servers,
        client_id="millrace-produce",
        acks="all",
        # Half of the processor time of lz4 here, and the smaller records.
        compression_type="zstd",
        max_batch_size=_BATCH_BYTES,
        max_request_size=config.topics.record_bytes_max + 65_536,
        request_timeout_ms=30_000,
    )
    try:
        await producer.start()
    except KafkaError as error:
        raise FaultError(f"broker {config.kafka.broker}: {error}") from error
    try:
        return await _Sending(producer, options).all_of(log, config.topics.stream, told)
    except KafkaError as error:
        raise FaultError(f"records could not be sent: {error}") from error
    finally:
        await stop_client(producer)


class _Sending:
    """Open batches by partition, and what is on its way."""

    def __init__(self, producer: AIOKafkaProducer, options: ProduceOptions) -> None:
        self._producer, self._options = producer, options
        self._open: dict[TopicPartition, Any] = {}
        self._under_way: deque[asyncio.Future[Any]] = deque()
        self.sent = 0

    async def all_of(self, log: RecordLog, stream: Collection[str], told: Told) -> int:
        """Send what the options ask for."""
        speed = self._options.speed
        chunk = _CHUNK_RECORDS if speed is None else _PACED_CHUNK_RECORDS
        began, first_ms, last_ms, done = time.monotonic(), None, 0, 0
        for batches in log.batches(chunk):
            done += sum(map(len, batches))
            mine = [b for b in batches if b.tp.topic in self._options.topics]
            paced = [b for b in mine if b.tp.topic in stream]
            if paced:
                # Of the events: a record's timestamp is the time of sending in a recorded log.
                times = [t for b in paced for t in map(event_time_ms, b.values) if t is not None]
                start_ms = min(times, default=last_ms)
                last_ms = max(last_ms, *times)
                if first_ms is None:
                    began, first_ms = time.monotonic(), start_ms
                if speed is not None:
                    due_s = (start_ms - first_ms) / 1000 / speed
                    await asyncio.sleep(max(0.0, began + due_s - time.monotonic()))
            for batch in mine:
                await self._append(batch)
            if speed is not None:
                await self._close_all()
            told(done, len(log))
        if self._options.close_ms is not None and last_ms:
            await self._watermarks(log.partitions, stream, last_ms + self._options.close_ms)
        await self._close_all()
        while self._under_way:
            await self._under_way.popleft()
        return self.sent

    async def _append(self, batch: RecordBatch) -> None:
        now_ms = time.time_ns() // 1_000_000
        builder = self._open.get(batch.tp)
        for key, value in zip(batch.keys, batch.values, strict=True):
            if builder is None or builder.append(timestamp=now_ms, key=key, value=value) is None:
                if builder is not None:
                    await self._send(batch.tp, builder)
                builder = self._open[batch.tp] = self._producer.create_batch()
                # The first record of a batch is taken whatever its size.
                builder.append(timestamp=now_ms, key=key, value=value)
        self.sent += len(batch)

    async def _send(self, tp: TopicPartition, builder: Any) -> None:
        builder.close()
        sent = await self._producer.send_batch(builder, tp.topic, partition=tp.partition)
        # The first that fails is raised: nobody waits for the others' reasons.
        sent.add_done_callback(lambda one: one.cancelled() or one.exception())
        self._under_way.append(sent)
        # Those that are done are looked at soon: a slow pace would else go on without a broker.
        while self._under_way and (
            self._under_way[0].done() or len(self._under_way) >= _UNDER_WAY_MAX
        ):
            await self._under_way.popleft()

    async def _close_all(self) -> None:
        for tp, builder in self._open.items():
            await self._send(tp, builder)
        self._open.clear()

    async def _watermarks(
        self, partitions: Mapping[str, int], stream: Collection[str], ts_ms: int
    ) -> None:
        for name in stream:
            for p in range(partitions.get(name, 0)):
                tp, zero = TopicPartition(name, p), np.zeros(1, np.int64)
                await self._append(
                    RecordBatch(
                        tp=tp,
                        offset_n=zero,
                        timestamp_ms_n=zero,
                        keys=[None],
                        values=[encode_watermark(ts_ms)],
                    )
                )
