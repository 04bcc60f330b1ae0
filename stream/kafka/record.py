"""Topics to a record log, in the order of the sequencer's key. Reads outside of any group.

Order: partition clock (running maximum of event time), topic rank, partition, offset. Every
partition is read up to an end that is fixed before reading, so that the order is known for sure.
"""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition

from infra.errors import FaultError
from stream.kafka.closing import stop_client
from stream.kafka.event_time import event_time_ms, is_watermark
from stream.kafka.settings import KafkaConfig
from stream.record_log import RecordLogWriter

_BUFFER_RECORDS = 2_000
_STALL_S = 60.0
_WATCH_S = 0.5

Told = Callable[[int, int], None]
"""Is told (records written, records in all)."""


class Waiting(NamedTuple):
    """A record that waits for its turn; the first four fields are the order."""

    clock_ms: int
    rank: int
    partition: int
    offset: int
    record: Any


class Recorder:
    """Reads the topics, which stand in rank order, and writes them to one log."""

    def __init__(self, kafka: KafkaConfig, topics: Mapping[str, int]) -> None:
        """`topics`: number of partitions by name."""
        self._rank = {name: rank for rank, name in enumerate(topics)}
        self._topics = dict(topics)
        self._tps = [KafkaPartition(t, p) for t, n in topics.items() for p in range(n)]
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-record",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
        )

    async def __aenter__(self) -> Self:
        """Connected, all partitions assigned."""
        await self._consumer.start()
        self._consumer.assign(self._tps)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Disconnected."""
        await stop_client(self._consumer)

    async def until_watermark(self, stream: Sequence[str]) -> None:
        """Return when every partition of the `stream` topics ends with a watermark record."""
        open_ = {tp for tp in self._tps if tp.topic in stream}
        while open_:
            ends = await self._consumer.end_offsets(list(open_))
            for tp in sorted(open_):
                if ends[tp] > 0 and is_watermark(await self._last_value(tp, ends[tp])):
                    open_.discard(tp)
            if open_:
                await asyncio.sleep(_WATCH_S)

    async def _last_value(self, tp: KafkaPartition, end: int) -> bytes | None:
        # The embedded broker tells the first offset of the last batch, so read on from there; and
        # the last offset may be a transaction's marker, behind which no record comes.
        self._consumer.seek(tp, max(0, end - 2))
        value: bytes | None = None
        while True:
            records = (await self._consumer.getmany(tp, timeout_ms=1_000)).get(tp)
            if not records:
                return value
            value = records[-1].value
            if records[-1].offset + 1 >= (self._consumer.highwater(tp) or 0):
                return value

    async def write(self, out: Path, source: str, told: Told) -> int:
        """Write all records there are now; their number."""
        ends = await self._ends()
        total = sum(end - first for first, end in ends.values())
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, source))
        written = 0
        with RecordLogWriter(out, self._topics, ordered=True, source_id=identity) as log:
            async for waiting in self._merged({tp: end for tp, (_, end) in ends.items()}):
                r = waiting.record
                log.write(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value)
                written += 1
                if written % 10_000 == 0:
                    told(written, max(total, written))
        told(written, written)
        return written

    async def _ends(self) -> dict[KafkaPartition, tuple[int, int]]:
        """First and end offset of each partition as of now, proved by a fetch where not empty."""
        firsts = await self._consumer.beginning_offsets(self._tps)
        ends = await self._consumer.end_offsets(self._tps)
        for tp in self._tps:
            if ends[tp] > firsts[tp]:
                self._consumer.seek(tp, ends[tp] - 1)
                await self._consumer.getmany(tp, timeout_ms=2_000, max_records=1)
                ends[tp] = max(ends[tp], self._consumer.highwater(tp) or 0)
            self._consumer.seek(tp, firsts[tp])
        return {tp: (firsts[tp], ends[tp]) for tp in self._tps}

    async def _merged(self, ends: Mapping[KafkaPartition, int]) -> Any:
        """Records up to `ends`, in order; at most a few thousand of each partition in memory."""
        buffers = {tp: deque[Waiting]() for tp in self._tps}
        clocks = dict.fromkeys(self._tps, 0)
        unread = {tp for tp in self._tps if await self._consumer.position(tp) < ends[tp]}
        heads: list[tuple[Waiting, KafkaPartition]] = []
        standing = set(self._tps)
        """Partitions with no record among the heads."""
        while True:
            for tp in sorted(standing):
                if buffers[tp]:
                    heapq.heappush(heads, (buffers[tp].popleft(), tp))
                    standing.discard(tp)
            if hungry := standing & unread:
                await self._fill(hungry, buffers, clocks, ends, unread)
                continue
            if not heads:
                return
            waiting, tp = heapq.heappop(heads)
            standing.add(tp)
            yield waiting

    async def _fill(
        self,
        hungry: set[KafkaPartition],
        buffers: dict[KafkaPartition, deque[Waiting]],
        clocks: dict[KafkaPartition, int],
        ends: Mapping[KafkaPartition, int],
        unread: set[KafkaPartition],
    ) -> None:
        """Fetch for partitions whose buffer is empty."""
        try:
            async with asyncio.timeout(_STALL_S):
                fetched: Any = {}
                while not fetched:
                    fetched = await self._consumer.getmany(
                        *hungry, timeout_ms=500, max_records=_BUFFER_RECORDS
                    )
                    await self._drop_ended(hungry, ends, unread)
                    if not hungry & unread:
                        break
        except TimeoutError as error:
            names = ", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(hungry))
            raise FaultError(f"no records came from {names} in {_STALL_S:g} s") from error
        for tp, records in fetched.items():
            for r in records:
                if r.offset < ends[tp]:
                    clocks[tp] = max(clocks[tp], event_time_ms(r.value) or 0)
                    rank = self._rank[tp.topic]
                    buffers[tp].append(Waiting(clocks[tp], rank, tp.partition, r.offset, r))
            if records[-1].offset + 1 >= ends[tp]:
                unread.discard(tp)

    async def _drop_ended(
        self,
        hungry: set[KafkaPartition],
        ends: Mapping[KafkaPartition, int],
        unread: set[KafkaPartition],
    ) -> None:
        """Compaction may have taken the last records: then the position alone tells the end."""
        for tp in hungry & unread:
            if await self._consumer.position(tp) >= ends[tp]:
                unread.discard(tp)
