"""Record-batch transport for Faust: one message a fetched batch. Decodes nothing, keeps no offset.

Built on private interfaces of Faust and aiokafka, both pinned. What differs from the stock driver:
a message's value is the list of a partition's fetched records; where the app says so, partitions
start at the app's own positions and only the partitions it wants are fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

from aiokafka.consumer.consumer import AIOKafkaConsumer
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from stream.kafka.closing import stop_client

SCHEME = "millrace"

_FETCH_MAX_WAIT_MS = 100
"""Longest wait of one fetch request.

A broker node has one request in flight: while it waits for a silent partition, no other partition
of that node is fetched. The stock driver's 1500 ms would stall a stream that catches up.
"""


@runtime_checkable
class OwnsPositions(Protocol):
    """An app whose positions are its own, not the group's committed offsets."""

    async def start_offsets(self, partitions: frozenset[TP]) -> Mapping[TP, int]:
        """Offset to fetch next, for every partition asked; raises to end the app."""
        ...


@runtime_checkable
class LimitsFetching(Protocol):
    """An app that says which partitions may be fetched now."""

    def wanted_partitions(self) -> Collection[TP] | None:
        """Partitions that may be fetched; None for all. Called from the consumer's thread."""
        ...


@runtime_checkable
class BringsAssignor(Protocol):
    """An app with a partition assignor of its own."""

    assignor_class: type


class FetchedRecords(dict[TP, list[Any]]):
    """Records by partition, and how many seeks had been made when they were taken."""

    epoch: int = 0


