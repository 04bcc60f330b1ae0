"""The worker process: the Faust app around the shell, and its exit. Holds no state of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, cast

import faust
from faust.types import TP

from infra.errors import FaultError, InputError
from stream.kafka.assignor import OneOwnerAssignor, assignor_for
from stream.kafka.connection import admin_client
from stream.kafka.contract import MakeEngine
from stream.kafka.dead_letters import Producer
from stream.kafka.settings import ShellConfig
from stream.kafka.shell import Lags, Shell, ignore_lags
from stream.kafka.topic_watch import EVERY_S, Log, TopicWatch, ask_logs
from stream.kafka.topics import require_stream_topics, source_ids
from stream.kafka.transport import SCHEME, Consumer, register
from stream.records import TopicPartition

_SWITCH_INTERVAL_S = 5e-4
"""Python's default of 5 ms lets the pipeline thread hold up the loop at every hand-over."""


class WorkerApp(faust.App):
    """Faust's app, with positions of its own and death at the first failure."""

    shell: Shell
    assignor_class: type[OneOwnerAssignor]
    stop_timeout_s: float
    tick_s: float
    topic_watch: TopicWatch

    async def start_offsets(self, partitions: frozenset[TP]) -> Mapping[TP, int]:
        """Where the transport seeks to at the end of a rebalance."""
        return await self.shell.start_offsets(partitions)

    def wanted_partitions(self) -> Collection[TP] | None:
        """Which partitions the transport may fetch."""
        owner = self.shell.owner
        # Both kinds of TP are the same tuples to hashing and equality.
        return None if owner is None else cast("Collection[TP] | None", owner.wanted)

    async def _on_agent_error(self, agent: object, exc: BaseException) -> None:
        # Faust would restart the agent, and the batch would be lost without a word.
        await self.shell.fail(exc)

    async def on_stop(self) -> None:
        """Stop; by force when it takes longer than configured."""
        timer = threading.Timer(self.stop_timeout_s, _hard_exit, (self.stop_timeout_s,))
        timer.daemon = True
        timer.start()
        await super().on_stop()

    @faust.Service.task
    async def _beat(self) -> None:
        # A task of the service, not of the app: those begin with the first assignment, and a
        # member that its group does not take has none.
        while not self.should_stop:
            await self.sleep(self.tick_s)
            try:
                await self.shell.beat()
            except Exception as error:  # noqa: BLE001 - any failure ends the worker, with its reason
                await self.shell.fail(error)
                return

    @faust.Service.task
    async def _watch(self) -> None:
        try:
            await self.topic_watch.run()
        except InputError as error:
            await self.shell.fail(error)

    # Host of the shell

    def generation(self) -> int:
        """Of the assignment held now."""
        return int(self.consumer_generation_id)

    def busy_elsewhere(self) -> bool:
        """True while a rebalance or the end is under way."""
        return bool(self.rebalancing or self.should_stop)

    def group_error(self) -> BaseException | None:
        """What keeps this member out of its group for good."""
        return self._batch_consumer.group_error()

    def end_offset(self, tp: TopicPartition) -> int | None:
        """End of the partition as of the last fetch; None when not known."""
        try:
            return self._batch_consumer.records_end(TP(*tp))
        except Exception:  # noqa: BLE001 - not assigned just now: nothing is known
            return None

    def wanted_changed(self) -> None:
        """Let a waiting fetch look again."""
        self._batch_consumer.wanted_changed()

    def claim(self, epoch: int) -> None:
        """Tell the group of the epoch at its next rebalance."""
        self.assignor_class.claim(epoch)

    async def open_producer(self) -> Producer:
        """The started producer."""
        return cast("Producer", await self.maybe_start_producer())

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets; waits as long as the broker is away."""
        await self._batch_consumer._commit_offsets(offsets)

    async def die(self, error: BaseException) -> None:
        """Begin to stop, for this reason."""
        await self.crash(error)

    @property
    def _batch_consumer(self) -> Consumer:
        assert isinstance(self.consumer, Consumer)
        return self.consumer


def run_worker(
    config: ShellConfig,
    make_engine: MakeEngine,
    *,
    idle_ms: int,
    new_log: bool = False,
    note_lags: Callable[[Lags], None] = ignore_lags,
    watch_every_s: float = EVERY_S,
) -> None:
    """Run until SIGTERM or SIGINT; returns after a graceful stop. `note_lags` is told at each tick.

    Topics are looked at every `watch_every_s`: a run ends where one of them is made anew.

    Raises BrokerUnreachableError, InputError (topics, positions, assignment) or whatever ended the
    pipeline. Must be called in the main thread.
    """
    with admin_client(config.kafka) as admin:
        topics = require_stream_topics(admin, config.topics)
        ids = source_ids(admin, topics)
    partitions = [
        TopicPartition(name, p)
        for name in config.topics.stream
        for p in range(topics[name].partitions)
    ]
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    register()
    scratch = tempfile.mkdtemp(prefix="millrace-faust-")
    try:
        app = _new_app(config, scratch)
        app.topic_watch = TopicWatch(
            {name: Log(ids[name], fact.partitions) for name, fact in topics.items()},
            partial(ask_logs, config.kafka),
            every_s=watch_every_s,
        )
        app.shell = Shell(
            config,
            make_engine,
            app,
            partitions=partitions,
            idle_ms=idle_ms,
            new_log=new_log,
            note_lags=note_lags,
        )
        _run(app)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _new_app(config: ShellConfig, scratch: str) -> WorkerApp:
    kafka, worker = config.kafka, config.worker
    app = WorkerApp(
        kafka.group,
        broker=[f"{SCHEME}://{server}" for server in kafka.servers],
        value_serializer="raw",
        key_serializer="raw",
        store="memory://",
        web_enabled=False,
        datadir=scratch,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_buffer_maxsize=worker.queued_batches,
        broker_max_poll_records=worker.batch_records,
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.session_timeout_s / 4,
        broker_rebalance_timeout=kafka.rebalance_timeout_s,
        broker_request_timeout=kafka.request_timeout_s,
        producer_request_timeout=worker.dead_letter_timeout_s,
    )
    app.stop_timeout_s = worker.stop_timeout_s
    app.tick_s = worker.tick_ms / 1000
    app.assignor_class = assignor_for(time.time_ns() // 1_000_000)
    _connect(app, config)
    return app


def _connect(app: WorkerApp, config: ShellConfig) -> None:
    """Hang the shell's reactions on Faust's signals, agent and task."""

    async def pump(stream: Any) -> None:
        async for event in stream.noack().events():
            await app.shell.on_batch(event.message)

    async def revoked(*args: Any, **_: Any) -> None:
        if args[1]:
            await app.shell.on_revoked()

    async def assigned(*args: Any, **_: Any) -> None:
        if not args[1]:
            await app.shell.on_nothing_assigned()

    async def stopping(*_: Any, **__: Any) -> None:
        await app.shell.stop()

    app.agent(app.topic(*config.topics.stream, acks=False), name="pump")(pump)
    # Signals hold their receivers weakly; the app keeps these alive.
    app.on_partitions_revoked.connect(revoked, weak=False)
    app.on_partitions_assigned.connect(assigned, weak=False)
    app.on_before_shutdown.connect(stopping, weak=False)


def _run(app: WorkerApp) -> None:
    """Run the app to its end; raises what ended it, if anything but a signal did."""
    worker = faust.Worker(
        app, override_logging=False, redirect_stdouts=False, quiet=True, loglevel="WARNING"
    )
    worker.spinner = None
    code: object = 0
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        code = end.code
    if app.shell.failure is not None:
        raise app.shell.failure
    if code:
        reason = worker.crash_reason or app.crash_reason
        raise reason or FaultError(f"the worker ended with code {code}")


def _hard_exit(limit_s: float) -> None:
    sys.stderr.write(f"millrace: stopping took longer than {limit_s:g} s: ended by force\n")
    sys.stderr.flush()
    os._exit(1)
