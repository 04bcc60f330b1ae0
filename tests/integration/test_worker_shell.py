"""The worker's shell on a real broker, around a pipeline that only counts."""

from __future__ import annotations

import json
import signal
import threading
import time

import msgpack
import pytest
from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.admin import KafkaAdminClient

from tests.support.kafka_process import Child
from tests.support.kafka_topics import make_topics, send, send_in_transaction, send_numbers, unique

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]
SCRIPT = "tests/support/kafka_fake_worker.py"


@pytest.fixture
def names(broker):
    """Fresh topics by role."""
    return make_names(broker)


def make_names(broker):
    """Topics with two partitions each."""
    tag = unique("")
    topics = {
        "impressions": f"imp{tag}",
        "clicks": f"clk{tag}",
        "items": f"itm{tag}",
        "item_vectors": f"vec{tag}",
        "dead_letters": f"dead{tag}",
        "predictions": f"pred{tag}",
    }
    make_topics(broker, {name: 1 if "dead" in name else 2 for name in topics.values()})
    return topics


def worker(broker, names, folder, *, group=None, **options):
    group = group or f"group-{names['impressions']}"
    return Child(
        [SCRIPT, broker, group, str(folder)],
        env={
            "MILLRACE_TEST_WORKER": json.dumps({"topics": names, **options}),
            "PYTHONPATH": ".",
        },
    )


def total(child):
    return max((e["total"] for e in child.events if e["event"] == "batch"), default=0)


def fill(broker, names, each):
    for topic in ("impressions", "clicks"):
        send_numbers(broker, names[topic], 2, each)


def until_status(folder, ready):
    """The worker's status, once it is so."""
    deadline, pause, status = time.monotonic() + 60, threading.Event(), {}
    while not ready(status):
        assert time.monotonic() < deadline, f"not in 60 s: {status}"
        pause.wait(0.05)
        if (file := folder / "status.json").exists():
            status = json.loads(file.read_text())
    return status


def proved(folder, each):
    """Count and sum of offsets of the newest snapshot: every record once."""
    newest = max((int(f.parent.name), f) for f in folder.glob("*/snapshot.json"))[1]
    positions = json.loads(newest.read_text())["positions"]
    assert len(positions) == 4
    for p in positions:
        assert (p["next_offset"], p["count"], p["offset_sum"]) == (
            each, each, each * (each - 1) // 2
        )  # fmt: skip


def read_all(broker, topic):
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest")
    try:
        tp = KafkaPartition(topic, 0)
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        end = consumer.end_offsets([tp])[tp]
        records = []
        deadline = time.monotonic() + 20
        while len(records) < end and time.monotonic() < deadline:
            records += [r for batch in consumer.poll(500).values() for r in batch]
        return records
    finally:
        consumer.close()


def test_graceful_stop_writes_a_snapshot_and_a_restart_goes_on_from_it(broker, names, tmp_path):
    fill(broker, names, 2000)
    with worker(broker, names, tmp_path, slow_s=0.2, in_turn=True) as child:
        child.until(lambda c: total(c) >= 3000)
        assert child.stop() == 0, child.tail()
        first = total(child)
    with worker(broker, names, tmp_path, in_turn=True) as child:
        child.event("assign")
        child.until(lambda c: total(c) == 8000 - first)
        assert child.stop() == 0, child.tail()
        starts = child.event("assign")["starts"]
    assert sum(starts.values()) == first
    proved(tmp_path, 2000)


def test_commits_follow_durable_snapshots(broker, names, tmp_path):
    fill(broker, names, 300)
    group = unique("commits")
    with worker(broker, names, tmp_path, group=group, every=100) as child:
        child.until(lambda c: total(c) == 1200)
        assert child.stop() == 0, child.tail()
    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        committed = admin.list_group_offsets({group: None})[group]
    finally:
        admin.close()
    assert {(tp.topic, tp.partition): at.offset for tp, at in committed.items()} == {
        (names[role], p): 300 for role in ("impressions", "clicks") for p in range(2)
    }


