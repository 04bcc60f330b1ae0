"""A replay that changes its encoder on the way: a version comes in, fades the other, takes over."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from stream.checkpoint import Checkpointer
from stream.codec_write import encode_event, encode_key, item_body
from stream.composition import compose
from stream.record_log import RecordLog, RecordLogWriter
from stream.scoring import Scorer
from stream.version_adoption import adopt_version
from tests.support.replays import Killed, envelope_log, ranked_config, replay, write_config
from tests.support.streams import T0

SNAPSHOT = {"every_samples": 150, "keep": 9}
OLD = ranked_config(snapshot=SNAPSHOT)


def log_with_items(path, folder, **options):
    """Impressions and clicks, and 30 items before them."""
    bare = envelope_log(folder / "bare.parquet", **options)
    table = pq.read_table(bare)
    names = ("topic", "partition", "offset", "timestamp_ms", "key", "value")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    with RecordLogWriter(path, {"items": 1, **RecordLog(bare).partitions}, ordered=False) as out:
        for item in range(30):
            body = item_body(
                item_id=item, ts_ms=T0 - 10_000 + item,
                attributes={"tag": [f"t{item % 5}", f"u{item % 3}"], "size": item},
            )  # fmt: skip
            value = encode_event("item", body)
            out.write("items", 0, item, T0 - 10_000 + item, encode_key(item), value)
        for row in rows:
            out.write(*row)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A log, and the configurations before, during and after the change."""
    folder = tmp_path_factory.mktemp("world")
    log = log_with_items(folder / "log.parquet", folder)
    new = ranked_config(snapshot=SNAPSHOT, items={"dim": 24, "seed": 7})
    file = write_config(folder / "new.toml", new)

    def during(beside, fade):
        items = replace(
            OLD.items, next=str(file), next_beside_samples=beside, next_fade_samples=fade
        )
        return replace(OLD, items=items)

    return log, during, new


