"""The worker's event-loop side: batches, rebalances, commits and the end. Learns nothing itself.

On the loop runs only what must. Everything that touches the pipeline is a job of one thread
(`Owner`), in the order it was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

from faust.types import TP

from infra.errors import FaultError, InputError
from stream.kafka.contract import MakeEngine
from stream.kafka.dead_letters import DeadLetterSender, Producer
from stream.kafka.owner import Owner, Step
from stream.kafka.settings import ShellConfig
from stream.kafka.silence import Silence
from stream.kafka.status import StatusFile
from stream.kafka.takeover import Takeover
from stream.positions import Position
from stream.records import TopicPartition

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
_FINAL_COMMIT_S = 3.0
_READER_STOP_S = 5.0

Lags = Mapping[TopicPartition, int | None]
"""Records not handed to the pipeline yet, by partition; None where the end is not known."""


def ignore_lags(lags: Lags) -> None:
    """Tells nobody."""
    del lags


class Host(Protocol):
    """What the shell needs of the Faust app around it."""

    def generation(self) -> int:
        """Of the assignment held now."""
        ...

    def busy_elsewhere(self) -> bool:
        """True while a rebalance or the end is under way."""
        ...

    def group_error(self) -> BaseException | None:
        """What keeps this member out of its group for good."""
        ...

    def end_offset(self, tp: TopicPartition) -> int | None:
        """End of the partition as of the last fetch; None when not known."""
        ...

    def wanted_changed(self) -> None:
        """Let a waiting fetch look again."""
        ...

    def claim(self, epoch: int) -> None:
        """Tell the group of the epoch at its next rebalance."""
        ...

    async def open_producer(self) -> Producer:
        """The started producer."""
        ...

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets; waits as long as the broker is away."""
        ...

    async def die(self, error: BaseException) -> None:
        """Begin to stop, for this reason."""
        ...


