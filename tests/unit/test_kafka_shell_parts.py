"""Small parts of the worker's shell, without a broker."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest

from infra.errors import FaultError
from stream.codec_write import (
    click_body,
    encode_columns,
    encode_envelope,
    encode_event,
    encode_watermark,
)
from stream.kafka.dead_letters import DeadLetterSender, encode_dead_letter
from stream.kafka.event_time import event_time_ms, is_watermark
from stream.kafka.logs import RepeatFilter
from stream.kafka.owner import Owner
from stream.kafka.record_batch import record_batch
from stream.kafka.silence import Silence
from stream.kafka.status import StatusFile
from stream.positions import Position
from stream.records import TopicPartition
from stream.sequencer import DeadLetter

TP = TopicPartition("impressions", 0)
T = 1_650_000_000_000


def records(*offsets):
    return [SimpleNamespace(offset=n, timestamp=T + n, key=b"k", value=b"%d" % n) for n in offsets]


def letter(value=b"v", detail="d"):
    return DeadLetter(
        tp=TP, offset=7, index=2, reason="malformed", detail=detail, key=b"k", value=value
    )


# Record batches


def test_record_batch_keeps_offsets_times_keys_and_values():
    batch = record_batch(TP, records(3, 4, 9))
    assert batch.offset_n.tolist() == [3, 4, 9]
    assert batch.timestamp_ms_n.tolist() == [T + 3, T + 4, T + 9]
    assert list(batch.values) == [b"3", b"4", b"9"]
    assert batch.offset_n.dtype == np.int64


@pytest.mark.parametrize(("offset", "left"), ((0, [3, 4, 9]), (4, [4, 9]), (5, [9]), (10, [])))
def test_from_offset_drops_what_was_taken_before(offset, left):
    rest = record_batch(TP, records(3, 4, 9)).from_offset(offset)
    assert rest.offset_n.tolist() == left
    assert len(rest.values) == len(rest.keys) == len(rest.timestamp_ms_n) == len(left)


# Silence


def test_partition_is_silent_only_at_its_end_and_after_a_while():
    now = [0.0]
    other = TopicPartition("clicks", 0)
    silence = Silence([TP, other], 1000, clock=lambda: now[0])
    silence.heard(TP)
    assert silence.look({TP: 0, other: 0}) == ([], 0)
    now[0] = 1.5
    silence.heard(other)
    assert silence.look({TP: 3, other: 0}) == ([], 0)
    assert silence.look({TP: None, other: 0}) == ([], 0)
    assert silence.look({TP: 0, other: 0}) == ([TP], 0)
    now[0] = 2.0
    assert silence.look({TP: 0, other: 0}) == ([TP], 500)
    now[0] = 2.6
    assert silence.look({TP: 0, other: 0}) == ([TP, other], 600)


def test_time_does_not_go_on_for_a_partition_that_speaks_again():
    now = [0.0]
    silence = Silence([TP], 1000, clock=lambda: now[0])
    silence.look({TP: 0})
    now[0] = 5.0
    assert silence.look({TP: 0}) == ([TP], 0)
    now[0] = 6.0
    silence.heard(TP)
    now[0] = 8.0
    assert silence.look({TP: 0}) == ([TP], 0)


def test_a_stream_that_begins_late_gives_each_partition_its_while():
    now = [0.0]
    other = TopicPartition("clicks", 0)
    silence = Silence([TP, other], 1000, clock=lambda: now[0])
    silence.look({TP: 0, other: 0})
    now[0] = 60.0  # a worker that waits for its first event
    silence.heard(TP)
    assert silence.look({TP: 0, other: 0}) == ([], 0)
    now[0] = 60.9
    silence.heard(TP)
    now[0] = 61.0
    assert silence.look({TP: 0, other: 0}) == ([other], 0)


# Dead letters


def test_dead_letter_carries_its_place_and_reason():
    key, value = encode_dead_letter(letter(), 100)
    assert key == b"impressions/0/7/2"
    body = msgpack.unpackb(value)
    assert body["type"] == "dead_letter"
    assert (body["topic"], body["partition"], body["offset"], body["index"]) == (*TP, 7, 2)
    assert (body["reason"], body["value"], body["value_bytes"]) == ("malformed", b"v", 1)


def test_long_values_are_cut_and_null_stays_null():
    body = msgpack.unpackb(encode_dead_letter(letter(b"x" * 50, "d" * 5000), 10)[1])
    assert (len(body["value"]), body["value_bytes"], len(body["detail"])) == (10, 50, 1000)
    body = msgpack.unpackb(encode_dead_letter(letter(None), 10)[1])
    assert body["value"] is body["value_bytes"] is None


class FakeProducer:
    """As Faust's: flush never raises, what failed stands in the future."""

    def __init__(self, error=None, *, answers=True):
        self.error, self.answers, self.futures = error, answers, []

    async def send(self, *record):
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    async def flush(self):
        for future in self.futures:
            if self.answers and not future.done():
                future.set_exception(self.error) if self.error else future.set_result(None)


