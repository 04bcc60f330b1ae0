"""Arms side by side see what they would see alone, in one thread or several."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from learners import catalog
from learners.side_by_side import SideBySide
from stream.composition import Variation
from stream.config import RankerConfig
from tests.support.replays import RANKED, envelope_log, ranked_config, replay

ARMS = {
    "net": RankerConfig(name="id_content", label="click", options={"seed": 4}),
    "rates": RankerConfig(name="smoothed_rates", label="click"),
    "other seed": RankerConfig(name="id_content", label="click", options={"seed": 5}),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return envelope_log(tmp_path_factory.mktemp("log") / "log.parquet")


@pytest.mark.parametrize(("threads", "at"), ((1, "settle"), (3, "impression")))
def test_each_arm_predicts_bit_for_bit_what_it_predicts_alone(log, tmp_path, threads, at):
    config = ranked_config(stream=RANKED["stream"] | {"predict_at": at})
    together = replay(config, (log,), tmp_path / "all",
                      variation=Variation(arms=ARMS, threads=threads))  # fmt: skip
    table = pq.read_table(together.predictions)
    for name, ranker in ARMS.items():
        alone = replay(replace(config, ranker=ranker), (log,), tmp_path / name)
        expected = pq.read_table(alone.predictions)["logit"].to_numpy()
        assert table[f"logit.{name}"].to_numpy().tobytes() == expected.tobytes()
    assert len(np.unique(table["logit.net"].to_numpy())) > 100


def test_state_goes_through_parts_and_counts_are_named(log, tmp_path):
    run = replay(ranked_config(), (log,), tmp_path, variation=Variation(arms=ARMS))
    learner = run.composition.pipeline.learner
    spec = run.composition.plan.spec
    other = SideBySide({n: catalog.build(r.name, spec, r.options) for n, r in ARMS.items()})
    parts = {part.name: part for part in learner.export_full()}
    assert {name.partition("/")[0] for name in parts} == set(ARMS)
    other.apply(parts)
    again = {part.name: part for part in other.export_full()}
    for name, part in parts.items():
        for key, array in part.arrays.items():
            assert array.tobytes() == again[name].arrays[key].tobytes(), (name, key)
    assert learner.counts()["net.steps"] == learner.counts()["steps"] > 3


def test_arms_are_on_the_first_ones_device():
    assert SideBySide({"a": object()}).device == torch.device("cpu")
