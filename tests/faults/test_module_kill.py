"""Replays with methods whose state is more than weights, killed and resumed: the same bits."""

from __future__ import annotations

import pytest

from stream.cli import run
from stream.composition import load_config
from tests.support.replays import Killed, logit_hash, replay, weights_of

SETTINGS = {
    "make": ("attention=16", "hidden=[16]", "replays=2", "replay_rows=300"),
    "em3": ("dim=16", "heads=2", "memory_rows=30", "cold_rows=true", "contrast=0.1"),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    sizes = ["--users", "40", "--items", "30", "--impressions", "1600", "--days", "0.3"]
    assert run(["synth", str(path), *sizes, "--envelope", "1"]) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("module", SETTINGS)
def test_killed_and_resumed_is_bit_identical(module, log, tmp_path):
    options = [f"ranker.options.{module}.{setting}" for setting in SETTINGS[module]]
    config = load_config(
        f"synthetic+{module}",
        (
            "stream.batch_size=64",
            "snapshot.every_samples=300",
            "ranker.options.device=cpu",
            *options,
        ),
    )
    whole = replay(config, (log,), tmp_path / "whole")
    for kill in (15, 6):
        with pytest.raises(Killed):
            replay(
                config, (log,), tmp_path / "cut", kill_after=kill, chunk_records=30,
                snapshots=True, resume=True,
            )  # fmt: skip
    result = replay(config, (log,), tmp_path / "cut", chunk_records=71, snapshots=True, resume=True)
    assert result.restored.ref is not None
    assert logit_hash(result.predictions) == logit_hash(whole.predictions)
    assert weights_of(result.composition) == weights_of(whole.composition)