class Shell:
    """State and reactions of one worker process."""

    def __init__(
        self,
        config: ShellConfig,
        make_engine: MakeEngine,
        host: Host,
        *,
        partitions: list[TopicPartition],
        idle_ms: int,
        new_log: bool,
        note_lags: Callable[[Lags], None] = ignore_lags,
    ) -> None:
        """`partitions`: all of impressions and clicks, which an owner must be given together."""
        self.owner: Owner | None = None
        self.failure: BaseException | None = None
        self._config, self._host, self._partitions = config, host, partitions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pipeline")
        self._lock = asyncio.Lock()
        self._standing_by = False
        self._opening: asyncio.Task[Owner] | None = None
        self._committing: asyncio.Task[None] | None = None
        self._takeover = Takeover(
            config,
            make_engine,
            partitions=partitions,
            new_log=new_log,
            thread=self._thread,
            after=self._after,
            fail=self.fail,
        )
        self._letters = DeadLetterSender(
            config.topics.dead_letters,
            value_bytes_max=config.worker.dead_letter_value_bytes_max,
            timeout_s=config.worker.dead_letter_timeout_s,
        )
        self._silence = Silence(partitions, idle_ms)
        self._note_lags = note_lags
        self._status = StatusFile(config.worker.status_file)

    async def _job(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run in the pipeline thread. A job that has begun ends, also when nobody waits for it."""
        assert not kwargs
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # Rebalances

    async def on_revoked(self) -> None:
        """Wait for the batch in hand: it is not in the position yet, and is ours to finish."""
        async with self._lock:
            pass

    async def on_nothing_assigned(self) -> None:
        """Stand by; a former owner ends, as its model is no longer the group's.

        So does one that was taking over: what it has loaded is not the newest by the time that it
        gets the partitions again.
        """
        if self.owner is not None or self._opening is not None:
            await self.fail(
                FaultError(
                    "lost all partitions to another member of the group (was this process "
                    "stopped for longer than kafka.session_timeout_s?): it stops"
                )
            )
            return
        log.warning("standing by: another member of group '%s' owns", self._config.kafka.group)
        self._standing_by = True
        await self._status.write({"state": "standby"})

    async def start_offsets(self, partitions: frozenset[TP]) -> dict[TP, int]:
        """Offsets to fetch from: those in memory for an owner, else from the snapshot it loads."""
        try:
            if partitions != frozenset(TP(*tp) for tp in self._partitions):
                raise InputError(
                    f"assigned {self._counted(partitions)}: a model needs exactly those it has "
                    "started with. Did a topic's partitions change, was it deleted, or is another "
                    f"program in group '{self._config.kafka.group}'?"
                )
            self._standing_by = False
            owner = self.owner or await self._open()
            offsets = await self._job(owner.next_offset.copy)
        except Exception as error:
            self.failure = self.failure or error
            raise
        self.owner = owner
        return {TP(*tp): offset for tp, offset in offsets.items()}

    def _counted(self, assigned: frozenset[TP]) -> str:
        """How many partitions of each topic were assigned, of those there were at the start."""
        return " and ".join(
            f"{sum(tp.topic == topic for tp in assigned)} of "
            f"{sum(tp.topic == topic for tp in self._partitions)} partitions of '{topic}'"
            for topic in self._config.topics.stream
        )

    async def _open(self) -> Owner:
        # A rebalance may cancel this wait half way; the next one waits for the same task.
        self._opening = self._opening or asyncio.create_task(self._takeover.run())
        # Faust's own limit would end the seek without a word, and nothing would run.
        limit_s = 0.9 * self._config.kafka.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                owner = await asyncio.shield(self._opening)
        except TimeoutError as error:
            raise FaultError(
                "loading the snapshot and reading item vectors took longer than 0.9 × "
                f"kafka.request_timeout_s = {limit_s:g} s: raise it"
            ) from error
        self._host.claim(owner.engine.checkpoints.epoch)
        return owner

    # Batches

    async def on_batch(self, message: Any) -> None:
        """Train on one message of the transport: the fetched records of one partition."""
        async with self._lock:
            owner = self.owner
            if owner is None or message.generation_id != self._host.generation():
                return  # fetched before a rebalance: it comes again
            if self.failure is not None:
                return  # what ends this worker has been told once
            tp = TopicPartition(message.tp.topic, message.tp.partition)
            before = owner.wanted
            now_ms = time.time_ns() // 1_000_000
            step = await self._job(owner.process, tp, message.value, now_ms)
            self._silence.heard(tp)
            if owner.wanted != before:
                self._host.wanted_changed()
            await self._after(owner, step)

    async def _after(self, owner: Owner, step: Step) -> None:
        """Dead letters on their way; a snapshot only when all have arrived."""
        if step.dead_letters:
            await self._letters.send(await self._host.open_producer(), step.dead_letters)
        if step.snapshot_due:
            await self._letters.settle()
            await self._job(owner.take_snapshot)

    async def beat(self) -> None:
        """Between batches: idle time, commits and the status file."""
        if (error := self._host.group_error()) is not None:
            group = self._config.kafka.group
            raise InputError(
                f"joining group '{group}' failed: {error}; is another program in it? Choose "
                "another kafka.group"
            )
        owner = self.owner
        if self._standing_by:
            await self._status.write({"state": "standby"})
        if owner is None or self._host.busy_elsewhere():
            return
        async with self._lock:
            lags = {tp: self._lag(owner, tp) for tp in self._partitions}
            self._note_lags(lags)
            silent, elapsed_ms = self._silence.look(lags)
            now_ms = time.time_ns() // 1_000_000
            pulse = await self._job(owner.pulse, silent, elapsed_ms, now_ms)
            await self._after(owner, pulse.step)
        if pulse.durable is not None:
            self._commit(pulse.durable)
        await self._status.write({"state": "owner", **pulse.status, **self._figures(lags)})

    def _lag(self, owner: Owner, tp: TopicPartition) -> int | None:
        """Records not handed to the pipeline yet; None before the broker has told its end."""
        end = self._host.end_offset(tp)
        return None if end is None else max(0, end - owner.next_offset[tp])

    def _figures(self, lags: Lags) -> dict[str, Any]:
        known = [lag for lag in lags.values() if lag is not None]
        reader = self._takeover.reader
        return {
            "lag": sum(known) if len(known) == len(lags) else None,
            "items": {} if reader is None else dict(reader.next_offset),
            "dead_letters": self._letters.sent,
        }

    def _commit(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Tell the group how far a durable snapshot is: a hint, never waited for."""
        if self._committing is None or self._committing.done():
            limit_s = self._config.worker.commit_timeout_s
            self._committing = asyncio.create_task(self._commit_within(positions, limit_s))

    async def _commit_within(
        self, positions: Mapping[TopicPartition, Position], limit_s: float
    ) -> None:
        offsets = {TP(*tp): p.next_offset for tp, p in positions.items() if p.next_offset}
        try:
            async with asyncio.timeout(limit_s):
                await self._host.commit_offsets(offsets)
        except TimeoutError:
            log.warning("the broker did not take a commit in %g s; snapshots go on", limit_s)

    # The end

    async def fail(self, error: BaseException) -> None:
        """End this worker: with code 2 for an InputError, else 1."""
        self.failure = self.failure or error
        await self._host.die(error)

    async def stop(self) -> None:
        """The final snapshot first; everything behind it is bounded."""
        if self._takeover.reader is not None:
            await asyncio.to_thread(self._takeover.reader.stop, _READER_STOP_S)
        owner = self.owner
        self._standing_by = False
        if owner is None:
            await self._status.write({"state": "stopped"})
            return
        async with self._lock:
            try:
                await self._letters.settle()
                positions = await self._job(owner.stop)
            except Exception as error:  # noqa: BLE001 - kept as the reason; stopping goes on
                self.failure = self.failure or error
                return
            status = await self._job(owner.status)
        if positions:
            await self._commit_within(positions, _FINAL_COMMIT_S)
        await self._status.write({"state": "stopped", **status, "dead_letters": self._letters.sent})