def test_stop_with_the_broker_down_is_bounded_and_writes_the_snapshot(own_kafka, tmp_path):
    topics = make_names(own_kafka.address)
    fill(own_kafka.address, topics, 300)
    with worker(own_kafka.address, topics, tmp_path) as child:
        child.until(lambda c: total(c) == 1200)
        own_kafka.kill()
        child.line("marking coordinator dead")
        assert child.stop() == 0, child.tail()
        assert "ended by force" not in child.text
        assert "Traceback" not in child.text
    proved(tmp_path, 300)


def test_kill_in_mid_flight_loses_and_repeats_nothing(broker, names, tmp_path):
    fill(broker, names, 3000)
    for _ in range(2):
        with worker(broker, names, tmp_path, slow_s=0.2, every=1000) as child:
            child.until(lambda c: any(e["event"] == "snapshot" for e in c.events))
            child.stop(signal.SIGKILL)
    with worker(broker, names, tmp_path) as child:
        left = 12_000 - sum(child.event("assign")["starts"].values())
        assert 0 < left < 12_000
        child.until(lambda c: total(c) == left)
        assert child.stop() == 0, child.tail()
    proved(tmp_path, 3000)


def test_second_worker_stands_by_takes_over_and_owns_alone(broker, names, tmp_path):
    fill(broker, names, 1000)
    with worker(broker, names, tmp_path, slow_s=0.1, batch=100, every=400) as first:
        first.event("snapshot")
        with worker(broker, names, tmp_path) as second:
            second.line("standing by")
            # However long that took, there is more for the first one to do now.
            before = total(first)
            fill(broker, names, 1000)
            first.until(lambda c: total(c) > before)
            assert not second.events
            first.stop(signal.SIGKILL)
            left = 8000 - sum(second.event("assign")["starts"].values())
            second.until(lambda c: total(c) == left)
            assert second.stop() == 0, second.tail()
    proved(tmp_path, 2000)


def test_stopped_owner_hands_over_and_a_paused_one_ends(broker, names, tmp_path):
    fill(broker, names, 500)
    with worker(broker, names, tmp_path) as first, worker(broker, names, tmp_path) as second:
        owner = _first_to_own(first, second)
        other = second if owner is first else first
        other.line("standing by")
        owner.until(lambda c: total(c) == 2000)
        owner.process.send_signal(signal.SIGSTOP)
        other.event("assign")
        owner.process.send_signal(signal.SIGCONT)
        assert owner.wait() == 1
        assert "took over" in owner.text or "lost all partitions" in owner.text
        other.until(lambda c: total(c) == 2000)
        assert other.stop() == 0, other.tail()
    proved(tmp_path, 500)


def _first_to_own(first, second):
    deadline, pause = time.monotonic() + 90, threading.Event()
    while time.monotonic() < deadline:
        for child in (first, second):
            if any(e["event"] == "assign" for e in child.events):
                return child
        pause.wait(0.05)
    raise AssertionError(f"nobody owns: {first.tail()} --- {second.tail()}")


def test_failing_pipeline_ends_the_process_with_code_1_and_no_snapshot(broker, names, tmp_path):
    fill(broker, names, 1000)
    with worker(broker, names, tmp_path, fail_at=1500) as child:
        assert child.wait() == 1
        assert "ValueError: planted failure" in child.text
    assert not list(tmp_path.glob("*/snapshot.json"))


def test_dead_letters_arrive_before_a_snapshot_passes_them(broker, names, tmp_path):
    bad = [(0, b"k", b"bad one", ()), (1, b"k", None, ()), (0, b"k", b"good", ())]
    send(broker, names["impressions"], bad)
    send(broker, names["impressions"], [(0, b"k", b"bad" + b"x" * 700_000, ())])
    with worker(broker, names, tmp_path, every=1) as child:
        child.until(lambda c: total(c) == 4)
        child.event("snapshot")
        assert child.stop() == 0, child.tail()
    letters = [msgpack.unpackb(r.value) for r in read_all(broker, names["dead_letters"])]
    places = {(x["topic"], x["partition"], x["offset"]): x for x in letters}
    imp = names["impressions"]
    assert places.keys() == {(imp, 0, 0), (imp, 1, 0), (imp, 0, 2)}
    assert places[imp, 0, 0]["value"] == b"bad one"
    assert places[imp, 0, 0]["reason"] == "malformed"
    assert places[imp, 1, 0]["value"] is None
    cut = places[imp, 0, 2]
    assert (len(cut["value"]), cut["value_bytes"]) == (500_000, 700_003)


