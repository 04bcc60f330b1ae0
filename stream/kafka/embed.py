"""The embedder process: items in, item vectors out, in a consumer group of its own.

Encodes nothing itself (`embeddings.embedder` does). What it writes is a function of the item alone,
so that reading items twice does no harm: offsets are committed after the vectors have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from embeddings.embedder import Embedder
from infra.errors import FaultError
from stream.codec_items import ItemEvent, decode_items
from stream.codec_write import encode_key
from stream.columns import Rejected
from stream.item_intake import content_of
from stream.kafka.dead_letters import encode_dead_letter
from stream.kafka.record_batch import record_batch
from stream.kafka.settings import ShellConfig
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import DeadLetter, dead_letter

log = logging.getLogger(__name__)

_POLL_MS = 500
_RECORDS_MAX = 2_000
_COMMIT_S = 10.0


@dataclass(slots=True, kw_only=True)
class EmbedCounts:
    """What one run of the embedder did."""

    items: int = 0
    vectors: int = 0
    unchanged: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """Records to send for one batch of items: (key, value), by partition."""

    vectors: list[tuple[bytes, bytes]]
    letters: list[DeadLetter]
    items: int
    unchanged: int


class EmbedWorker:
    """Follows the items topic until told to stop, or until its end."""

    def __init__(self, config: ShellConfig, embedder: Embedder, *, same_partitions: bool) -> None:
        """`same_partitions`: items and item-vectors have equally many, so records keep theirs."""
        self._config, self._embedder, self._same = config, embedder, same_partitions
        self.counts = EmbedCounts()
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask for a graceful end."""
        self._stop.set()

    async def run(self, *, until_end: bool) -> EmbedCounts:
        """Embed until `stop`, or until the end of the topic; raises FaultError."""
        kafka, topics = self._config.kafka, self._config.topics
        consumer = AIOKafkaConsumer(
            topics.items,
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed",
            group_id=f"{kafka.group}-embedder",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            fetch_max_wait_ms=100,
        )
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed",
            acks="all",
            linger_ms=5,
            compression_type="lz4",
            max_request_size=topics.record_bytes_max + 65_536,
        )
        async with contextlib.AsyncExitStack() as stack:
            try:
                for client in (consumer, producer):
                    await client.start()
                    stack.push_async_callback(client.stop)
                await self._follow(consumer, producer, until_end=until_end)
            except KafkaError as error:
                raise FaultError(f"broker {kafka.broker}: {error}") from error
        return self.counts

    async def _follow(
        self, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, *, until_end: bool
    ) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not self._stop.is_set():
                poll = asyncio.create_task(
                    consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
                )
                await asyncio.wait({poll, stopped}, return_when=asyncio.FIRST_COMPLETED)
                fetched = await poll
                for tp, records in sorted(fetched.items()):
                    await self._embed(producer, tp, records)
                if fetched:
                    await self._commit(consumer, fetched)
                elif until_end and await _at_end(consumer):
                    return
        finally:
            stopped.cancel()

    async def _embed(
        self, producer: AIOKafkaProducer, tp: KafkaPartition, records: Sequence[Any]
    ) -> None:
        """Vectors of these records are with the broker when this returns."""
        batch = record_batch(TopicPartition(*tp), records)
        output = await asyncio.to_thread(self._output, batch)
        topics, limit = self._config.topics, self._config.worker.dead_letter_value_bytes_max
        partition = tp.partition if self._same else None
        futures = [
            await producer.send(topics.item_vectors, key=key, value=value, partition=partition)
            for key, value in output.vectors
        ]
        for letter in output.letters:
            key, value = encode_dead_letter(letter, limit)
            futures.append(await producer.send(topics.dead_letters, key=key, value=value))
        if futures:
            await asyncio.gather(*futures)
        self.counts.items += output.items
        self.counts.vectors += len(output.vectors)
        self.counts.unchanged += output.unchanged
        self.counts.rejected += len(output.letters)

    def _output(self, batch: RecordBatch) -> _Output:
        events: list[ItemEvent] = []
        letters: list[DeadLetter] = []
        for found in decode_items(batch):
            if isinstance(found, Rejected):
                letters.append(dead_letter(batch, found))
            else:
                events.append(found)
        embedded = self._embedder.embed([content_of(event) for event in events])
        for index, bad in embedded.rejected:
            event = events[index]
            refused = Rejected(
                record=event.record,
                index=event.index,
                reason=bad.reason,  # type: ignore[arg-type]  # a word of the wire, from below
                detail=bad.detail,
            )
            letters.append(dead_letter(batch, refused))
        return _Output(
            vectors=[(encode_key(row.item_id), row.value) for row in embedded.rows],
            letters=letters,
            items=len(events),
            unchanged=embedded.unchanged,
        )

    async def _commit(
        self, consumer: AIOKafkaConsumer, fetched: Mapping[KafkaPartition, Sequence[Any]]
    ) -> None:
        offsets = {tp: records[-1].offset + 1 for tp, records in fetched.items()}
        try:
            async with asyncio.timeout(_COMMIT_S):
                await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            # Another member has them now, or the broker is away: they are embedded again.
            log.warning("offsets of items were not committed: %s", error or "no answer")


async def _at_end(consumer: AIOKafkaConsumer) -> bool:
    assigned = consumer.assignment()
    if not assigned:
        return False
    ends = await consumer.end_offsets(list(assigned))
    for tp in assigned:
        # The embedded broker's end is that of its last batch's first record.
        if await consumer.position(tp) < max(ends[tp], consumer.highwater(tp) or 0):
            return False
    return True


async def run_embedder(
    config: ShellConfig, embedder: Embedder, *, same_partitions: bool, until_end: bool
) -> EmbedCounts:
    """Run until SIGTERM, SIGINT or, if asked, the end of the topic."""
    worker = EmbedWorker(config, embedder, same_partitions=same_partitions)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    return await worker.run(until_end=until_end)
