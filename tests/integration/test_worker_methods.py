"""Methods live: a worker with all of them is killed, resumes, and equals its replay bit for bit."""

from __future__ import annotations

import signal

import pytest

from infra.snapshot_store import SnapshotStore
from tests.support.kafka_stream import Scene, same_predictions

IMPRESSIONS = 1_500
MODULES = ("simtier", "simscore", "qarm", "make", "em3", "fgcnn", "flip", "linear_content")
pytestmark = pytest.mark.timeout(700)


def scene_of(folder, broker, learner):
    scene = Scene(broker, folder)
    scene.write_log(IMPRESSIONS)
    text = scene.config.read_text()
    if learner == "fgcnn":
        text = text.replace('name = "id_content"', 'name = "fgcnn"')
    else:
        book = folder / "book.safetensors"
        fit = ("--levels", "3", "--size", "4", "--anchors", "30", "--until", "1650000000000")
        scene.run("codes", "fit", str(scene.log), "--config", str(scene.config), "--out",
                  str(book), *fit)  # fmt: skip
        text = text.replace("dim = 16", f'dim = 16\ncodebook = "{book}"', 1)
        text += "".join(f"[ranker.options.{name}]\non = true\n" for name in MODULES)
        text = text.replace(
            "[ranker.options.flip]\non = true\n",
            '[ranker.options.flip]\non = true\nfields = ["item", "colour"]\n'
            'exposure = "item.count"\n',
        )
    scene.config.write_text(text)
    return scene


@pytest.mark.kafka
@pytest.mark.parametrize("learner", ("modules", "fgcnn"))
def test_killed_worker_resumes_and_equals_its_replay(broker, tmp_path, learner):
    scene = scene_of(tmp_path, broker, learner)
    scene.prepare()
    scene.produce()
    store = SnapshotStore(scene.snapshots / "snapshots")
    with scene.worker(every=100) as worker:
        scene.until(worker, lambda: store.latest_valid().ref is not None, timeout_s=240)
        worker.stop(signal.SIGKILL)
    assert 0 < store.manifest(store.latest_valid().ref).meta["samples"] < IMPRESSIONS
    with scene.worker(every=200) as worker:
        scene.until(
            worker,
            lambda: scene.status().get("lag") == 0 and scene.samples() == IMPRESSIONS,
            timeout_s=240,
        )
        assert worker.stop() == 0, worker.tail()
    assert scene.status()["pipeline"]["skipped_nonfinite"] == 0
    assert same_predictions(scene.snapshots, scene.replay()) == IMPRESSIONS
