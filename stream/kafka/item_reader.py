"""Reads item-vectors, outside of the consumer group: all partitions, in a thread of its own.

Decodes nothing; hands record batches over and waits while the pipeline has no room for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition

from infra.errors import FaultError
from stream.item_pending import ItemPosition
from stream.kafka.closing import stop_client
from stream.kafka.record_batch import record_batch
from stream.kafka.settings import KafkaConfig
from stream.records import RecordBatch, TopicPartition

_POLL_MS = 200
_ROOM_LOOK_S = 0.05
_RECORDS_MAX = 2_000

Offer = Callable[[str, Sequence[RecordBatch]], bool]
"""Takes batches of a source; returns whether more may come. Blocks while they are worked on."""


class ItemReader:
    """A thread that follows the topic from `starts` on.

    `ready` is set once everything has been read that was there at the start, or when the pipeline
    has no room for more: then the rest is of later than the next events anyway. `next_offset` tells
    how far it has come. An error ends the thread and is given to `on_error`.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        partitions: int,
        *,
        source_id: str,
        starts: Mapping[int, ItemPosition],
        offer: Offer,
        has_room: Callable[[], bool],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._kafka = kafka
        self._source_id = source_id
        self._tps = [KafkaPartition(topic, p) for p in range(partitions)]
        # A position of another log says nothing about this one: that is read from its beginning.
        self._starts = {p: at.offset for p, at in starts.items() if at.source_id == source_id}
        self._offer, self._has_room, self._on_error = offer, has_room, on_error
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="item-reader", daemon=True)
        self.ready = threading.Event()
        self.next_offset: dict[int, int] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end and wait for it, at most so long."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:  # noqa: BLE001 - it is handed to the worker, which ends
            if not self._stopping.is_set():
                self._on_error(error)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._kafka.servers,
            client_id="millrace-items",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
        )
        await consumer.start()
        try:
            ends = await self._seek(consumer)
            while not self._stopping.is_set():
                self._tell_ready(consumer, ends)
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
                room = not fetched or await self._hand_over(fetched)
                for tp in self._tps:  # markers and removed tombstones end a topic, too
                    at = await consumer.position(tp)
                    self.next_offset[tp.partition] = max(self.next_offset[tp.partition], at)
                if not room:
                    self.ready.set()
                    await self._wait_for_room()
        finally:
            await stop_client(consumer)

    async def _seek(self, consumer: AIOKafkaConsumer) -> dict[int, int]:
        """Seek to the starts; returns the ends of the partitions as of now."""
        consumer.assign(self._tps)
        first = await consumer.beginning_offsets(self._tps)
        ends = await consumer.end_offsets(self._tps)
        for tp in self._tps:
            start = self._starts.get(tp.partition, 0)
            # The embedded broker's end is that of its last batch's first record.
            if start > ends[tp] and await self._beyond(consumer, tp, start):
                raise FaultError(
                    f"item vectors were read up to offset {start} of {tp.topic}/{tp.partition}, "
                    f"which ends at {ends[tp]}: records are missing from the topic"
                )
            self.next_offset[tp.partition] = max(start, first[tp])
            consumer.seek(tp, self.next_offset[tp.partition])
        return {tp.partition: ends[tp] for tp in self._tps}

    async def _beyond(self, consumer: AIOKafkaConsumer, tp: KafkaPartition, start: int) -> bool:
        consumer.seek(tp, start - 1)
        records = await consumer.getmany(tp, timeout_ms=5_000, max_records=1)
        return not records.get(tp)

    def _tell_ready(self, consumer: AIOKafkaConsumer, ends: Mapping[int, int]) -> None:
        if self.ready.is_set():
            return
        at_end = all(
            self.next_offset[tp.partition] >= max(ends[tp.partition], consumer.highwater(tp) or 0)
            for tp in self._tps
        )
        if at_end:
            self.ready.set()

    async def _hand_over(self, fetched: Mapping[KafkaPartition, Sequence[object]]) -> bool:
        batches = [
            record_batch(TopicPartition(*tp), records)
            for tp, records in sorted(fetched.items())
            if records
        ]
        room = await asyncio.to_thread(self._offer, self._source_id, batches)
        for batch in batches:
            self.next_offset[batch.tp.partition] = int(batch.offset_n[-1]) + 1
        return room

    async def _wait_for_room(self) -> None:
        # Room appears in the pipeline thread, which knows no loop: so it is asked now and then.
        while not self._stopping.is_set() and not await asyncio.to_thread(self._has_room):  # noqa: ASYNC110
            await asyncio.sleep(_ROOM_LOOK_S)
