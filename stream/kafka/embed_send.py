"""The embedder's way out: rows and dead letters to the broker, and what it has of them.

Keeps the order in which it is given batches; so many may be on their way at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from stream.kafka.dead_letters import encode_dead_letter
from stream.kafka.embed_encode import Encoded
from stream.kafka.embed_memory import HEADER, Overtaken, TopicMemory, header_of
from stream.kafka.settings import ShellConfig

log = logging.getLogger(__name__)

_UNDER_WAY_MAX: Final = 8


class Sender:
    """Sends batches; `done` is called with each, in order, once the broker has all of it."""

    def __init__(
        self,
        producer: AIOKafkaProducer,
        config: ShellConfig,
        memory: TopicMemory,
        *,
        same_partitions: bool,
        done: Callable[[Encoded], Awaitable[None]],
    ) -> None:
        """`same_partitions`: items and item-vectors have equally many, so records keep theirs."""
        self._producer, self._topics, self._memory = producer, config.topics, memory
        self._letter_bytes_max = config.worker.dead_letter_value_bytes_max
        self._same, self._done = same_partitions, done
        self._under_way: asyncio.Queue[tuple[Encoded, list[Any], list[Any]]] = asyncio.Queue(
            _UNDER_WAY_MAX
        )

    async def send(self, batch: Encoded) -> None:
        """Put the batch on its way; waits while too many are."""
        letters = []
        for letter in batch.letters:
            key, value = encode_dead_letter(letter, self._letter_bytes_max)
            letters.append(await self._send(self._topics.dead_letters, value, key))
        rows = [
            await self._send(
                self._topics.item_vectors,
                row.value,
                self._memory.record_key(row.item_id),
                entry.tp.partition if self._same else None,
                headers=[(HEADER, header_of(row.memory))],
            )
            for entry, row in batch.rows
        ]
        await self._under_way.put((batch, rows, letters))

    async def send_again(self, rows: Sequence[Overtaken]) -> None:
        """Put rows behind older ones that came after them."""
        log.warning("%d rows of item-vectors were overtaken by older ones: sent again", len(rows))
        answers = [
            await self._send(
                self._topics.item_vectors, row.value, row.key, row.partition,
                headers=[(HEADER, row.header)],
            )
            for row in rows
        ]  # fmt: skip
        await asyncio.gather(*answers)

    async def _send(self, *record: Any, **more: Any) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any] = await self._producer.send(*record, **more)
        # The first that fails ends the embedder: nobody waits for the others' reasons.
        sent.add_done_callback(lambda one: one.cancelled() or one.exception())
        return sent

    async def run(self) -> None:
        """Wait for the broker's answers, until cancelled."""
        while True:
            batch, rows, letters = await self._under_way.get()
            await asyncio.gather(*letters)
            for (_, row), sent in zip(batch.rows, await asyncio.gather(*rows), strict=True):
                self._memory.sent(sent.partition, sent.offset, row.item_id, row.memory)
            await self._done(batch)
            self._under_way.task_done()

    async def settled(self) -> None:
        """Wait until the broker has all that was put on its way."""
        await self._under_way.join()
