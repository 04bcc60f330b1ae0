"""FTRL-proximal: golden values, its kinship with Adagrad, and the hashed rows beneath."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learners import catalog
from learners.baselines.ftrl import Penalty, learn, weight
from learners.baselines.hashed_rows import HashedRows, HashedRowsConfig
from tests.support.batches import BatchMaker, small_spec


def steps(gradients, penalty):
    """z, n and weight of one coordinate after each of these gradients.

    The row's label and weight are chosen such that the loss has just this gradient.
    """
    z, n, touched = np.zeros(1), np.zeros(1), np.zeros(1, np.int32)
    for g in gradients:
        p = 1 / (1 + np.exp(-weight(z[0], n[0], penalty)))
        label = 0.0 if g > 0 else 1.0
        learn(
            np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32), np.array([label]),
            np.array([g / (p - label)]), z, n, touched, 1, penalty,
        )  # fmt: skip
        yield z[0], n[0], weight(z[0], n[0], penalty)


def test_golden_values():
    # Worked by hand from McMahan et al. 2013, Algorithm 1.
    got = list(steps([1.0, -0.4, 0.9], Penalty(0.1, 1.0, 0.5, 0.01)))
    expected = [
        (1.0, 1.0, -0.0249875), (0.6192486, 1.16, -0.0057385), (1.5379869, 1.97, -0.0431673),
    ]  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_without_penalties_it_is_adagrad():
    gradients = np.random.default_rng(3).normal(size=1_000)
    w = n = 0.0
    for g, (_, _, got) in zip(gradients, steps(gradients, Penalty(0.1, 1.0, 0, 0)), strict=True):
        n += g * g
        w -= 0.1 / (1 + np.sqrt(n)) * g
        assert got == pytest.approx(w, abs=1e-10)


def test_threshold_is_symmetric():
    penalty = Penalty(0.1, 1.0, 0.5, 0.01)
    for z in (0.2, 0.5, 0.6, 3.0):
        assert weight(-z, 2.0, penalty) == -weight(z, 2.0, penalty)
        assert (weight(z, 2.0, penalty) == 0) == (z <= 0.5)


def rows_of(batch, **options):
    rows = HashedRows(small_spec(), HashedRowsConfig(bits=16, **options))
    return rows, *rows(batch, batch.dense_BD.numpy())


def test_repeated_entries_of_a_bag_are_one_feature():
    batch = BatchMaker(small_spec()).batch(1)
    bag = torch.tensor([[5, 9, 5, 5, 0, 0, 0]])
    batch = dataclasses.replace(batch, bags_BL=(bag, torch.zeros(1, 3, dtype=torch.int64)))
    _, index, value = rows_of(batch, dense=False)
    own = {int(i): float(v) for i, v in zip(index[0, 4:], value[0, 4:], strict=True) if v}
    assert sorted(own.values()) == [1.0, 3.0]
    assert value[0, :4].tolist() == [1.0] * 4


def test_a_bag_has_weights_apart_from_its_field():
    batch = BatchMaker(small_spec()).batch(1)
    bag = torch.zeros(1, 7, dtype=torch.int64)
    bag[0, 0] = batch.ids_BF[0, 1]
    batch = dataclasses.replace(batch, bags_BL=(bag, batch.bags_BL[1]))
    _, index, value = rows_of(batch, dense=False)
    assert value[0, 4] == 1
    assert index[0, 4] != index[0, 2]


def test_crosses_name_pairs_of_fields():
    batch = BatchMaker(small_spec()).batch(30)
    _, alone, _ = rows_of(batch, bags=False, dense=False)
    _, some, _ = rows_of(batch, bags=False, dense=False, crosses=(("user", "tab"),))
    _, all_, _ = rows_of(batch, bags=False, dense=False, crosses=(("*",),))
    assert (alone.shape[1], some.shape[1], all_.shape[1]) == (4, 5, 7)
    pairs = {tuple(row) for row in batch.ids_BF[:, [0, 2]].tolist()}
    assert len(set(some[:, 4].tolist())) == len(pairs)


def test_dense_inputs_keep_their_places():
    batch = BatchMaker(small_spec()).batch(3)
    rows, index, value = rows_of(batch, bags=False)
    assert index[:, -4:].tolist() == [[1, 2, 3, 4]] * 3
    np.testing.assert_array_equal(value[:, -4:], batch.dense_BD.numpy())
    assert rows.size == 1 + 4 + 2**16
    assert index[:, 1:4].min() >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"alpha": 0}, "alpha > 0"),
        ({"rows": {"bits": 40}}, "bits: 1 to 28"),
        ({"rows": {"crosses": [["user"]]}}, "pairs of id fields"),
        ({"rows": {"crosses": [["user", "colour"]]}}, "no id field 'colour'"),
    ),
)
def test_wrong_configuration_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        catalog.build("ftrl", small_spec(), options)


def test_snapshot_of_other_buckets_is_refused():
    small = catalog.build("ftrl", small_spec(), {"rows": {"bits": 8}})
    large = catalog.build("ftrl", small_spec(), {"rows": {"bits": 9}})
    with pytest.raises(ValueError, match="use the configuration of the snapshot"):
        large.apply({part.name: part for part in small.export_full()})