class _Wanted(set[TP]):
    """Partitions that a fetch may take, decided anew at each look."""

    def __init__(self, active: Collection[TP] | None, app: object) -> None:
        super().__init__()
        self._active = active
        self._app = app if isinstance(app, LimitsFetching) else None

    def __bool__(self) -> bool:
        return True  # aiokafka reads an empty set as "all"

    def __contains__(self, tp: object) -> bool:
        if self._active is not None and tp not in self._active:
            return False
        wanted = None if self._app is None else self._app.wanted_partitions()
        return wanted is None or tp in wanted


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Thread with aiokafka's consumer: fetches, seeks and heartbeats."""

    seek_epoch = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the stock thread."""
        super().__init__(*args, **kwargs)
        self.taken_to: dict[TP, int] = {}
        """Behind the last record taken of each partition, or where it was sought to."""

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = _FETCH_MAX_WAIT_MS
        if isinstance(self.app, BringsAssignor):
            consumer._partition_assignment_strategy = [self.app.assignor_class]
        return consumer

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: Collection[TP] | None,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> FetchedRecords:
        wanted = _Wanted(active_partitions, self.app)
        records = FetchedRecords(
            await super()._fetch_records(consumer, wanted, timeout=timeout, max_records=max_records)
        )
        records.epoch = self.seek_epoch
        self.taken_to |= {ensure_TP(tp): batch[-1].offset + 1 for tp, batch in records.items()}
        return records

    async def on_thread_stop(self) -> None:
        """Leave the group and end the client.

        Without a broker the stock thread would die on the way, and nobody would be told.
        """
        # Beyond the stock thread's own, which awaits the consumer's `stop` as it is.
        await super(driver.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await stop_client(self._consumer)

    async def _restart_at(self, starts: Mapping[TP, int]) -> None:
        consumer = self._ensure_consumer()
        for tp, offset in starts.items():
            consumer.seek(driver.ensure_aiokafka_TP(tp), offset)
        self.seek_epoch += 1
        self.taken_to = dict(starts)

    def fetched_to(self, tp: TP) -> int | None:
        """Where the next fetch of the partition begins; None when not known."""
        subscription = self._ensure_consumer()._subscription.subscription
        state = subscription.assignment.state_value(driver.ensure_aiokafka_TP(tp))
        return cast("int", state.position) if state.has_valid_position else None

    async def _give_back(self, records: FetchedRecords) -> None:
        """Make records that were taken but not delivered come again."""
        if records.epoch != self.seek_epoch:
            return  # a later seek has already set the positions
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        for tp, batch in records.items():
            kafka_tp = driver.ensure_aiokafka_TP(tp)
            if batch and kafka_tp in assigned:
                consumer.seek(kafka_tp, batch[0].offset)

    def wake(self) -> None:
        """Let a fetch that waits for records look again at what is wanted. Any thread may call."""
        if self._consumer is not None and self.thread_loop.is_running():
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self.thread_loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        fetcher = self._ensure_consumer()._fetcher
        if fetcher is not None:
            for waiter in tuple(fetcher._fetch_waiters):
                fetcher._notify(waiter)


class Consumer(driver.Consumer):
    """Consumer whose messages are record batches."""

    _thread: ConsumerThread

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def wanted_changed(self) -> None:
        """Say that the app's wanted partitions changed. Any thread may call."""
        self._thread.wake()

    def on_buffer_drop(self, tp: TP) -> None:
        """The agent's queue has room for the partition again: let a waiting fetch look at it.

        The stock consumer would let it wait for another partition's records, up to a second.
        """
        super().on_buffer_drop(tp)
        self._thread.wake()

    def records_end(self, tp: TP) -> int | None:
        """Behind the partition's last record, as of the last fetch; None when not known.

        The broker's end may be further on: a transaction's marker has an offset too, and is no
        record. Once all has been taken, the end is that of the last record taken.
        """
        end = cast("int | None", self.highwater(tp))
        position = None if end is None else self._thread.fetched_to(tp)
        if position is None or end is None or position < end:
            return end
        return min(end, self._thread.taken_to.get(tp, end))

    def group_error(self) -> BaseException | None:
        """What keeps this member out of its group for good; None while all is well.

        aiokafka waits with it until somebody polls, which Faust does not.
        """
        consumer = self._thread._consumer
        coordinator = getattr(consumer, "_coordinator", None)
        if coordinator is None:
            return None
        task = getattr(coordinator, "_coordination_task", None)
        if task is not None and task.done() and not task.cancelled() and task.exception():
            return cast("BaseException", task.exception())
        return cast("BaseException | None", getattr(coordinator, "_pending_exception", None))

    async def perform_seek(self) -> None:
        """Seek every assigned partition: to the app's own position where it has any.

        The last step of each rebalance; partitions that were kept are sought too.
        """
        if not isinstance(self.app, OwnsPositions):
            starts: Mapping[TP, int] = await self._committed_starts()
        else:
            assigned = frozenset(ensure_TP(tp) for tp in self.assignment())
            starts = await self.app.start_offsets(assigned)
            missing = assigned - starts.keys()
            assert not missing, f"start_offsets left out {sorted(missing)}"
        await self._thread.call_thread(self._thread._restart_at, starts)
        for tp, offset in starts.items():
            # Faust's drain loop takes None for "nothing read yet"; 0 would do the same.
            self._read_offset[tp] = self._committed_offset[tp] = offset or None

    async def _committed_starts(self) -> Mapping[TP, int]:
        committed = cast("Mapping[TP, int | None]", await self.seek_to_committed())
        starts = {}
        for kafka_tp, offset in committed.items():
            tp = ensure_TP(kafka_tp)
            if offset is not None and offset >= 0:
                starts[tp] = offset
            else:
                self._read_offset[tp] = None
        return starts

    async def _wait_next_records(
        self, timeout: float
    ) -> tuple[FetchedRecords | None, set[TP] | None]:
        """As in the stock consumer, which sleeps a second while no partition is active."""
        if not self.flow_active:
            await self.wait(cast("Any", self.can_resume_flow))
        active = None if self.app.client_only else self._get_active_partitions()
        records = await self._getmany(active_partitions=active, timeout=timeout)
        return cast("FetchedRecords", records), active

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """One message for each partition with new records; its value is the list of them.

        The message's offset is the last record's. Records that cannot be delivered because a
        rebalance has begun come again after it.
        """
        records, active = await self._wait_next_records(timeout)
        if not records or self.should_stop:
            return
        if records.epoch != self._thread.seek_epoch:
            return  # taken before the last seek: they come again
        generation = self.app.consumer_generation_id
        undelivered = FetchedRecords(records)
        undelivered.epoch = records.epoch
        for tp, batch in _in_order(records):
            if not self.flow_active or self.app.consumer_generation_id != generation:
                break
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                continue
            undelivered.pop(tp)
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            yield ensure_TP(tp), self._batch_message(ensure_TP(tp), batch, generation)
        if undelivered and not self.should_stop:
            await self._thread.call_thread(self._thread._give_back, undelivered)

    def _batch_message(self, tp: TP, batch: list[Any], generation: int) -> ConsumerMessage:
        last = batch[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            None,
            cast("Any", batch),
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )


def _in_order(records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, list[Any]]]:
    return ((tp, records[tp]) for tp in sorted(records) if records[tp])


class Transport(driver.Transport):
    """The transport behind broker URLs `millrace://host:port`."""

    Consumer = Consumer


def register() -> None:
    """Make `millrace://` known to Faust also where the package is not installed."""
    TRANSPORTS.aliases[SCHEME] = f"{Transport.__module__}:{Transport.__qualname__}"
