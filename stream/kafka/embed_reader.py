"""Reads item-vectors into the embedder's memory, outside of the consumer group. Keeps nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition

from stream.kafka.embed_memory import Overtaken, TopicMemory
from stream.kafka.settings import KafkaConfig

_POLL_MS: Final = 200
_RECORDS_MAX: Final = 2_000


class MemoryReader:
    """Follows item-vectors, all partitions, outside of the consumer group, into a TopicMemory."""

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        partitions: int,
        memory: TopicMemory,
        send_again: Callable[[Sequence[Overtaken]], Awaitable[None]],
    ) -> None:
        """`send_again`: takes rows that an embedder which had stalled has overtaken."""
        self._memory, self._send_again = memory, send_again
        self._tps = [KafkaPartition(topic, p) for p in range(partitions)]
        self._moved = asyncio.Condition()
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-embed-memory",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_POLL_MS,
        )

    async def start(self) -> None:
        """Connect, and seek to where the memory ends."""
        consumer, memory = self._consumer, self._memory
        await consumer.start()
        consumer.assign(self._tps)
        ends = await consumer.end_offsets(self._tps)
        firsts = await consumer.beginning_offsets(self._tps)
        if any(memory.next_offset.get(tp.partition, 0) > ends[tp] for tp in self._tps):
            # Records are gone from the topic: what they said must go from the memory as well.
            await asyncio.to_thread(memory.clear)
        for tp in self._tps:
            memory.next_offset.setdefault(tp.partition, 0)
            start = max(memory.next_offset[tp.partition], firsts[tp])
            memory.next_offset[tp.partition] = start
            consumer.seek(tp, start)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
            for tp, records in fetched.items():
                await asyncio.to_thread(self._memory.read, tp.partition, records)
            await self._pass_gaps()
            async with self._moved:
                self._moved.notify_all()
            if not fetched and (overtaken := self._memory.overtaken()):
                await self._send_again(overtaken)

    async def _pass_gaps(self) -> None:
        """Behind the last record may be offsets without one, which end the topic all the same.

        Tombstones that compaction has removed, or the markers of a producer's transactions.
        """
        known = self._memory.next_offset
        for tp in self._tps:
            known[tp.partition] = max(known[tp.partition], await self._consumer.position(tp))

    async def caught_up(self) -> None:
        """Wait until all has been read that is on the topic now."""
        ends = await self._consumer.end_offsets(self._tps)
        await self.until(lambda memory: _reaches(memory.next_offset, ends))

    async def until(self, ready: Callable[[TopicMemory], bool]) -> None:
        """Wait until `ready(memory)`, looked at after each fetch."""
        async with self._moved:
            await self._moved.wait_for(lambda: ready(self._memory))


def _reaches(next_offset: Mapping[int, int], ends: Mapping[KafkaPartition, int]) -> bool:
    return all(next_offset[tp.partition] >= end for tp, end in ends.items())
