"""The batch transport on a broker: what a batch holds, where it starts, what a rebalance does."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.support.kafka_process import Child
from tests.support.kafka_topics import make_topics, send, send_numbers, unique

pytestmark = pytest.mark.timeout(400)
APP = "tests/support/kafka_batch_app.py"


def app(broker, group, file, *topics, **options):
    return Child(
        [APP, broker, group, str(file), *topics],
        env={"MILLRACE_TEST_APP": json.dumps(options), "PYTHONPATH": "."},
    )


def received(child):
    return sum(e["n"] for e in child.events if e["event"] == "batch")


def exact(file, topics, partitions, each):
    """Every record of every partition once: count and sum of offsets agree."""
    saved = json.loads(file.read_text())
    want = {"next": each, "count": each, "sum": each * (each - 1) // 2}
    assert saved == {f"{t}/{p}": want for t in topics for p in range(partitions)}


@pytest.mark.kafka
@pytest.mark.parametrize("compression", (None, "gzip", "snappy", "lz4", "zstd"))
def test_batch_holds_the_records_untouched(broker, tmp_path, compression):
    topic = unique("t")
    make_topics(broker, {topic: 1})
    before_ms = time.time_ns() // 1_000_000
    records = [
        (0, b"u1", b"hello", [("trace", b"00-1")]),
        (0, None, b"", []),
        (0, b"gone", None, []),
        (0, b"u2", b"x" * 500, [("a", b"1"), ("a", b"2")]),
    ]
    send(broker, topic, records, compression=compression)
    with app(broker, unique("g"), tmp_path / "p", topic, show=True) as child:
        child.until(lambda c: received(c) == len(records))
        got = [r for e in child.events if e["event"] == "batch" for r in e["records"]]
        assert child.stop() == 0
    assert [r["offset"] for r in got] == [0, 1, 2, 3]
    assert [(r["key"], r["value"]) for r in got] == [
        ("u1", "hello"), (None, ""), ("gone", None), ("u2", "x" * 500)
    ]  # fmt: skip
    assert [r["headers"] for r in got] == [[["trace", "00-1"]], [], [], [["a", "1"], ["a", "2"]]]
    assert all(r["timestamp"] >= before_ms for r in got)


@pytest.mark.kafka
def test_restart_continues_at_own_positions_not_at_committed_ones(broker, tmp_path):
    topics = [unique("imp"), unique("clk")]
    make_topics(broker, dict.fromkeys(topics, 2))
    for topic in topics:
        send_numbers(broker, topic, 2, 3000)
    file, group = tmp_path / "p", unique("g")
    with app(broker, group, file, *topics, poll=500, slow_s=0.02) as child:
        child.until(lambda c: received(c) >= 4000)
        child.stop(signal.SIGKILL)
    saved = json.loads(file.read_text())
    with app(broker, group, file, *topics, poll=500) as child:
        starts = child.event("assigned")["starts"]
        assert starts == {key: p["next"] for key, p in saved.items()}
        child.until(lambda c: received(c) == 12_000 - sum(p["count"] for p in saved.values()))
        assert child.stop() == 0
        assert not [e for e in child.events if e["event"] == "gap"]
    exact(file, topics, 2, 3000)


@pytest.mark.kafka
def test_second_member_stands_by_and_takes_over(broker, tmp_path):
    topics = [unique("imp"), unique("clk")]
    make_topics(broker, dict.fromkeys(topics, 2))
    for topic in topics:
        send_numbers(broker, topic, 2, 2000)
    file, group = tmp_path / "p", unique("g")
    with app(broker, group, file, *topics, poll=100, slow_s=0.05) as first:
        first.event("batch")
        with app(broker, group, file, *topics, poll=500) as second:
            first.event("revoked")
            first.until(lambda c: sum(e["event"] == "assigned" for e in c.events) == 2)
            assert not second.events
            first.stop(signal.SIGKILL)
            taken = second.event("assigned")["starts"]
            assert len(taken) == 4
            second.until(lambda c: received(c) == 8000 - sum(taken.values()))
            assert second.stop() == 0
            assert not [e for e in (*first.events, *second.events) if e["event"] == "gap"]
    exact(file, topics, 2, 2000)


@pytest.mark.kafka
def test_sigterm_waits_for_the_batch_in_hand(broker, tmp_path):
    topic = unique("t")
    make_topics(broker, {topic: 1})
    send_numbers(broker, topic, 1, 1000)
    file = tmp_path / "p"
    with app(broker, unique("g"), file, topic, poll=100, slow_s=0.5) as child:
        child.event("batch")
        assert child.stop() == 0
        trained = received(child)
    saved = json.loads(file.read_text())[f"{topic}/0"]
    assert saved["count"] == saved["next"] == trained


def test_embedded_broker_restart_continues(small_broker, tmp_path):
    topics = [unique("imp"), unique("clk")]
    make_topics(small_broker, dict.fromkeys(topics, 2))
    for topic in topics:
        send_numbers(small_broker, topic, 2, 1000)
    file, group = tmp_path / "p", unique("g")
    with app(small_broker, group, file, *topics, poll=200, slow_s=0.05) as child:
        child.until(lambda c: received(c) >= 800)
        assert child.stop() == 0
    with app(small_broker, group, file, *topics) as child:
        child.until(lambda c: json.loads(file.read_text()) and received(c) and _done(file, 4000))
        assert child.stop() == 0
    exact(file, topics, 2, 1000)


def _done(file, total):
    return sum(p["count"] for p in json.loads(file.read_text()).values()) == total