def sender(timeout_s=5.0):
    return DeadLetterSender("dead", value_bytes_max=100, timeout_s=timeout_s)


def test_settled_when_the_broker_has_all_letters():
    async def run():
        letters, producer = sender(), FakeProducer()
        await letters.settle()
        await letters.send(producer, [letter(), letter()])
        assert not any(f.done() for f in producer.futures)
        await letters.settle()
        assert all(f.done() for f in producer.futures)
        return letters.sent

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize(
    ("producer", "says"),
    (
        (FakeProducer(ValueError("too large")), "too large"),
        (FakeProducer(answers=False), "Timeout"),
    ),
)
def test_letter_that_does_not_arrive_stops_the_worker(producer, says):
    async def run():
        letters = sender(timeout_s=0.05)
        await letters.send(producer, [letter()])
        await letters.settle()

    with pytest.raises(FaultError, match=says):
        asyncio.run(run())


# Owner


class Pipeline:
    def __init__(self, fail_at=None):
        self.batches, self.fail_at, self.idled = [], fail_at, []

    def assign(self, starts):
        self.starts = starts

    def process(self, batches, now_ms):
        if len(self.batches) == self.fail_at:
            raise ValueError("planted")
        self.batches += batches
        return SimpleNamespace(dead_letters=[letter()] if len(self.batches) == 2 else [])

    def idle(self, silent, elapsed_ms, now_ms):
        self.idled.append((list(silent), elapsed_ms))
        return SimpleNamespace(dead_letters=[])

    def wants(self):
        return frozenset({TP} if len(self.batches) < 2 else ())

    def positions(self):
        return self.starts

    def status(self):
        return {}


class Checkpoints:
    epoch = 4

    def __init__(self):
        self.is_fenced, self.ended, self.finals = False, False, 0

    def due(self):
        return True

    def durable(self):
        return None

    def fenced(self):
        return self.is_fenced

    def final(self):
        self.finals += 1
        return {}

    def close(self):
        self.ended = True


def owner_with(**kwargs):
    engine = SimpleNamespace(pipeline=Pipeline(**kwargs), checkpoints=Checkpoints())
    owner = Owner(engine)
    owner.assign({TP: Position(source_id="s", topic=TP.topic, partition=0, next_offset=10)})
    return owner, engine


def test_owner_drops_records_it_has_and_counts_missing_offsets():
    owner, engine = owner_with()
    assert owner.process(TP, records(8, 9), 0).snapshot_due is False
    owner.process(TP, records(9, 10, 11), 0)
    assert engine.pipeline.batches[0].offset_n.tolist() == [10, 11]
    assert (owner.next_offset[TP], owner.gaps, owner.records) == (12, 0, 2)
    owner.process(TP, records(15), 0)
    assert (owner.next_offset[TP], owner.gaps) == (16, 1)


