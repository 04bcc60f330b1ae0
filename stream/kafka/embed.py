"""The embedder process: items in, item vectors out, in a consumer group of its own.

Fetching, encoding and sending go on side by side, with bounded queues between them. Encodes nothing
itself (`embeddings.embedder` does). Offsets are committed after the vectors have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import xxhash
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from embeddings.embedder import Embedder
from infra.errors import FaultError, InputError
from infra.telemetry import NO_TELEMETRY, Telemetry
from stream.kafka.closing import stop_clients, unless_stopped
from stream.kafka.embed_counts import EmbedCounts, EmbedProbe
from stream.kafka.embed_encode import Encoded, Encoding
from stream.kafka.embed_memory import TopicMemory
from stream.kafka.embed_queue import ItemQueue, entries_of
from stream.kafka.embed_reader import MemoryReader
from stream.kafka.embed_send import Sender
from stream.kafka.embed_sources import EmbedSources
from stream.kafka.record_batch import record_batch
from stream.kafka.settings import ShellConfig
from stream.kafka.topic_watch import EVERY_S, TopicWatch, ask_logs
from stream.records import TopicPartition

log = logging.getLogger(__name__)

_POLL_MS: Final = 500
_RECORDS_MAX: Final = 500
_COMMIT_S: Final = 10.0
_FINAL_COMMIT_S: Final = 3.0
_SETTLE_S: Final = 5.0
"""After a stop, for the batch in hand and the broker's answers; what is left is made again."""
_COMMIT_EVERY_S: Final = 0.2
_FIRST_BATCH: Final = 32
_BATCH_S: Final = 0.5
"""Of work in one batch: rows should not wait longer for others, nor a stop for its end."""
_UNREAD_MAX: Final = 20_000
"""Rows that were sent and not read back, beyond which encoding waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """When to end, and from where to read.

    `until_end`: end when all items are embedded that are there. `backfill`: all items from the
    beginning on, whatever was committed, to the end as of the start. `told` is told records done,
    records in all, and items done. `watch_every_s`: between two looks whether the topics are still
    the same ones.
    """

    until_end: bool = False
    backfill: bool = False
    told: Callable[[int, int, int], None] = lambda _done, _total, _items: None
    watch_every_s: float = EVERY_S
    telemetry: Telemetry = NO_TELEMETRY


def embedder_group(group: str, version: str) -> str:
    """The consumer group of the embedders of one version: those of two never share partitions."""
    return f"{group}-embedder-{xxhash.xxh3_64_hexdigest(version.encode())[:8]}"


class EmbedWorker:
    """Follows the items topic until told to stop, or until its end."""

    def __init__(
        self, config: ShellConfig, embedder: Embedder, sources: EmbedSources, options: EmbedOptions
    ) -> None:
        self._config, self._embedder = config, embedder
        self._sources, self._options = sources, options
        self.counts = EmbedCounts()
        self._probe = EmbedProbe(options.telemetry)
        self._stop = asyncio.Event()
        self._queue = ItemQueue(
            items_max=config.embed.queue_items_max, bytes_max=config.embed.queue_bytes_max
        )
        self._thread = ThreadPoolExecutor(1, "encode")
        self._encoding = Encoding(embedder, sources)
        self._taken = 0  # entries that were taken from the queue and are not done
        self._idle = asyncio.Event()
        self._idle.set()
        self._watch = TopicWatch(
            sources.logs(config.topics), partial(ask_logs, config.kafka),
            every_s=options.watch_every_s,
        )  # fmt: skip
        self._joined = asyncio.Event()
        self._is_member = False
        self._done_to: dict[KafkaPartition, int] = {}
        self._to_commit = asyncio.Event()
        self._starts: dict[KafkaPartition, int] = {}
        self._ends: dict[KafkaPartition, int] = {}

    def stop(self) -> None:
        """Ask for a graceful end."""
        self._stop.set()

    async def run(self) -> EmbedCounts:
        """Embed until `stop`, or as the options say; raises FaultError, InputError."""
        async with contextlib.AsyncExitStack() as stack:
            folder = self._config.embed.state or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="millrace-embed-")
            )
            topic = self._config.topics.item_vectors
            memory = TopicMemory(
                Path(folder) / "rows", topic, self._sources.vectors_id, self._embedder.version
            )
            stack.callback(memory.close)
            # A batch in hand still asks the memory.
            stack.callback(self._thread.shutdown, wait=True, cancel_futures=True)
            self._embedder.remember_in(memory)
            try:
                if await unless_stopped(self._stop, self._connect(stack, memory)):
                    await self._follow()
            except (KafkaError, ExceptionGroup) as failed:
                error = _first(failed)
                if isinstance(error, KafkaError):
                    raise FaultError(f"broker {self._config.kafka.broker}: {error}") from error
                raise error from None
        return self.counts

    async def _connect(self, stack: contextlib.AsyncExitStack, memory: TopicMemory) -> None:
        kafka, topics = self._config.kafka, self._config.topics
        partitions = self._sources.vectors_partitions
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed",
            group_id=embedder_group(kafka.group, self._embedder.version),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            fetch_max_wait_ms=100,
        )
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed",
            acks="all",
            linger_ms=5,
            compression_type="lz4",
            max_request_size=topics.record_bytes_max + 65_536,
        )
        self._sender = Sender(
            self._producer, self._config, memory, done=self._done,
            same_partitions=self._sources.items_partitions == partitions,
        )  # fmt: skip
        self._reader = MemoryReader(
            kafka, topics.item_vectors, partitions, memory, send_again=self._sender.send_again
        )
        clients: tuple[Any, ...] = (self._reader, self._consumer, self._producer)
        stack.push_async_callback(stop_clients, *clients)
        for client in clients:
            await client.start()
        self._consumer.subscribe([topics.items], listener=_Listener(self))

    # Fetching

    async def _follow(self) -> None:
        """Run all parts until the end; what is encoded by then is sent and committed."""
        async with asyncio.TaskGroup() as group:
            running = (
                self._reader.run(), self._sender.run(), self._commits(), self._watch.run()
            )  # fmt: skip
            parts = [group.create_task(part) for part in running]
            encoding = group.create_task(self._encode())
            await self._fetch()
            if self._stop.is_set():
                await self._queue.clear()
            await self._queue.close()
            await self._settle(group.create_task(self._rest(encoding)))
            for part in parts:
                part.cancel()
        if self._options.backfill and not self._stop.is_set():
            self._done_to = dict(self._ends)
        if not self._options.backfill or not self._stop.is_set():
            await self._commit()

    async def _rest(self, encoding: asyncio.Task[None]) -> None:
        """The queue's rest is encoded, and the broker has it."""
        await encoding
        await self._sender.settled()

    async def _settle(self, rest: asyncio.Task[None]) -> None:
        """Wait for the rest; after a stop only for a while, as the broker may be away."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({rest, stopped}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({rest}, timeout=_SETTLE_S)
        finally:
            stopped.cancel()
        if not rest.done():
            rest.cancel()
            log.warning(
                "stopped with %d item events under way that the broker did not take in %g s: they "
                "are looked at again at the next start", self._taken, _SETTLE_S,
            )  # fmt: skip

    async def _fetch(self) -> None:
        """Fill the queue until the end, pausing while it is full."""
        stopped = asyncio.create_task(self._stop.wait())
        try:
            while not self._stop.is_set():
                room = asyncio.create_task(self._queue.room())
                await asyncio.wait({room, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not room.done():
                    room.cancel()
                    return
                poll = asyncio.create_task(
                    self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
                )
                await asyncio.wait({poll, stopped}, return_when=asyncio.FIRST_COMPLETED)
                fetched = await poll
                if self._joined.is_set():
                    self._joined.clear()
                    if not await unless_stopped(self._stop, self._begin()):
                        return
                    if self._options.backfill:
                        continue  # what was fetched is not from the beginning
                for tp, records in sorted(fetched.items()):
                    if tp in self._consumer.assignment():
                        await self._queue.put(
                            entries_of(record_batch(TopicPartition(*tp), records))
                        )
                if not fetched and await self._at_end():
                    return
        finally:
            stopped.cancel()

    async def _begin(self) -> None:
        """The group has divided: know first what the former owners have written."""
        await self._reader.caught_up()
        assigned = self._consumer.assignment()
        log.warning("embedding %d of %d partitions", len(assigned), self._sources.items_partitions)
        if not self._options.backfill:
            return
        if len(assigned) < self._sources.items_partitions:
            raise InputError(
                f"--backfill: got {len(assigned)} of {self._sources.items_partitions} partitions "
                f"of '{self._config.topics.items}': another embedder of group "
                f"'{self._config.kafka.group}' runs; stop it for so long"
            )
        self._starts = await self._consumer.beginning_offsets(list(assigned))
        self._ends = self._ends or await self._consumer.end_offsets(list(assigned))
        await self._consumer.seek_to_beginning(*assigned)

    async def _at_end(self) -> bool:
        """Whether all is done that was asked for."""
        if not (self._options.until_end or self._options.backfill):
            return False
        if not self._is_member or len(self._queue) or not self._idle.is_set():
            return False
        assigned = self._consumer.assignment()  # none where others have them all
        ends = self._ends or await self._consumer.end_offsets(list(assigned))
        for tp in assigned:
            # The embedded broker's end is that of its last batch's first record.
            high = 0 if self._options.backfill else self._consumer.highwater(tp) or 0
            if await self._consumer.position(tp) < max(ends[tp], high):
                return False
        return True

    async def give_up(self, revoked: Collection[KafkaPartition]) -> None:
        """Partitions go to another member: it gets all that is encoded, and committed."""
        self._is_member = False
        await self._queue.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.kafka.rebalance_timeout_s / 2):
                await self._idle.wait()
        if revoked and not self._options.backfill:
            await self._commit()
        self._done_to.clear()

    def joined(self) -> None:
        """The group has divided the partitions; there may be none for this member."""
        self._is_member = True
        self._joined.set()

    # Encoding

    async def _encode(self) -> None:
        """Encode what is there, again and again, until the queue is closed."""
        loop = asyncio.get_running_loop()
        most = self._config.embed.batch_items
        limit = min(most, _FIRST_BATCH)
        while entries := await self._queue.take(limit):
            self._taken += len(entries)
            self._idle.clear()
            await self._reader.until(lambda memory: memory.under_way < _UNREAD_MAX)
            batch = await loop.run_in_executor(self._thread, self._encoding, entries)
            self._probe.encoded(len(entries), batch.seconds)
            if batch.counts.encoded:
                fit = int(_BATCH_S * batch.counts.encoded / max(batch.seconds, 1e-6))
                limit = max(1, min(fit, 2 * limit, most))
            await self._sender.send(batch)

    # What the broker has

    async def _done(self, batch: Encoded) -> None:
        self.counts.add(batch.counts)
        for entry in batch.entries:
            if entry.is_last:
                self._done_to[KafkaPartition(*entry.tp)] = entry.offset + 1
        self._taken -= len(batch.entries)
        if not self._taken:
            self._idle.set()
        self._to_commit.set()
        self._probe.written([entry.timestamp_ms for entry, _ in batch.rows])
        self._probe.totals(self.counts, len(self._queue))
        if self._options.backfill:
            total = sum(self._ends[tp] - self._starts[tp] for tp in self._ends)
            done = sum(min(to, self._ends.get(tp, 0)) - self._starts.get(tp, 0)
                       for tp, to in self._done_to.items())  # fmt: skip
            self._options.told(min(done, total), total, self.counts.items)

    async def _commits(self) -> None:
        """Commit what is done, now and then, until cancelled."""
        while True:
            await self._to_commit.wait()
            self._to_commit.clear()
            if not self._options.backfill:
                await self._commit()
            await asyncio.sleep(_COMMIT_EVERY_S)

    async def _commit(self) -> None:
        mine = self._consumer.assignment()
        offsets = {tp: offset for tp, offset in self._done_to.items() if tp in mine}
        if not offsets:
            return
        try:
            async with asyncio.timeout(_FINAL_COMMIT_S if self._stop.is_set() else _COMMIT_S):
                await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            # Another member has them now, or the broker is away: they are looked at again.
            log.warning("offsets of items were not committed: %s", str(error) or "no answer")


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    def __init__(self, worker: EmbedWorker) -> None:
        self._worker = worker

    async def on_partitions_revoked(self, revoked: Collection[KafkaPartition]) -> None:
        """Before the group divides the partitions anew."""
        await self._worker.give_up(revoked)

    def on_partitions_assigned(self, _assigned: Collection[KafkaPartition]) -> None:
        """After it did."""
        self._worker.joined()


def _first(error: Exception) -> Exception:
    """The first error of a group of errors."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def run_embedder(
    config: ShellConfig, embedder: Embedder, sources: EmbedSources, options: EmbedOptions
) -> EmbedCounts:
    """Run until SIGTERM, SIGINT or, if asked, the end of the topic."""
    worker = EmbedWorker(config, embedder, sources, options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    return await worker.run()