def test_missing_topic_and_unequal_partitions_are_wrong_input(broker, names, tmp_path):
    with worker(broker, {**names, "clicks": unique("nowhere")}, tmp_path) as child:
        assert child.wait() == 2
        assert "does not exist" in child.lines[-1]
    odd = unique("odd")
    make_topics(broker, {odd: 3})
    with worker(broker, {**names, "clicks": odd}, tmp_path) as child:
        assert child.wait() == 2
        assert "both need the same number" in child.lines[-1]


def test_group_of_another_program_is_refused(broker, names, tmp_path):
    group = unique("foreign")
    other = KafkaConsumer(names["impressions"], bootstrap_servers=broker, group_id=group)
    try:
        deadline = time.monotonic() + 60
        while not other.assignment():
            assert time.monotonic() < deadline, "the other program got no partition"
            other.poll(200)
        with worker(broker, names, tmp_path, group=group) as child:
            assert child.wait() == 2
            assert "is another program in it?" in child.text
    finally:
        other.close()


def test_broker_that_is_away_is_one_clear_line(names, tmp_path):
    with worker("127.0.0.1:1", names, tmp_path, connect_s=2.0) as child:
        assert child.wait() == 1
        assert "127.0.0.1:1 does not answer" in child.text
        assert len(child.lines) == 1


def test_recreated_topic_is_refused_and_new_log_keeps_the_model(broker, names, tmp_path):
    fill(broker, names, 300)
    with worker(broker, names, tmp_path) as child:
        child.until(lambda c: total(c) == 1200)
        assert child.stop() == 0, child.tail()
    again = unique("imp2")
    make_topics(broker, {again: 2})
    renamed = {**names, "impressions": again}
    snapshot = next(tmp_path.glob("*/snapshot.json"))
    snapshot.write_text(snapshot.read_text().replace(names["impressions"], again))
    send_numbers(broker, again, 2, 100)
    with worker(broker, renamed, tmp_path, group=unique("g")) as child:
        assert child.wait() == 2
        assert "of another log" in child.lines[-1]
        assert "--new-log" in child.lines[-1]
    with worker(broker, renamed, tmp_path, group=unique("g"), new_log=True) as child:
        child.until(lambda c: total(c) == 200)
        starts = child.event("assign")["starts"]
        assert child.stop() == 0, child.tail()
    assert starts[f"{again}/0"] == 0
    assert starts[f"{names['clicks']}/0"] == 300


def test_position_behind_the_end_of_the_log_is_refused(broker, names, tmp_path):
    fill(broker, names, 300)
    with worker(broker, names, tmp_path) as child:
        child.until(lambda c: total(c) == 1200)
        assert child.stop() == 0, child.tail()
    snapshot = next(tmp_path.glob("*/snapshot.json"))
    saved = snapshot.read_text()
    ahead = json.loads(saved)
    ahead["positions"][0]["next_offset"] = 5000
    snapshot.write_text(json.dumps(ahead))
    with worker(broker, names, tmp_path) as child:
        assert child.wait() == 2
        assert "ends before the snapshot's position" in child.lines[-1]
    other = json.loads(saved)
    other["positions"][0]["last_hash"] += 1
    for file in tmp_path.glob("*/snapshot.json"):
        file.write_text(json.dumps(other))
    with worker(broker, names, tmp_path) as child:
        assert child.wait() == 2
        assert "is not the one that the snapshot has read" in child.lines[-1]