def predictions(result):
    table = pq.read_table(result.predictions)
    return {name: table[name].to_numpy() for name in ("request_id", "item_id", "logit")}


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A folder with snapshots of a run that was killed on its way, to be copied."""
    log, _, _ = world
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        replay(OLD, (log,), folder, kill_after=4, snapshots=True, chunk_records=12)
    return folder


def resumed(stopped, folder, config, log):
    shutil.copytree(stopped, folder)
    return replay(config, (log,), folder, resume=True, chunk_records=12, snapshots=True)


def test_a_version_comes_in_without_a_jump(world, stopped, tmp_path):
    """Up to the first step with both versions, every prediction is what it would have been."""
    log, during, _ = world
    reference = predictions(replay(OLD, (log,), tmp_path / "reference"))
    result = resumed(stopped, tmp_path / "both", during(10_000, 10_000), log)
    logits = predictions(result)["logit"]
    assert "begin at 0" in " ".join(result.restored.notes)
    same = int(np.argmax(logits != reference["logit"]))
    assert same >= result.restored.meta["samples"] + 64  # what was known, and one batch more
    assert not np.array_equal(logits, reference["logit"])  # then the new version is learned
    assert np.abs(logits - reference["logit"]).mean() < 0.05
    beside = result.composition.pipeline.learner.beside_samples
    assert beside == 1_200 - result.restored.meta["samples"]


def test_the_version_before_fades_and_is_dropped_without_a_jump(world, stopped, tmp_path):
    log, during, new = world
    folder = tmp_path / "faded"
    result = resumed(stopped, folder, during(64, 256), log)
    assert result.composition.pipeline.learner.present_share == 0
    shown = [{
        "request_id": "r", "user_id": user, "ts_ms": T0 + 10**6,
        "items": [{"item_id": item} for item in range(30)], "context": {"tab": 1},
    } for user in range(20)]  # fmt: skip
    with Scorer(folder / "snapshots") as scorer:
        before = scorer.score(shown)
    adopted = adopt_version(folder / "snapshots", folder / "scratch")
    assert adopted.before != adopted.version
    with Scorer(folder / "snapshots") as scorer:
        after = scorer.score(shown)
        assert scorer.config.items == new.items
    difference = np.abs(before.logit_n - after.logit_n)
    assert len(difference) == 600
    assert difference.max() <= 1e-6
    # A run with the new configuration alone goes on from there, to the end of another day.
    again = replay(new, (log,), folder, resume=True)
    assert again.restored.ref == adopted.ref
    assert again.composition.pipeline.tables == (again.composition.pipeline.items,)


def test_a_version_that_still_counts_is_not_dropped(world, stopped, tmp_path):
    log, during, _ = world
    folder = tmp_path / "early"
    resumed(stopped, folder, during(64, 100_000), log)
    with pytest.raises(InputError, match="the encoder version before still counts"):
        adopt_version(folder / "snapshots", folder / "scratch")


def test_without_a_version_that_comes_in_there_is_nothing_to_adopt(stopped, tmp_path):
    with pytest.raises(InputError, match="no encoder version comes in"):
        adopt_version(stopped / "snapshots", tmp_path)
    with pytest.raises(InputError, match="no valid snapshot"):
        adopt_version(tmp_path / "nowhere", tmp_path)


@pytest.mark.slow
def test_a_run_killed_during_the_fade_goes_on_bit_for_bit(world, stopped, tmp_path):
    log, during, _ = world
    config = during(64, 500)
    whole = resumed(stopped, tmp_path / "whole", config, log)
    shutil.copytree(stopped, tmp_path / "cut")
    options = {"resume": True, "chunk_records": 4, "snapshots": True}
    with pytest.raises(Killed):
        replay(config, (log,), tmp_path / "cut", kill_after=18, **options)
    found = Checkpointer(tmp_path / "cut" / "snapshots", tmp_path / "x").find()
    assert found.meta["samples"] > whole.restored.meta["samples"]
    cut = replay(config, (log,), tmp_path / "cut", **options)
    np.testing.assert_array_equal(predictions(whole)["logit"], predictions(cut)["logit"])


@pytest.mark.slow
def test_a_module_joins_a_replay_by_permission_and_without_a_jump(world, stopped, tmp_path):
    log, _, _ = world
    ranker = {"name": "id_content", "label": "click", "options": {"linear_content": {"on": True}}}
    with pytest.raises(InputError, match=r"ranker\.options\.linear_content\.on"):
        resumed(stopped, tmp_path / "no", ranked_config(snapshot=SNAPSHOT, ranker=ranker), log)
    grown = ranked_config(snapshot=SNAPSHOT, ranker=ranker | {"grow": True})
    result = resumed(stopped, tmp_path / "yes", grown, log)
    assert "module 'linear_content' begins afresh" in result.restored.notes
    reference = predictions(replay(OLD, (log,), tmp_path / "reference"))["logit"]
    logits = predictions(result)["logit"]
    same = int(np.argmax(logits != reference))
    assert same >= result.restored.meta["samples"] + 64
    assert not np.array_equal(logits, reference)


def test_versions_do_not_change_in_silence(world, stopped, tmp_path):
    """Neither another next version, nor none, nor the new one before its time."""
    log, during, new = world
    resumed(stopped, tmp_path / "both", during(64, 100_000), log)
    other = write_config(tmp_path / "other.toml", ranked_config(items={"dim": 24, "seed": 8}))
    base = during(64, 100_000)
    for config, message in (
        (replace(base, items=replace(base.items, next=str(other))), r"items\.next"),
        (OLD, r"items\.next"),
        (new, r"items\.seed"),
    ):
        shutil.copytree(tmp_path / "both", tmp_path / "again")
        with pytest.raises(InputError, match=message):
            replay(config, (log,), tmp_path / "again", resume=True)
        shutil.rmtree(tmp_path / "again")


def test_a_version_is_given_up_by_permission(world, stopped, tmp_path):
    log, during, _ = world
    resumed(stopped, tmp_path / "both", during(10_000, 10_000), log)
    back = replace(OLD, ranker=replace(OLD.ranker, grow=True))
    result = replay(back, (log,), tmp_path / "both", resume=True, snapshots=True)
    assert result.restored.notes == (
        "the encoder version that came in is given up, with what was learned by it",
    )
    assert result.composition.pipeline.learner.net.incoming is None


def test_codes_do_not_change_their_version(world, tmp_path):
    coded = ranked_config(items={"dim": 24, "seed": 7, "codebook": "book.safetensors"})
    file = write_config(tmp_path / "coded.toml", coded)
    with pytest.raises(InputError, match="codes of another encoder version"):
        compose(replace(OLD, items=replace(OLD.items, next=str(file))), None)


def test_the_next_version_must_be_another_one(world, tmp_path):
    same = write_config(tmp_path / "same.toml", OLD)
    items = replace(OLD.items, next=str(same))
    with pytest.raises(InputError, match="must differ from the present"):
        compose(replace(OLD, items=items), None)
