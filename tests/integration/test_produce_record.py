"""`millrace produce` and `millrace record`: the very bytes go in and come out."""

from __future__ import annotations

import pytest

from stream.codec_write import click_body, encode_event, encode_watermark
from stream.record_log import RecordLog, RecordLogWriter
from tests.support.kafka_stream import Scene
from tests.support.kafka_topics import make_topics

T = 1_650_000_000_000
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=(pytest.param("kafka", marks=pytest.mark.kafka), "embedded"))
def scene(request, tmp_path):
    name = "broker" if request.param == "kafka" else "small_broker"
    return Scene(request.getfixturevalue(name), tmp_path)


def click(ts_ms, user=1):
    return encode_event(
        "click", click_body(item_id=1, user_id=user, ts_ms=ts_ms, kind="click", request_id=5)
    )


def write(scene, records, counts=(2, 2)):
    """A log of (role, partition, ts, key, value)."""
    topics = {scene.topics[r]: n for r, n in zip(("impressions", "clicks"), counts, strict=True)}
    offsets: dict[tuple[str, int], int] = {}
    with RecordLogWriter(scene.log, topics, ordered=True) as log:
        for role, partition, ts_ms, key, value in records:
            at = offsets.get((role, partition), 0)
            offsets[role, partition] = at + 1
            log.write(scene.topics[role], partition, at, ts_ms, key, value)


def rows(path):
    return [
        (b.tp, int(b.offset_n[i]), int(b.timestamp_ms_n[i]), b.keys[i], b.values[i])
        for chunk in RecordLog(path).batches(1)
        for b in chunk
        for i in range(len(b))
    ]


def test_bytes_partitions_and_order_are_kept(scene, tmp_path):
    sent = [
        ("clicks", 1, T + 5, b"1", click(T + 5)),
        ("impressions", 0, T + 5, None, b""),
        ("clicks", 0, T + 7, b"k", None),
        ("clicks", 1, T + 9, None, b"\xc1" * 300_000),
        ("clicks", 1, T + 9, b"", click(T + 2)),
        ("clicks", 0, T + 20, b"1", click(T + 20)),
        ("impressions", 1, T + 30, None, None),
    ]
    write(scene, sent)
    config = ["--config", str(scene.config)]
    scene.run("topics", *config)
    assert "sent 7 records" in scene.run("produce", str(scene.log), *config, "--no-watermark")
    out = tmp_path / "back.parquet"
    assert "wrote 7 records" in scene.run("record", str(out), *config)
    back = rows(out)
    for role in ("impressions", "clicks"):
        for p in range(2):
            got = [(k, v) for tp, _, _, k, v in back if tp == (scene.topics[role], p)]
            assert got == [(k, v) for r, q, _, k, v in sent if (r, q) == (role, p)]
    assert all(ts > T for _, _, ts, _, _ in back)
    # By partition clock: what has no time goes with its partition, then impressions first.
    names = {name: role for role, name in scene.topics.items()}
    assert [(names[tp.topic], tp.partition, o) for tp, o, *_ in back] == [
        ("impressions", 0, 0), ("impressions", 1, 0), ("clicks", 0, 0),
        ("clicks", 1, 0), ("clicks", 1, 1), ("clicks", 1, 2), ("clicks", 0, 1),
    ]  # fmt: skip
    assert RecordLog(out).partitions[scene.topics["item_vectors"]] == 2


def test_watermarks_end_every_partition_and_record_waits_for_them(scene, tmp_path):
    write(scene, [("clicks", 0, T, b"1", click(T))])
    config = ["--config", str(scene.config)]
    scene.run("topics", *config)
    scene.run("produce", str(scene.log), *config)
    out = tmp_path / "back.parquet"
    scene.run("record", str(out), *config, "--until-watermark", "--no-items")
    ends = {tp: value for tp, _, _, _, value in rows(out)}
    close = encode_watermark(T + 20_000 + 2_000 + 600_000 + 1)
    assert ends == {(scene.topics[r], p): close for r in ("impressions", "clicks") for p in (0, 1)}


@pytest.mark.kafka
def test_speed_spreads_the_records_over_time(broker, tmp_path):
    scene = Scene(broker, tmp_path)
    write(scene, [("clicks", 0, T + 100 * i, b"1", click(T + 100 * i)) for i in range(200)])
    config = ["--config", str(scene.config)]
    scene.run("topics", *config)
    scene.run("produce", str(scene.log), *config, "--speed", "20", "--no-watermark")
    scene.run("record", str(tmp_path / "back.parquet"), *config, "--seconds", "0")
    times = [ts for _, _, ts, _, _ in rows(tmp_path / "back.parquet")]
    # 19.9 s of events at 20 × in chunks of 64: the last chunk is due after 0.96 s.
    assert len(times) == 200
    # The first record's time is a moment after the clock of the pace began, on a busy machine.
    assert max(times) - min(times) >= 500
    assert "expected a factor" in scene.run(
        "produce", str(scene.log), *config, "--speed", "0", code=2
    )


@pytest.mark.kafka
def test_what_does_not_fit_is_refused_before_anything_is_sent(broker, tmp_path):
    scene = Scene(broker, tmp_path)
    write(scene, [("clicks", 0, T, b"1", click(T))], counts=(2, 3))
    config = ["--config", str(scene.config)]
    assert "does not exist" in scene.run("produce", str(scene.log), *config, code=2)
    assert "does not exist" in scene.run("record", str(tmp_path / "x"), *config, code=2)
    make_topics(broker, {scene.topics["impressions"]: 2, scene.topics["clicks"]: 2})
    text = scene.run("produce", str(scene.log), *config, code=2)
    assert "has 2 partitions, the log" in text
    assert "has 3" in text
    assert "no such file" in scene.run("produce", str(tmp_path / "none.parquet"), *config, code=2)
    both = scene.run("produce", str(scene.log), *config, "--items-only", "--skip-items", code=2)
    assert "leave nothing to send" in both


@pytest.mark.kafka
def test_topics_are_created_once_and_checked(broker, tmp_path):
    scene = Scene(broker, tmp_path)
    config = ["--config", str(scene.config)]
    assert "does not exist" in scene.run("topics", *config, "--check", code=2)
    assert scene.run("topics", *config).count("created") == 6
    again = scene.run("topics", *config)
    assert "created" not in again
    assert "as they should be" in again
    other = ["--set", "topics.partitions=5", "--set", "topics.snapshot_age_hours=85"]
    text = scene.run("topics", *config, *other)
    assert "has 2 partitions, configured are 5" in text
    assert "less than twice the age of a snapshot" in text
    swapped = ["--set", f"topics.items={scene.topics['dead_letters']}",
               "--set", f"topics.dead_letters={scene.topics['items']}"]  # fmt: skip
    assert "cleanup.policy=delete, expected compact" in scene.run(
        "topics", *config, *swapped, code=2
    )