def test_a_topic_made_anew_under_a_running_worker_ends_it_and_a_standby(broker, names, tmp_path):
    fill(broker, names, 300)
    first, beside = tmp_path / "first", tmp_path / "beside"
    beside.mkdir()
    with worker(broker, names, first, watch_s=0.5) as child:
        child.until(lambda c: total(c) == 1200)
        with worker(broker, names, beside, watch_s=0.5) as standby:
            standby.line("standing by")
            admin = KafkaAdminClient(bootstrap_servers=broker)
            admin.delete_topics([names["impressions"]])
            admin.close()
            assert child.wait() == 2, child.tail()
            assert standby.wait() == 2, standby.tail()
            for one in (child, standby):
                assert "was deleted" in one.text or "0 of 2 partitions of 'imp" in one.text
    make_topics(broker, {names["impressions"]: 2})
    with worker(broker, names, first) as child:
        assert child.wait() == 2, child.tail()
        assert "of another log" in child.text


def test_markers_of_transactions_are_no_records_to_be_waited_for(broker, names, tmp_path):
    for role in ("impressions", "clicks", "item_vectors"):
        send_in_transaction(broker, names[role], [(p, b"k", b"v", ()) for p in (0, 1)])
    with worker(broker, names, tmp_path, idle_ms=500) as child:
        child.until(lambda c: total(c) == 4)
        status = until_status(tmp_path, lambda status: status.get("lag") == 0)
        assert set(status["positions"].values()) == {1}
        child.until(lambda c: [e for e in c.events if e["event"] == "idle" and e["silent"] == 4])
        assert child.stop() == 0, child.tail()


def test_item_vectors_are_read_before_events_and_go_on_where_they_stopped(broker, names, tmp_path):
    send_numbers(broker, names["item_vectors"], 2, 400)
    fill(broker, names, 100)
    with worker(broker, names, tmp_path) as child:
        child.until(lambda c: total(c) == 400)
        kinds = [e["event"] for e in child.events if e["event"] in {"items", "batch"}]
        items = [e["total"] for e in child.events if e["event"] == "items"]
        assert items[-1] == 800
        assert kinds.index("batch") == len(items)
        assert child.stop() == 0, child.tail()
    send(broker, names["item_vectors"], [(0, b"k", b"new", ())])
    with worker(broker, names, tmp_path) as child:
        child.until(lambda c: sum(e["n"] for e in c.events if e["event"] == "items") >= 3)
        assert child.stop() == 0, child.tail()
        # The record at each position is read again, as it may be one of several events.
        assert sum(e["n"] for e in child.events if e["event"] == "items") == 3


def test_silent_partitions_are_idle_only_at_their_end(broker, names, tmp_path):
    fill(broker, names, 50)
    with worker(broker, names, tmp_path, idle_ms=500) as child:
        child.until(lambda c: total(c) == 200)
        child.until(lambda c: [e for e in c.events if e["event"] == "idle" and e["silent"] == 4])
        elapsed = [e["elapsed_ms"] for e in child.events if e["event"] == "idle"]
        child.until(lambda c: sum(e["event"] == "idle" for e in c.events) > 3)
        assert child.stop() == 0, child.tail()
    assert elapsed[0] == 0


def test_status_file_says_what_is_left(broker, names, tmp_path):
    fill(broker, names, 400)
    with worker(broker, names, tmp_path) as child:
        child.until(lambda c: total(c) == 1600)
        status = until_status(tmp_path, lambda status: status.get("lag") == 0)
        assert status["state"] == "owner"
        assert set(status["positions"].values()) == {400}
        assert child.stop() == 0, child.tail()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"


def test_a_standby_tells_that_it_lives_and_stops_at_once(broker, names, tmp_path):
    beside = tmp_path / "beside"
    beside.mkdir()
    with worker(broker, names, tmp_path / "first") as owner:
        owner.event("assign")
        with worker(broker, names, beside) as standby:
            standby.line("standing by")
            first = until_status(beside, lambda status: status.get("state") == "standby")
            until_status(beside, lambda status: status.get("time_ms", 0) > first["time_ms"])
            assert standby.stop() == 0, standby.tail()
        assert until_status(beside, bool)["state"] == "stopped"
        assert owner.stop() == 0, owner.tail()
