"""The whole worker on a broker: what it learns from the stream is what a replay learns."""

from __future__ import annotations

import json
import signal

import msgpack
import pytest

from infra.snapshot_store import SnapshotStore
from tests.support.kafka_stream import Scene, same_predictions
from tests.support.kafka_topics import send

IMPRESSIONS = 3000
# Several processes that import torch, one after the other.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """The report folder of a replay; names of topics have no part in it."""
    scene = Scene("127.0.0.1:1", tmp_path_factory.mktemp("replay"))
    scene.write_log(IMPRESSIONS)
    return scene.replay()


def scene_on(broker, folder):
    scene = Scene(broker, folder)
    scene.write_log(IMPRESSIONS)
    scene.prepare()
    return scene


def finished(scene, name="one"):
    status = scene.status(name)
    return status.get("lag") == 0 and scene.samples(name) == IMPRESSIONS


def check_proof(scene):
    """Arithmetic of the last snapshot: every record and every sample once."""
    store = SnapshotStore(scene.snapshots / "snapshots")
    found = store.latest_valid()
    assert not found.damaged
    meta = store.manifest(found.ref).meta
    assert meta["samples"] == meta["ledger"]["samples"] == IMPRESSIONS
    for p in meta["positions"]:
        n = p["next_offset"]
        assert p["count"] == n
        assert p["offset_sum"] == n * (n - 1) // 2
    return meta


@pytest.mark.kafka
def test_streamed_run_equals_replay_bit_for_bit(broker, replayed, tmp_path):
    scene = scene_on(broker, tmp_path)
    with scene.worker() as worker:
        scene.produce()
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    status = scene.status()
    assert status["state"] == "stopped"
    assert status["pipeline"]["late_vectors"] == status["pipeline"]["idle_advances"] == 0
    assert status["offset_gaps"] == 0
    assert same_predictions(scene.snapshots, replayed) == IMPRESSIONS
    check_proof(scene)


@pytest.mark.kafka
def test_recorded_topics_replay_to_the_same(broker, replayed, tmp_path):
    scene = scene_on(broker, tmp_path)
    scene.produce()
    recorded = tmp_path / "recorded.parquet"
    config = ["--config", str(scene.config)]
    scene.run("record", str(recorded), *config, "--until-watermark")
    assert "is there already" in scene.run("record", str(recorded), *config, code=2)
    assert same_predictions(replayed, scene.replay(recorded)) == IMPRESSIONS


@pytest.mark.kafka
def test_killed_at_three_points_it_still_equals_replay(broker, replayed, tmp_path):
    scene = scene_on(broker, tmp_path)
    scene.produce()
    for least in (300, 1200, 2200):
        with scene.worker(every=200) as worker:
            scene.until(worker, lambda least=least: scene.samples() >= least)
            worker.stop(signal.SIGKILL)
    with scene.worker(every=200) as worker:
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    assert same_predictions(scene.snapshots, replayed) == IMPRESSIONS
    check_proof(scene)


@pytest.mark.kafka
def test_standby_takes_over_and_the_whole_equals_replay(broker, replayed, tmp_path):
    scene = scene_on(broker, tmp_path)
    with scene.worker("one", every=200) as one:
        scene.until(one, lambda: scene.status().get("state") == "owner")
        with scene.worker("two", every=200) as two:
            scene.until(two, lambda: scene.status("two").get("state") == "standby")
            scene.produce()
            scene.until(one, lambda: scene.samples() >= 1000)
            one.stop(signal.SIGKILL)
            scene.until(two, lambda: finished(scene, "two"))
            assert two.stop() == 0, two.tail()
    assert same_predictions(scene.snapshots, replayed) == IMPRESSIONS
    check_proof(scene)


@pytest.mark.kafka
def test_broker_restart_in_mid_stream_changes_nothing(own_kafka, replayed, tmp_path):
    scene = scene_on(own_kafka.address, tmp_path)
    with scene.worker(every=500) as worker:
        scene.until(worker, lambda: scene.status().get("state") == "owner")
        scene.produce("--no-watermark")
        scene.until(worker, lambda: scene.samples() >= 200)
        own_kafka.stop()
        own_kafka.start()
        topics = {scene.topics[t] for t in ("impressions", "clicks")}
        watermark = msgpack.packb({"v": 1, "type": "watermark", "ts_ms": 1_700_000_000_000})
        for topic in topics:
            send(own_kafka.address, topic, [(p, None, watermark, ()) for p in range(2)])
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    assert same_predictions(scene.snapshots, replayed) == IMPRESSIONS
    check_proof(scene)


@pytest.mark.kafka
def test_bad_records_go_to_dead_letters_and_the_rest_is_learned(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    bad = [(0, b"1", b"\xc1 not msgpack", ()), (1, b"2", None, ()), (0, b"3", b"\x80", ())]
    send(broker, scene.topics["impressions"], bad)
    scene.produce()
    with scene.worker() as worker:
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    status = scene.status()
    assert status["pipeline"]["rejected"] == status["dead_letters"] == 3
    reasons = status["pipeline"]["rejected_by_reason"]
    assert reasons["null_value"] == 1
    assert sum(reasons.values()) == 3


def test_embedded_broker_streams_the_same(small_broker, replayed, tmp_path):
    scene = scene_on(small_broker, tmp_path)
    with scene.worker() as worker:
        scene.produce()
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    assert same_predictions(scene.snapshots, replayed) == IMPRESSIONS


@pytest.mark.kafka
def test_wrong_input_ends_with_code_2_and_one_line(broker, tmp_path):
    scene = Scene(broker, tmp_path)
    config = ["--config", str(scene.config), "--snapshots", str(tmp_path / "s")]
    assert "does not exist" in scene.run("worker", *config, code=2)
    assert "not built" in scene.run("worker", *config, "--role", "join", code=2)
    scene.run("topics", "--config", str(scene.config))
    (tmp_path / "file").touch()
    config[-1] = str(tmp_path / "file")
    assert "cannot be written" in scene.run("worker", *config, code=2)
    scene.write_log(10)
    wrong = ["--config", str(scene.config), "--set", f"topics.impressions={scene.topics['items']}"]
    assert "nothing to send" not in scene.run("produce", str(scene.log), *wrong, code=2)


@pytest.mark.kafka
def test_embedder_resumes_deletes_and_rejects(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    config = ["--config", str(scene.config)]
    again = scene.run("embed", *config, "--until-end")
    assert "0 items, 0 vectors" in again
    gone = {"v": 1, "type": "item", "item_id": 0, "ts_ms": 1_650_000_000_000, "deleted": True}
    records = [(0, b"0", msgpack.packb(gone), ()), (0, b"0", b"junk", ())]
    send(broker, scene.topics["items"], records)
    text = scene.run("embed", *config, "--until-end")
    assert "1 items, 1 vectors written, 0 unchanged, 1 rejected" in text
    scene.produce()
    with scene.worker() as worker:
        scene.until(worker, lambda: finished(scene))
        assert worker.stop() == 0, worker.tail()
    assert json.loads((tmp_path / "one.json").read_text())["pipeline"]["items_applied"] == 61
