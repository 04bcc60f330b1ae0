"""Becoming the owner: load the newest snapshot, prove its positions, read item vectors up to now.

Fetches no impressions or clicks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stream.kafka.connection import admin_client
from stream.kafka.contract import MakeEngine
from stream.kafka.item_reader import ItemReader
from stream.kafka.owner import Owner, Step
from stream.kafka.settings import ShellConfig
from stream.kafka.starting import starting_positions
from stream.kafka.topics import require_stream_topics, source_ids
from stream.records import RecordBatch, TopicPartition

log = logging.getLogger(__name__)


class Takeover:
    """What `run` needs, and the reader of item-vectors that it leaves running."""

    def __init__(
        self,
        config: ShellConfig,
        make_engine: MakeEngine,
        *,
        partitions: Sequence[TopicPartition],
        new_log: bool,
        thread: ThreadPoolExecutor,
        after: Callable[[Owner, Step], Awaitable[None]],
        fail: Callable[[BaseException], Awaitable[None]],
    ) -> None:
        """`after` does on the event loop what a step asks for; `fail` ends the worker."""
        self._config, self._make_engine = config, make_engine
        self._partitions, self._new_log = partitions, new_log
        self._thread, self._after, self._fail = thread, after, fail
        self._failed: BaseException | None = None
        self.reader: ItemReader | None = None

    async def run(self) -> Owner:
        """The owner, at its positions; raises InputError where they do not fit the broker's log."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(self._thread, self._make_engine, self._partitions)
        owner = Owner(engine)
        sources, item_partitions = await asyncio.to_thread(self._ask_broker)
        starts = await starting_positions(
            self._config.kafka,
            {tp: sources[tp.topic] for tp in self._partitions},
            engine.restored,
            new_log=self._new_log,
        )
        await loop.run_in_executor(self._thread, owner.assign, starts)
        await self._read_items(owner, sources[self._config.topics.item_vectors], item_partitions)
        log.warning(
            "owner of %d partitions, epoch %d, after %.1f s",
            len(self._partitions),
            engine.checkpoints.epoch,
            time.monotonic() - began,
        )
        return owner

    def _ask_broker(self) -> tuple[dict[str, str], int]:
        """Source ids by topic, and the number of partitions of item-vectors."""
        with admin_client(self._config.kafka) as admin:
            facts = require_stream_topics(admin, self._config.topics)
            return source_ids(admin, facts), facts[self._config.topics.item_vectors].partitions

    async def _read_items(self, owner: Owner, source_id: str, partitions: int) -> None:
        loop = asyncio.get_running_loop()

        def offer(source: str, batches: Sequence[RecordBatch]) -> bool:
            step, room = self._thread.submit(owner.offer_items, source, batches).result()
            if step.dead_letters:
                asyncio.run_coroutine_threadsafe(self._await(owner, step), loop).result()
            return room

        def failed(error: BaseException) -> None:
            self._failed = error
            asyncio.run_coroutine_threadsafe(self._end(error), loop)

        positions = await loop.run_in_executor(self._thread, owner.item_positions)
        self.reader = ItemReader(
            self._config.kafka,
            self._config.topics.item_vectors,
            partitions,
            source_id=source_id,
            starts=positions,
            offer=offer,
            has_room=lambda: self._thread.submit(owner.wants_items).result(),
            on_error=failed,
        )
        self.reader.start()
        while not await asyncio.to_thread(self.reader.ready.wait, 0.5):
            if self._failed is not None:
                raise self._failed

    async def _await(self, owner: Owner, step: Step) -> None:
        # Letters only: a snapshot from here could pass letters of a batch that are not queued yet.
        await self._after(owner, replace(step, snapshot_due=False))

    async def _end(self, error: BaseException) -> None:
        await self._fail(error)
