"""Learners by name: options as TOML gives them, errors that help, and the two baselines."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from infra.state import Part
from learners import catalog
from learners.baselines.smoothed_rates import SmoothedRates
from learners.rankers.id_content import IdContentConfig
from tests.support.batches import BatchMaker, small_spec
from tests.support.close import assert_close


def test_options_reach_nested_configurations():
    config = catalog.config_of(
        "id_content", {"seed": 3, "embedding": {"lr": 1, "init_sigma": 0.5}, "hidden": [8, 4]}
    )
    assert config == dataclasses.replace(
        IdContentConfig(),
        seed=3,
        hidden=(8, 4),
        embedding=dataclasses.replace(IdContentConfig().embedding, lr=1.0, init_sigma=0.5),
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    (
        ("id_contents", {}, "unknown name 'id_contents'; did you mean 'id_content'"),
        ("id_content", {"sead": 1}, "unknown option 'sead'; did you mean 'seed'"),
        ("id_content", {"embedding": {"lrr": 1}}, "id_content.embedding: unknown option 'lrr'"),
        ("id_content", {"seed": "x"}, "seed: Expected int, got str"),
        ("id_content", {"embedding": 3}, "embedding: Expected object, got int"),
        ("id_content", {"embedding": {"lr": -1.0}}, "lr, eps > 0"),
        ("id_content", {"device": "tpu"}, "tpu"),
        ("id_content", {"threads": 0}, "at least 1, got 0"),
        ("id_content", {"hidden": []}, "one layer of one unit"),
        ("id_content", {"cross_rank": 0}, "content_projection >= 0, cross_rank >= 1"),
        ("base_rate", {"prior_rate": 1.5}, "prior_rate < 1"),
        ("smoothed_rates", {"counters": ["user", "user"]}, "named twice"),
        ("smoothed_rates", {"counters": ["uzer"]}, "no rate of 'uzer'.*item, user"),
        ("zzz", {}, "known: base_rate, .*id_content, .*smoothed_rates"),
    ),
)
def test_wrong_configuration_is_one_clear_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.build(name, small_spec(), options)


def test_cuda_in_vain_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        catalog.build("id_content", small_spec(), {"device": "cuda"})


def test_smoothed_rates_adds_prior_and_the_named_counters():
    batch = BatchMaker(small_spec()).batch(5)
    both = catalog.build("smoothed_rates", small_spec(), {}).predict_many(batch)
    assert_close(both, batch.dense_BD[:, :3].sum(1))
    one = catalog.build("smoothed_rates", small_spec(), {"counters": ["item"]}).predict_many(batch)
    assert_close(one, batch.dense_BD[:, 0] + batch.dense_BD[:, 2])
    with pytest.raises(ValueError, match="no dense input of group 'prior'"):
        catalog.build("smoothed_rates", small_spec(prior=False), {})
    assert isinstance(catalog.build("smoothed_rates", small_spec(), {}), SmoothedRates)


def test_base_rate_follows_weighted_samples():
    learner = catalog.build("base_rate", small_spec(), {"prior_rows": 1e-9})
    batch = BatchMaker(small_spec()).batch(50)
    batch.weight_B[:10] = 4.0
    batch.row_kind_B[40:] = 1
    learner.learn_many(batch)
    weight = batch.weight_B[:40].numpy()
    rate = (weight * batch.labels_BK[:40, 1].numpy()).sum() / weight.sum()
    assert learner.predict_many(batch)[0].item() == pytest.approx(
        math.log(rate / (1 - rate)), abs=1e-5
    )


def test_ranker_without_prior_input_starts_from_the_running_rate():
    spec = small_spec(prior=False)
    options = {"device": "cpu", "adam": {"lr": 1e-5}}  # the net's own part stays near 0
    learner, stream = catalog.build("id_content", spec, options), BatchMaker(spec)
    batch = stream.batch(64)
    assert learner.predict_many(batch).abs().max() == 0
    learner.learn_many(batch)
    clicks = batch.labels_BK[:, 1].sum().item() + 5
    rate = clicks / (64 + 10)
    probe = learner.predict_many(stream.batch(64))
    assert probe.mean().item() == pytest.approx(math.log(rate / (1 - rate)), abs=0.001)


def test_parts_of_another_configuration_are_refused():
    learner = catalog.build("id_content", small_spec(), {"device": "cpu"})
    parts = {part.name: part for part in learner.export_full()}
    other = catalog.build("id_content", small_spec(), {"device": "cpu", "hidden": [16]})
    with pytest.raises(ValueError, match=r"another net or other inputs \(.*mlp"):
        other.apply(parts)
    renamed = dataclasses.replace(
        parts["ids.4"], meta={**parts["ids.4"].meta, "fields": ["tab", "colour"]}
    )
    with pytest.raises(ValueError, match="the configuration has"):
        learner.apply({**parts, "ids.4": renamed})
    del parts["ids.8"]
    with pytest.raises(KeyError, match=r"ids\.8"):
        learner.apply(parts)


def test_server_cannot_learn():
    learner = catalog.build("id_content", small_spec(), {"device": "cpu"})
    stream = BatchMaker(small_spec())
    learner.learn_many(stream.batch(32))
    serve: dict[str, Part] = {
        part.name: part for part in learner.export_full() if part.part_class == "serve"
    }
    server = catalog.build("id_content", small_spec(), {"device": "cpu"})
    server.apply(serve)
    with pytest.raises(RuntimeError, match="'serve' parts only"):
        server.learn_many(stream.batch(8))


def test_prediction_hardly_jumps_when_an_id_gets_its_row():
    spec = small_spec(admit_after=1)
    # Without averaged weights: an average goes on moving towards weights that stand still.
    options = {
        "device": "cpu", "embedding": {"init_sigma": 5e-4}, "adam": {"averaged_rows": 0},
    }  # fmt: skip
    learner, stream = catalog.build("id_content", spec, options), BatchMaker(spec)
    for _ in range(100):
        learner.learn_many(stream.batch(64))
    batch = stream.batch(8)
    batch.ids_BF[:, 0] = torch.from_numpy(np.random.default_rng(0).integers(1, 2**62, 8))
    batch.label_mask_BK[:] = 1
    learner.learn_many(batch)  # the first sighting: still the shared row
    batch.weight_B[:] = 0.0  # counts, but teaches nothing; nor may Adam's momentum
    learner.adam.config = dataclasses.replace(learner.adam.config, lr=1e-12)
    before, rows = torch.sigmoid(learner.predict_many(batch)), learner.counts()["ids8_rows"]
    learner.learn_many(batch)
    assert learner.counts()["ids8_rows"] == rows + 8
    after = torch.sigmoid(learner.predict_many(batch))
    assert 0 < (after - before).abs().max() < 2e-3


def test_batch_without_content_is_one_without_vectors():
    learner, stream = (
        catalog.build("id_content", small_spec(), {"device": "cpu"}),
        BatchMaker(small_spec()),
    )
    for _ in range(5):
        learner.learn_many(stream.batch(40))
    batch = stream.batch(11)
    none = len(batch.content.table_VC) - 1
    missing = dataclasses.replace(
        batch.content,
        target_B=torch.full((11,), none),
        missing_B=torch.ones(11, dtype=torch.bool),
        bags_BL=tuple(torch.full_like(bag, none) for bag in batch.content.bags_BL),
    )
    expected = learner.predict_many(dataclasses.replace(batch, content=missing))
    assert torch.equal(learner.predict_many(dataclasses.replace(batch, content=None)), expected)
