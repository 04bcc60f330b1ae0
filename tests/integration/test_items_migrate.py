"""A running model changes its encoder on a real broker, killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from kafka import KafkaConsumer, TopicPartition

from infra.snapshot_store import SnapshotStore
from stream.composition import embedder_of, load_config
from stream.kafka.settings import load_shell
from stream.kafka.version_topic import read_versions, remove_version
from stream.record_log import RecordLog, RecordLogWriter
from stream.version_rows import VersionRows
from tests.support.item_topic import send_items
from tests.support.kafka_process import Child
from tests.support.kafka_stream import T0_MS, Scene

pytestmark = pytest.mark.timeout(400)
IMPRESSIONS = 900
ITEMS = 60
LONG = " ".join(f"word{n % 97}" for n in range(900))  # some 10 ms of encoding
LATE = 40  # items from here on take ten times as long: time for a kill before them


def halves(scene):
    """The log's impressions and clicks in two logs, the second of later times."""
    table = pq.read_table(scene.log)
    names = ("topic", "partition", "offset", "timestamp_ms", "key", "value")
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    shown = [row for row in rows if row[0] != scene.topics["items"]]
    partitions = RecordLog(scene.log).partitions
    paths = []
    for n, part in enumerate((shown[: len(shown) // 2], shown[len(shown) // 2 :])):
        paths.append(scene.folder / f"half{n}.parquet")
        with RecordLogWriter(paths[-1], partitions, ordered=True) as log:
            for row in part:
                log.write(*row)
    return paths


def item(n):
    return {
        "item_id": n, "ts_ms": T0_MS - 10_000, "attributes": {"colour": n % 5},
        "title": f"item {n}", "text": LONG if n < LATE else LONG * 10,
    }  # fmt: skip


class Topic:
    """What is on item-vectors."""

    def __init__(self, scene):
        self.broker, self.name = scene.broker, scene.topics["item_vectors"]
        self.tps = [TopicPartition(self.name, p) for p in range(2)]

    def end(self):
        with self.asked() as end:
            return end()

    @contextlib.contextmanager
    def asked(self):
        """A function that tells the records there are, again and again."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker)
        try:
            yield lambda: sum(consumer.end_offsets(self.tps).values())
        finally:
            consumer.close()

    def rows(self):
        rows, consumer = VersionRows(), KafkaConsumer(bootstrap_servers=self.broker)
        try:
            consumer.assign(self.tps)
            consumer.seek_to_beginning(*self.tps)
            ends = consumer.end_offsets(self.tps)
            deadline = time.monotonic() + 30
            while any(consumer.position(tp) < ends[tp] for tp in self.tps):
                assert time.monotonic() < deadline, "the topic was not read within 30 s"
                for records in consumer.poll(200).values():
                    rows.take((record.key, record.value) for record in records)
        finally:
            consumer.close()
        return rows


def migrate(scene, state, *args, code=0):
    text = scene.run("items", "migrate", "--config", str(scene.config), "--state", str(state),
                     *map(str, args), "--json", code=code)  # fmt: skip
    return json.loads(text.splitlines()[-1]) if code == 0 else text


def learned(scene, worker, samples):
    """The worker reads all there is; its status once it has stopped."""
    scene.until(worker, lambda: scene.status().get("lag") == 0 and scene.samples() >= samples)
    assert worker.stop() == 0, worker.tail()
    return scene.status()


def backfill_killed_and_resumed(scene, topic, new, state):
    """Vectors of the new version for all items, each made once."""
    before, version = (embedder_of(load_config(str(f), ())).version for f in (scene.config, new))
    args = ["--config", str(scene.config), "--state", str(state), "--to", str(new)]
    with topic.asked() as end, Child(["-m", "stream.cli", "items", "migrate", *args]) as child:
        deadline, pause = time.monotonic() + 90, threading.Event()
        while (there := end()) < ITEMS + 12:
            assert child.process.poll() is None, f"it ended at {there} rows: {child.tail()}"
            assert time.monotonic() < deadline, f"{there} rows in 90 s: {child.tail()}"
            pause.wait(0.02)
        child.stop(signal.SIGKILL)
    covered, _ = topic.rows().coverage(before, version)
    assert 12 <= covered < ITEMS, "it was killed too late to show anything"
    shown = migrate(scene, state, "--status")
    assert (shown["phase"], shown["version"]) == ("backfill", version)
    assert "go on with --to first" in migrate(scene, state, "--adopt", state, code=2)
    ready = migrate(scene, state)
    assert (ready["phase"], ready["covered"], ready["items"]) == ("ready", ITEMS, ITEMS)
    assert topic.end() == 2 * ITEMS, "a vector was made twice"
    scene.run("embed", "--config", str(new), "--until-end")  # follows from there on
    assert topic.end() == 2 * ITEMS


@pytest.mark.kafka
@pytest.mark.slow
def test_an_encoder_is_changed_without_stopping_for_it(broker, tmp_path):
    scene = Scene(broker, tmp_path)
    scene.write_log(IMPRESSIONS)
    first, second = halves(scene)
    config, new, state = scene.config, tmp_path / "new.toml", tmp_path / "state"
    new.write_text(
        config.read_text().replace("dim = 16", 'dim = 24\nseed = 7\nencoders = ["text"]')
        + "\n[embed]\nbatch_items = 2\nqueue_items_max = 4\n"
    )
    config.write_text(config.read_text() + "\n[embed]\nbatch_items = 2\nqueue_items_max = 4\n")
    before, version = (embedder_of(load_config(str(f), ())).version for f in (config, new))
    scene.run("topics", "--config", str(config))
    send_items(broker, scene.topics["items"], 2, [item(n) for n in range(ITEMS)])
    scene.run("embed", "--config", str(config), "--until-end")
    topic = Topic(scene)
    assert topic.rows().coverage(before, version) == (0, ITEMS)

    backfill_killed_and_resumed(scene, topic, new, state)

    # A worker of the present version passes the new one's vectors by.
    with scene.worker() as worker:
        scene.run("produce", str(first), "--config", str(config), "--skip-items", "--no-watermark")
        status = learned(scene, worker, 200)
    assert status["dead_letters"] == 0
    counts = status["pipeline"]
    assert counts["items_applied"] == counts["vectors_of_other_versions"] == ITEMS
    sooner = counts["samples"]

    # Both beside, the present one fading.
    more = ("--set", f"items.next={new}", "--set", "items.next_beside_samples=64",
            "--set", "items.next_fade_samples=128")  # fmt: skip
    with scene.worker("one", *more) as worker:
        scene.run("produce", str(second), "--config", str(config), "--skip-items")
        status = learned(scene, worker, IMPRESSIONS)
    assert status["dead_letters"] == 0
    assert status["pipeline"]["present_version_share"] == 0
    assert "no score changes" in worker.text
    store = SnapshotStore(scene.snapshots / "snapshots")
    both = store.latest_valid().ref
    parts, _ = store.load(both)
    assert parts["dense"].meta["present_share"] == 0
    assert parts["dense"].meta["beside_samples"] == IMPRESSIONS - sooner
    assert parts["items.next"].meta["encoder"] == version

    # The new one alone: the worker as it is configured from now on.
    adopted = migrate(scene, state, "--adopt", scene.snapshots / "snapshots")
    assert adopted["phase"] == "adopted"
    scene.config = new
    with scene.worker() as worker:
        scene.until(worker, lambda: scene.status().get("lag") == 0)
        assert worker.stop() == 0, worker.tail()
    status = scene.status()
    assert scene.samples() == IMPRESSIONS
    assert status["dead_letters"] == 0
    parts, meta = store.load(store.latest_valid().ref)
    assert parts["items"].meta["encoder"] == version
    assert "items.next" not in parts
    assert meta["config"]["items"]["dim"] == 24

    # The rows of the version before go.
    scene.config = config
    done = migrate(scene, state, "--finish")
    assert (done["phase"], done["removed"]) == ("done", ITEMS)
    assert topic.rows().versions == [version]
    assert migrate(scene, state, "--finish")["removed"] == ITEMS, "nothing more was to be removed"
    logits = pq.read_table(scene.snapshots / "predictions.parquet")["logit"].to_numpy()
    assert len(logits) == IMPRESSIONS
    assert np.isfinite(logits).all()


def test_versions_are_counted_and_removed_on_the_embedded_broker_too(small_broker, tmp_path):
    """Its ends are those of the last batch's first record."""
    scene = Scene(small_broker, tmp_path)
    scene.write_log(1)
    scene.prepare()
    config = load_shell([scene.config], (), broker=None)
    version = embedder_of(load_config(str(scene.config), ())).version
    told = []

    def versions():
        return asyncio.run(read_versions(config, 2, lambda *counts: told.append(counts)))

    assert len(versions().items(version)) == ITEMS
    assert told[-1] == (ITEMS, ITEMS)
    assert asyncio.run(remove_version(config, 2, version, lambda *_: None)) == ITEMS
    assert versions().versions == []
