"""Rules of the batch transport that need no broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from faust.transport.drivers import TRANSPORTS, by_name
from faust.types import TP

from stream.kafka import transport
from stream.kafka.transport import (
    SCHEME,
    Consumer,
    ConsumerThread,
    FetchedRecords,
    LimitsFetching,
    OwnsPositions,
    Transport,
)
from stream.kafka.worker import WorkerApp
from stream.records import TopicPartition

A, B = TP("impressions", 0), TP("clicks", 0)


class App:
    def __init__(self, wanted):
        self.wanted = wanted

    def wanted_partitions(self):
        return self.wanted


def test_fetch_takes_what_is_active_and_wanted_looking_anew_each_time():
    app, active = App(None), {A, B}
    wanted = transport._Wanted(active, app)
    assert A in wanted
    app.wanted = frozenset({TopicPartition(*B)})
    assert (A in wanted, B in wanted) == (False, True)
    active.discard(B)
    assert B not in wanted


def test_no_wanted_partition_does_not_mean_all():
    wanted = transport._Wanted({A}, App(frozenset()))
    assert wanted
    assert A not in wanted


def test_app_without_a_wish_gets_all_active_partitions():
    wanted = transport._Wanted(None, object())
    assert A in wanted


def thread_with(waiters, **consumer):
    thread = object.__new__(ConsumerThread)
    fetcher = SimpleNamespace(
        _fetch_waiters=waiters, _notify=lambda f: f.done() or f.set_result(None)
    )
    thread._consumer = SimpleNamespace(_fetcher=fetcher, **consumer)
    return thread


def test_waking_ends_the_wait_of_every_fetch():
    async def run():
        waiters = {asyncio.get_running_loop().create_future() for _ in range(2)}
        thread_with(waiters)._wake()
        return all(f.done() for f in waiters)

    assert asyncio.run(run())


def test_room_in_the_queue_wakes_the_fetch(monkeypatch):
    woken = []
    consumer = object.__new__(Consumer)
    consumer._buffered_partitions, consumer._active_partitions = {A}, set()
    consumer._thread = SimpleNamespace(wake=lambda: woken.append(set(consumer._active_partitions)))
    consumer.on_buffer_drop(A)
    assert woken == [{A}]


def give_back(epoch):
    sought = {}
    thread = thread_with(
        set(), assignment=lambda: {A}, seek=lambda tp, offset: sought.update({TP(*tp): offset})
    )
    thread.seek_epoch = 3
    records = FetchedRecords(
        {A: [SimpleNamespace(offset=7), SimpleNamespace(offset=8)], B: [SimpleNamespace(offset=1)]}
    )
    records.epoch = epoch
    asyncio.run(thread._give_back(records))
    return sought


def test_undelivered_records_of_assigned_partitions_come_again():
    assert give_back(epoch=3) == {A: 7}


def test_records_from_before_the_last_seek_move_nothing():
    assert give_back(epoch=2) == {}


@pytest.mark.parametrize(
    ("position", "taken_to", "end"),
    ((9, {A: 8}, 8), (9, {A: 9}, 9), (7, {A: 7}, 9), (None, {A: 7}, 9), (9, {}, 9)),
)
def test_a_marker_behind_the_last_record_taken_is_no_record(position, taken_to, end):
    """The broker tells 9 as the end."""
    state = SimpleNamespace(position=position, has_valid_position=position is not None)
    assignment = SimpleNamespace(state_value=lambda _: state)
    subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    thread = thread_with(set(), _subscription=subscription)
    thread.taken_to = taken_to
    consumer = object.__new__(Consumer)
    consumer._thread, consumer.highwater = thread, lambda _: 9
    assert consumer.records_end(A) == end


def test_error_that_keeps_a_member_out_is_found():
    def consumer_with(**coordinator):
        consumer = object.__new__(Consumer)
        inner = (
            SimpleNamespace(_coordinator=SimpleNamespace(**coordinator)) if coordinator else None
        )
        consumer._thread = SimpleNamespace(_consumer=inner)
        return consumer

    error = ValueError("no")
    assert consumer_with().group_error() is None
    assert consumer_with(_pending_exception=None).group_error() is None
    assert consumer_with(_pending_exception=error).group_error() is error


def test_scheme_leads_to_the_transport_without_installation(monkeypatch):
    monkeypatch.setattr(TRANSPORTS, "aliases", dict(TRANSPORTS.aliases))
    transport.register()
    assert by_name(SCHEME) is Transport


def test_worker_app_is_what_the_transport_looks_for():
    assert issubclass(WorkerApp, OwnsPositions)
    assert issubclass(WorkerApp, LimitsFetching)
