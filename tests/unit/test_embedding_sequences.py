"""Sequences of an embedding table: rows one by one, and the updates that their gradients make."""

from __future__ import annotations

import numpy as np
import torch

from learners.embedding_table import EmbeddingTable, TableConfig
from learners.feature_spec import Bag, FeatureSpec, IdField
from learners.id_kernels import LEARN_AND_COUNT, READ
from tests.support.close import assert_close

B, L, D = 5, 3, 4
SPEC = FeatureSpec(
    ids=(IdField(name="item", dim=D),),
    bag_fields=(IdField(name="code", dim=D, reader="m"),),
    bags=(
        Bag(name="bag", field="code", length=2, is_history=False, reader="m"),
        Bag(name="sequence", field="code", length=L, is_history=False, reader="m", sequence=True),
        Bag(name="items", field="item", length=2, is_history=True),
    ),
    dense=(), labels=("click",), trained_label="click", content_dim=0,
)  # fmt: skip


def table(**config):
    return EmbeddingTable(SPEC, D, TableConfig(**config), seed=1, device=torch.device("cpu"))


def keys():
    rng = np.random.default_rng(0)
    bags = [rng.integers(1, 5, (B, 2)), rng.integers(0, 5, (B, L)), rng.integers(1, 9, (B, 2))]
    return rng.integers(1, 9, (B, 1)) + 100, [bags[0] + 200, np.where(bags[1], bags[1] + 200, 0),
                                              bags[2] + 100]  # fmt: skip


def learned(made, steps=1, flags=None):
    flag_B = np.full(B, LEARN_AND_COUNT, np.uint8) if flags is None else flags
    for step in range(steps):
        lookup = made.learn(*keys(), flag_B, clock_ms=1_000, step=step + 1)
        yield lookup


def test_a_sequence_gives_the_row_of_each_entry_and_zeros_for_padding():
    made = table()
    list(learned(made))
    ids, bags = keys()
    lookup = made.predict(ids, bags)
    rows_UD, index_BL = lookup.pooled_BD[1], lookup.index_BL[1]
    distinct = len(set(bags[1].ravel().tolist()) | {0})
    assert rows_UD.shape == (distinct, D)
    assert [index is None for index in lookup.index_BL] == [True, False, True]
    sequence = rows_UD[index_BL]
    assert sequence.shape == (B, L, D)
    single = [made.predict(ids[:1], [np.array([[k, 0]]), bags[1][:1], bags[2][:1]]).pooled_BD[0]
              for k in bags[1].ravel()]  # fmt: skip
    assert torch.equal(sequence.reshape(-1, D), torch.cat(single))
    assert (sequence[torch.from_numpy(bags[1] == 0)] == 0).all()
    assert (sequence[torch.from_numpy(bags[1] != 0)] != 0).all()


def test_updates_are_those_of_the_summed_gradients_of_each_key():
    made, weights = table(lr=0.1), {}
    (first,) = learned(made)
    before = made.weight_RD.clone()
    (lookup,) = learned(made)
    generator = torch.Generator().manual_seed(3)
    bag, rows_UD, items = lookup.pooled_BD
    leaves = (lookup.embedded_BFD, bag, rows_UD[lookup.index_BL[1]], items)
    factors = [torch.randn(leaf.shape, generator=generator) for leaf in leaves]
    sum((leaf * f).sum() for leaf, f in zip(leaves, factors, strict=True)).backward()
    made.update(lookup, lookup.gradient(), torch.tensor(data=True))
    ids, bags = keys()
    for b in range(B):
        for key, gradient in (
            (int(ids[b, 0]), factors[0][b, 0]),
            *((int(k), factors[1][b] / 2) for k in bags[0][b]),
            *((int(k), factors[2][b, i]) for i, k in enumerate(bags[1][b]) if k),
            *((int(k), factors[3][b] / 2) for k in bags[2][b]),
        ):
            weights[key] = weights.get(key, torch.zeros(D)) + gradient
    place = {int(key): row for row, key in enumerate(made.ids.key_R) if key}
    assert weights.keys() == place.keys()
    for key, gradient in weights.items():
        row = place[key]
        square = (gradient**2).mean()
        expected = before[row] - 0.1 * gradient / (square.sqrt() + 1e-8)
        assert_close(made.weight_RD[row], expected, rtol=1e-5, atol=1e-6)
    assert first.plan is not None


def test_what_nobody_read_leaves_its_rows():
    made = table()
    list(learned(made))
    before = made.weight_RD.clone()
    (lookup,) = learned(made)
    lookup.embedded_BFD.sum().backward()
    distinct = len(lookup.pooled_BD[1])
    assert lookup.gradient().shape == (B + B + distinct + B, D)
    made.update(lookup, lookup.gradient(), torch.tensor(data=True))
    own = {int(k) for k in keys()[0].ravel()}
    moved = [int(made.ids.key_R[r]) for r in np.flatnonzero((before != made.weight_RD).any(1))]
    assert set(moved) == own


def test_a_modules_keys_get_rows_whatever_other_bags_may():
    made = table(admit_from_bags=False)
    list(learned(made))
    ids, bags = keys()
    found = {int(key) for key in made.ids.key_R if key}
    assert found == {int(k) for k in (*ids.ravel(), *bags[0].ravel(), *bags[1].ravel()) if k}


def test_rows_that_are_only_read_change_nothing():
    made = table()
    flags = np.full(B, READ, np.uint8)
    (lookup,) = learned(made, flags=flags)
    assert len(lookup.plan.rows_U) == 0
    assert not made.ids.key_R.any()
    flags[2] = LEARN_AND_COUNT  # then the keys of that row alone
    list(learned(made, flags=flags))
    ids, bags = keys()
    expected = {int(k) for part in (ids, *bags) for k in part[2] if k}
    assert {int(key) for key in made.ids.key_R if key} == expected