def test_step_tells_dead_letters_snapshot_and_what_is_wanted():
    owner, _ = owner_with()
    first = owner.process(TP, records(10), 0)
    assert (list(first.dead_letters), first.snapshot_due, owner.wanted) == ([], True, {TP})
    assert owner.process(TP, records(11), 0).dead_letters == [letter()]
    assert owner.wanted == frozenset()


def test_torn_pipeline_takes_nothing_more_and_leaves_no_snapshot():
    owner, engine = owner_with(fail_at=1)
    owner.process(TP, records(10), 0)
    with pytest.raises(ValueError, match="planted"):
        owner.process(TP, records(11), 0)
    assert owner.next_offset[TP] == 11
    with pytest.raises(FaultError, match="failed before"):
        owner.process(TP, records(11), 0)
    assert owner.stop() is None
    assert (engine.checkpoints.finals, engine.checkpoints.ended) == (0, True)


def test_fenced_owner_stops_without_writing():
    owner, engine = owner_with()
    engine.checkpoints.is_fenced = True
    with pytest.raises(FaultError, match="another worker took over"):
        owner.pulse([], 0, 0)
    assert owner.stop() is None
    assert engine.checkpoints.ended


def test_pulse_tells_idle_partitions_only_when_there_are_any():
    owner, engine = owner_with()
    owner.pulse([], 0, 0)
    owner.pulse([TP], 250, 0)
    assert engine.pipeline.idled == [([TP], 250)]


# Event times, log lines, status file


def test_event_time_is_the_latest_of_the_record():
    bodies = [click_body(item_id=1, user_id=2, ts_ms=T + t, kind="click") for t in (5, 9, 1)]
    assert event_time_ms(encode_event("click", bodies[0])) == T + 5
    assert event_time_ms(encode_envelope("clicks", bodies)) == T + 9
    times = np.array([T + 3, T + 8, T + 2])
    columns = {"item_id": np.arange(3), "user_id": 1, "ts_ms": times, "kind": "click"}
    assert event_time_ms(encode_columns("click_columns", 3, columns)) == T + 8
    assert event_time_ms(encode_columns("click_columns", 3, {**columns, "ts_ms": T})) == T
    assert event_time_ms(encode_watermark(T)) == T


@pytest.mark.parametrize("value", (None, b"", b"\xc1", b"\x80", encode_watermark(1)))
def test_event_time_of_what_has_none(value):
    assert event_time_ms(value) is None


def test_watermark_is_told_from_events():
    assert is_watermark(encode_watermark(T))
    click = click_body(item_id=1, user_id=2, ts_ms=T, kind="click")
    assert not is_watermark(encode_event("click", click))
    assert not is_watermark(b"\xc1")


def test_repeated_log_lines_pass_once_in_a_while_and_are_counted():
    now = [0.0]
    limit = RepeatFilter("aiokafka", every_s=30.0, clock=lambda: now[0])

    def line(name, text, *args):
        record = logging.LogRecord(name, logging.ERROR, "", 0, text, args, None)
        return record.getMessage() if limit.filter(record) else None

    assert line("aiokafka.conn", "no %s", 1) == "no 1"
    assert line("aiokafka.conn", "no %s", 2) is None
    assert line("aiokafka.client", "no %s", 2) == "no 2"
    assert [line("stream.x", "no %s", i) for i in range(2)] == ["no 0", "no 1"]
    now[0] = 31.0
    assert line("aiokafka.conn", "no %s", 3) == "no 3 (and 1 more like it)"


def test_status_file_changes_with_the_state_and_not_at_every_call(tmp_path):
    file = tmp_path / "status.json"
    status = StatusFile(str(file))

    async def run():
        for state, n in (("owner", 1), ("owner", 2), ("stopped", 3)):
            await status.write({"state": state, "n": n})
            yield json.loads(file.read_text())["n"]

    async def collect():
        return [n async for n in run()]

    assert asyncio.run(collect()) == [1, 1, 3]
    asyncio.run(StatusFile("").write({"state": "owner"}))
    assert [f.name for f in tmp_path.iterdir()] == ["status.json"]
