"""River's models behind the learner contract: the same numbers as River alone, and resets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from river import facto, linear_model, optim

from learners import catalog
from learners.baselines.hashed_rows import HashedRows, HashedRowsConfig, rows_as_dicts
from tests.support.batches import BatchMaker, small_spec

ROWS = {"bits": 12, "dense": False}


def dicts(batch):
    rows = HashedRows(small_spec(), HashedRowsConfig(bits=12, dense=False))
    return rows_as_dicts(*rows(batch, batch.dense_BD.numpy()))


@pytest.mark.parametrize(
    ("options", "optimizer"),
    (
        ({"optimizer": "ftrl", "lr": 0.1}, optim.FTRLProximal(alpha=0.1, l2=0.0)),
        ({"optimizer": "adagrad", "lr": 0.1, "l2": 1e-4}, optim.AdaGrad(0.1)),
        ({"optimizer": "sgd", "lr": 0.05, "l1": 1e-5}, optim.SGD(0.05)),
    ),
)
def test_it_is_rivers_logistic_regression(options, optimizer):
    learner = catalog.build("river_logistic", small_spec(), {"rows": ROWS, **options})
    penalties = {k: v for k, v in options.items() if k in {"l1", "l2"}}
    river = linear_model.LogisticRegression(optimizer, **penalties)
    stream = BatchMaker(small_spec())
    for _ in range(3):
        batch = stream.batch(20)
        rows = dicts(batch)
        alone = [river.predict_proba_one(x)[True] for x in rows]
        got = torch.sigmoid(learner.learn_many(batch).logits_B.double())
        np.testing.assert_allclose(got, alone, rtol=1e-5)
        for x, y in zip(rows, batch.labels_BK[:, 1].tolist(), strict=True):
            river.learn_one(x, bool(y))


def test_it_is_rivers_factorization_machine():
    options = {"rows": {**ROWS, "bags": False}, "factors": 3, "lr": 0.1, "factor_lr": 0.1}
    learner = catalog.build("river_fm", small_spec(), options)
    river = facto.FMClassifier(3, optim.AdaGrad(0.1), optim.SGD(0.1))
    river.latents = learner.factors_RK.copy()
    stream = BatchMaker(small_spec())
    for _ in range(3):
        batch = stream.batch(16)
        rows = [dict(list(x.items())[:3]) for x in dicts(batch)]  # ids alone
        alone = [river.predict_proba_one(x)[True] for x in rows]
        got = torch.sigmoid(learner.learn_many(batch).logits_B.double())
        np.testing.assert_allclose(got, alone, rtol=1e-5)
        for x, y in zip(rows, batch.labels_BK[:, 1].tolist(), strict=True):
            river.learn_one(x, bool(y))


def flipped(batch):
    labels_BK = 1 - batch.labels_BK
    return dataclasses.replace(batch, labels_BK=labels_BK)


def test_the_model_starts_anew_when_its_loss_goes_up():
    options = {"rows": ROWS, "lr": 0.3, "drift": "adwin", "drift_delta": 0.01}
    learner = catalog.build("river_logistic", small_spec(), options)
    stream = BatchMaker(small_spec())
    for _ in range(12):
        learner.learn_many(stream.batch(64))
    assert learner.counts()["resets"] == 0
    for _ in range(12):
        learner.learn_many(flipped(stream.batch(64)))
    assert learner.counts()["resets"] >= 1
    without = catalog.build("river_logistic", small_spec(), {**options, "drift": "none"})
    without.apply({part.name: part for part in learner.export_full()})
    for _ in range(3):
        without.learn_many(stream.batch(64))
    assert without.counts()["resets"] == learner.counts()["resets"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    (
        ("river_logistic", {"lr": 0}, "lr > 0"),
        ("river_logistic", {"optimizer": "adam"}, "Invalid enum value 'adam'"),
        ("river_logistic", {"optimizer": "sgd", "l1": 0.1, "l2": 0.1}, "with ftrl only"),
        ("river_logistic", {"drift": "ddm"}, "Invalid enum value 'ddm'"),
        ("river_fm", {"factors": 0}, "1 <= factors"),
    ),
)
def test_wrong_configuration_is_one_clear_error(name, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.build(name, small_spec(), options)


def test_factors_of_another_seed_are_refused():
    parts = {p.name: p for p in catalog.build("river_fm", small_spec(), {}).export_full()}
    other = catalog.build("river_fm", small_spec(), {"seed": 2})
    with pytest.raises(ValueError, match="use the configuration of the snapshot"):
        other.apply(parts)


def test_window_of_another_river_is_refused():
    learner = catalog.build("river_logistic", small_spec(), {"rows": ROWS})
    parts = {p.name: p for p in learner.export_full()}
    old = parts["river.adwin"]
    parts["river.adwin"] = dataclasses.replace(old, meta={**old.meta, "river": "0.1"})
    with pytest.raises(ValueError, match=r"written by River 0\.1"):
        learner.apply(parts)
