"""The embedder on a real broker: what item events become, killed and resumed or not."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from embeddings.store_reader import StoreReader
from embeddings.vector_codec import decode_item_vector
from infra.errors import InputError
from stream.codec_items import ItemEvent
from stream.composition import embedder_of, load_config
from stream.events import Item
from stream.item_intake import content_of
from stream.kafka.embed import EmbedOptions, run_embedder
from stream.kafka.embed_sources import embed_sources
from stream.kafka.settings import load_shell
from tests.support.item_topic import by_item, rows_of, send_items
from tests.support.kafka_process import Child
from tests.support.kafka_stream import T0_MS, Scene
from tests.support.kafka_topics import make_topics, send, send_in_transaction

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]
PARTITIONS = 2
IMPRESSIONS = 400
LONG = " ".join(f"word{n % 97}" for n in range(900))  # some 10 ms of encoding


def scene_on(broker, folder):
    scene = Scene(broker, folder)
    text = scene.config.read_text().replace("dim = 16", 'dim = 16\nencoders = ["text"]')
    small = "\n[embed]\nbatch_items = 4\nqueue_items_max = 16\n"
    scene.config.write_text(text + small)
    scene.run("topics", "--config", str(scene.config))
    return scene


def event(item, version=0, **more):
    attributes = {"colour": item % 5, "price": more.pop("price", 10)}
    body = {"item_id": item, "ts_ms": T0_MS - 100_000 + more.pop("at", 0)}
    return {**body, "attributes": attributes, "title": f"item {item} v{version}", "text": LONG,
            **more}  # fmt: skip


def gone(item, at):
    return {"item_id": item, "ts_ms": T0_MS - 100_000 + at, "deleted": True}


def history(items):
    """Creations, then new texts, new prices, the same again, deletions and new creations."""
    events = [event(i) for i in range(items)]
    events += [event(i, 1, at=1) for i in range(0, items, 3)]
    events += [event(i, int(i % 3 == 0), price=12, at=2) for i in range(0, items, 2)]
    events += [event(i, int(i % 3 == 0), price=12 if i % 2 == 0 else 10, at=3)
               for i in range(0, items, 5)]  # fmt: skip
    events += [gone(i, 4) for i in range(0, items, 7)]
    return events + [event(i, 2, at=5) for i in range(0, items, 14)]


def expected(scene, events, *overrides):
    """Rows by item, as an embedder makes them that sees one event after the other."""
    embedder = embedder_of(load_config(str(scene.config), overrides))
    contents = [content_of(ItemEvent(0, 0, Item(**body))) for body in events]
    rows = embedder.embed(contents).rows
    found = {}
    for row in rows:
        found.setdefault(row.item_id, []).append(row.value)
    return found, embedder.version


def written(scene):
    return by_item(rows_of(scene.broker, scene.topics["item_vectors"], PARTITIONS))


def same_rows(found, wanted):
    """Every row once, in order, bit for bit."""
    assert {i: len(rows) for i, rows in found.items()} == {i: len(v) for i, v in wanted.items()}
    for item, rows in found.items():
        assert rows == [decode_item_vector(value) for value in wanted[item]], item


def embedder_process(scene, *args):
    return Child(["-m", "stream.cli", "embed", "--config", str(scene.config), *args])


def until_rows(scene, child, least):
    """Wait until so many rows are on the topic."""
    consumer = KafkaConsumer(bootstrap_servers=scene.broker)
    tps = [TopicPartition(scene.topics["item_vectors"], p) for p in range(PARTITIONS)]
    deadline, pause = time.monotonic() + 90, threading.Event()
    try:
        while (there := sum(consumer.end_offsets(tps).values())) < least:
            assert child.process.poll() is None, f"it ended at {there} rows: {child.tail()}"
            assert time.monotonic() < deadline, f"{there} of {least} rows in 90 s: {child.tail()}"
            pause.wait(0.02)
    finally:
        consumer.close()


def embed(scene, *args):
    text = scene.run("embed", "--config", str(scene.config), *args, "--json")
    return json.loads(text.splitlines()[-1])


@pytest.mark.slow
def test_killed_and_resumed_each_event_leads_to_its_row_once_and_to_the_worker(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    events = history(70)
    wanted, _ = expected(scene, events)
    # In parts: however late a kill comes, something is left to be done after it.
    for least, part in ((40, events[:80]), (80, events[80:130])):
        send_items(broker, scene.topics["items"], PARTITIONS, part)
        with embedder_process(scene, "--state", str(tmp_path / "state")) as child:
            until_rows(scene, child, least)
            child.stop(signal.SIGKILL)
    send_items(broker, scene.topics["items"], PARTITIONS, events[130:])
    before = sum(map(len, written(scene).values()))
    assert 80 <= before < sum(map(len, wanted.values()))
    counts = embed(scene, "--until-end")  # without --state: from the topic
    same_rows(written(scene), wanted)
    assert counts["vectors"] == sum(map(len, wanted.values())) - before
    assert counts["encoded"] + counts["reused"] + counts["deleted"] == counts["vectors"]
    assert embed(scene, "--until-end", "--state", str(tmp_path / "state"))["items"] == 0

    scene.write_log(IMPRESSIONS)
    with scene.worker() as worker:
        scene.produce()
        scene.until(worker, lambda: scene.samples() == IMPRESSIONS)
        assert worker.stop() == 0, worker.tail()
    (store,) = (scene.snapshots).rglob("vectors/CURRENT")
    reader = StoreReader(store.parent)
    held = {item.item_id: item for item in reader.items()}
    reader.close()
    last = {item: rows[-1] for item, rows in written(scene).items() if not rows[-1].deleted}
    assert held == last
    assert len(last) == 70 - 10 + 5


def test_a_price_a_duplicate_and_a_redelivery_encode_nothing(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    first = [event(i) for i in range(6)]
    send_items(broker, scene.topics["items"], PARTITIONS, first)
    assert embed(scene, "--until-end")["encoded"] == 6
    more = [event(0, price=11), event(1), gone(2, 1), gone(2, 2), event(3, 1), event(3, 1, price=9)]
    send_items(broker, scene.topics["items"], PARTITIONS, more)
    counts = embed(scene, "--until-end")
    assert {k: v for k, v in counts.items() if v} == {
        "items": 6, "vectors": 4, "encoded": 1, "reused": 2, "deleted": 1, "unchanged": 2
    }  # fmt: skip
    same_rows(written(scene), expected(scene, first + more)[0])
    repriced = written(scene)[0]
    assert repriced[1].data == repriced[0].data
    assert repriced[1].attributes["price"] == 11
    again = embed(scene, "--backfill")
    assert {k: v for k, v in again.items() if v} == {"items": 12, "done": 10, "unchanged": 2}


@pytest.mark.slow
def test_backfill_of_a_new_version_is_whole_shows_how_far_it_is_and_resumes(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    events = history(60)
    send_items(broker, scene.topics["items"], PARTITIONS, events)
    embed(scene, "--until-end")
    old = len(rows_of(broker, scene.topics["item_vectors"], PARTITIONS))
    other = ("--set", "items.seed=1")
    wanted, version = expected(scene, events, "items.seed=1")
    with embedder_process(scene, "--backfill", *other) as child:
        until_rows(scene, child, old + 20)
        child.stop(signal.SIGKILL)
    text = scene.run("embed", "--config", str(scene.config), "--backfill", *other)
    assert f"embed: {len(events)} items, 100.0%" in text
    rows = rows_of(broker, scene.topics["item_vectors"], PARTITIONS)
    same_rows(by_item([row for row in rows if row.encoder == version]), wanted)
    # Offsets are committed: the running embedder goes on behind it.
    assert embed(scene, "--until-end", *other)["items"] == 0


@pytest.mark.slow
def test_embedders_share_partitions_and_hand_them_over(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    events = history(40)
    third = len(events) // 3
    topic = scene.topics["items"]
    with embedder_process(scene) as first:
        send_items(broker, topic, PARTITIONS, events[:third])
        until_rows(scene, first, 5)
        with embedder_process(scene) as second:
            send_items(broker, topic, PARTITIONS, events[third : 2 * third])
            second.line("embedding 1 of 2 partitions")
            text = scene.run("embed", "--config", str(scene.config), "--backfill", code=2)
            assert "another embedder of group" in text
            send_items(broker, topic, PARTITIONS, events[2 * third :])
            wanted, _ = expected(scene, events)
            assert first.stop() == 0, first.tail()
            until_rows(scene, second, sum(map(len, wanted.values())))
            assert second.stop() == 0, second.tail()
    same_rows(written(scene), wanted)


def test_a_row_that_a_stalled_embedder_sends_too_late_does_not_stay_the_last(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    topic = scene.topics["item_vectors"]
    send_items(broker, scene.topics["items"], PARTITIONS, [event(2), event(2, 1)])
    embed(scene, "--until-end")
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    records, deadline = [], time.monotonic() + 60
    while len(records) < 2:
        assert time.monotonic() < deadline, f"{len(records)} of 2 rows came in 60 s"
        records += [r for batch in consumer.poll(1_000).values() for r in batch]
    consumer.close()
    send(broker, topic, [(0, records[0].key, records[0].value, records[0].headers)])
    with embedder_process(scene) as child:
        until_rows(scene, child, 4)
        assert child.stop() == 0, child.tail()
    titles = expected(scene, [event(2), event(2, 1)])[0][2]
    rows = written(scene)[2]
    assert rows == [decode_item_vector(titles[n]) for n in (0, 1, 0, 1)]


def test_what_cannot_be_used_of_an_item_is_told(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    both = 'items.encoders=["text","vector:clip"]'
    options = "items.encoder_options={'vector:clip'={dim=4}}"
    items = [event(1, vectors={"clip": [1.0, 2.0]}), event(2, vectors={"clip": [1.0, 2, 3, 4]})]
    send_items(broker, scene.topics["items"], PARTITIONS, items)
    text = scene.run(
        "embed", "--config", str(scene.config), "--until-end", "--set", both, "--set", options
    )
    assert "2 items, 2 vectors written" in text
    assert "1 refused as supplied_vector" in text


def test_markers_behind_the_last_row_do_not_keep_an_embedder_waiting(broker, tmp_path):
    scene = scene_on(broker, tmp_path)
    send_items(broker, scene.topics["items"], PARTITIONS, [event(0), event(1)])
    embed(scene, "--until-end")
    send_in_transaction(broker, scene.topics["item_vectors"], [(0, b"of another", b"v", ())])
    send_items(broker, scene.topics["items"], PARTITIONS, [event(0, 1)])
    assert embed(scene, "--until-end")["encoded"] == 1


@pytest.mark.slow
def test_a_stop_without_a_broker_ends_soon_and_what_was_under_way_is_made_again(
    own_kafka, tmp_path
):
    broker = own_kafka.address
    scene = scene_on(broker, tmp_path)
    send_items(broker, scene.topics["items"], PARTITIONS, [event(n) for n in range(200)])
    with embedder_process(scene) as child:
        until_rows(scene, child, 4)
        own_kafka.kill()
        child.line("marking coordinator dead")
        assert child.stop() == 0, child.tail()
        assert "Traceback" not in child.text
    own_kafka.start()
    embed(scene, "--until-end")
    rows = written(scene)
    assert sorted(rows) == list(range(200))


def test_an_items_topic_made_anew_ends_the_embedder(broker, tmp_path):
    """The new one's offsets would look like those of events that are done."""
    scene = scene_on(broker, tmp_path)
    topic = scene.topics["items"]
    send_items(broker, topic, PARTITIONS, [event(0), event(1)])
    config = load_shell([scene.config], (), broker=None)
    whole = load_config(str(scene.config), ())
    sources = embed_sources(config)
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.delete_topics([topic])
    admin.close()
    make_topics(broker, {topic: PARTITIONS})
    options = EmbedOptions(watch_every_s=0.2)
    with pytest.raises(InputError, match=f"topic '{topic}' was deleted and made anew"):
        asyncio.run(run_embedder(config, embedder_of(whole), sources, options))
    send_items(broker, topic, PARTITIONS, [event(1, 1)])
    assert embed(scene, "--until-end")["encoded"] == 1
