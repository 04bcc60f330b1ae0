"""A worker that learns before its item vectors come: the replay of its record is the same run."""

from __future__ import annotations

import pytest

from stream.record_log import RecordLog, RecordLogWriter
from tests.support.kafka_stream import Scene, same_predictions

IMPRESSIONS = 1_200
ITEMS = 60
pytestmark = pytest.mark.timeout(400)


def halves(scene):
    """The log in two: what comes before its middle record, and the rest."""
    log = RecordLog(scene.log)
    rows = [
        (b.tp, int(b.offset_n[0]), int(b.timestamp_ms_n[0]), b.keys[0], b.values[0])
        for chunk in log.batches(1)
        for b in chunk
    ]
    paths = [scene.folder / "first.parquet", scene.folder / "second.parquet"]
    middle = len(rows) // 2
    for path, part in zip(paths, (rows[:middle], rows[middle:]), strict=True):
        with RecordLogWriter(path, log.partitions, ordered=True) as out:
            for tp, *rest in part:
                out.write(*tp, *rest)
    return paths


@pytest.mark.slow
def test_a_record_replays_with_the_vectors_that_came_late(small_broker, tmp_path):
    scene = Scene(small_broker, tmp_path)
    scene.write_log(IMPRESSIONS)
    first, second = (str(path) for path in halves(scene))
    config = ["--config", str(scene.config)]
    scene.run("topics", *config)
    with scene.worker() as worker:
        scene.run("produce", first, *config, "--skip-items", "--no-watermark")
        scene.until(worker, lambda: scene.samples() >= 64)
        scene.run("produce", first, *config, "--items-only")
        scene.run("embed", *config, "--until-end")
        scene.until(worker, lambda: held(scene) == ITEMS)
        scene.run("produce", second, *config, "--skip-items")
        scene.until(worker, lambda: scene.samples() == IMPRESSIONS)
        assert worker.stop() == 0, worker.tail()
    counts = scene.status()["pipeline"]
    assert (counts["late_vectors"], counts["idle_advances"]) == (ITEMS, 0)
    record = tmp_path / "record.parquet"
    scene.run("record", str(record), *config)
    report = tmp_path / "replay"
    followed = ("--late-vectors", str(scene.snapshots), "--report", str(report))
    scene.run("replay", str(record), *config, *followed)
    assert same_predictions(scene.snapshots, report) == IMPRESSIONS
    with pytest.raises(AssertionError, match="logit"):
        same_predictions(scene.snapshots, scene.replay(record))


def held(scene):
    """Item vectors that the worker has read."""
    counts = scene.status().get("pipeline", {})
    return counts.get("waiting_items", 0) + counts.get("items_applied", 0)
