"""Compiled loops of the module `qarm` against torch's operations: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from learners.distinct_keys import distinct_keys
from learners.id_kernels import LEARN, LEARN_AND_COUNT, READ
from learners.modules.qarm_pool import Keys, _by_operations, pooled_history
from learners.modules.small_norm import small_norm
from tests.support.close import assert_close

B, L, D = 40, 6, 5
BLOCKS = ((-1, 0), (-1, 1), (0, 1))


def case(blocks):
    """Two codes of few values, some entries, histories and targets without any."""
    rng = np.random.default_rng(1)
    rq1 = rng.integers(0, 4, (B, L))
    rq1[3] = 0
    path = np.where(rq1 == 0, 0, rq1 * 10 + rng.integers(0, 2, (B, L)))
    own = rng.integers(0, 4, (B, 1))
    own_path = np.where(own == 0, 0, own * 10 + rng.integers(0, 2, (B, 1)))
    keys = Keys(entries=(rq1, path), own=(own, own_path), matched=(0, 1), blocks=blocks)
    index, rows = [], []
    for entries in keys.entries:
        few = distinct_keys(entries, np.full(B, LEARN, np.uint8))
        index.append(torch.from_numpy(few.index_BL))
        values = torch.from_numpy(rng.normal(size=(len(few.keys_U1), D)).astype(np.float32))
        values[0] = 0
        rows.append(values)
    query = torch.from_numpy(rng.normal(size=(B, 2 * D)).astype(np.float32))
    return keys, tuple(index), rows, query, torch.tensor([[1.0, -0.5]])


@pytest.mark.parametrize("blocks", (BLOCKS, BLOCKS[:2], BLOCKS[2:]), ids=("both", "seq", "cross"))
def test_loops_and_operations_say_the_same(blocks):
    keys, index, rows, query, bias = case(blocks)
    attends = blocks[0][0] < 0
    factors = torch.from_numpy(np.random.default_rng(2).normal(size=(B, len(blocks), D))).float()
    found = []
    for pool in (pooled_history, _by_operations):
        leaves = [x.clone().requires_grad_() for x in (query, bias, *rows)]
        q, b, *r = leaves
        pooled, counts = pool(tuple(r), index, q if attends else None, b if attends else None, keys)
        (pooled * factors).sum().backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        for table in grads[2:]:
            table[0] = 0  # the row of empty places is nobody's
        found.append([pooled.detach(), counts, *grads])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (found[0][0][3] == 0).all()
    assert (found[0][0][keys.own[0][:, 0] == 0] == 0).all()
    assert found[0][1].max() > 1


def test_a_number_that_is_none_spreads():
    keys, index, rows, query, bias = case(BLOCKS)
    rows[0][1] = float("nan")
    pooled, _ = pooled_history(tuple(rows), index, query, bias, keys)
    holds = (index[0] == 1).any(1).numpy() & (keys.own[0][:, 0] != 0)
    assert holds.any()
    assert torch.isnan(pooled[torch.from_numpy(holds), 0]).all()


def test_small_norm_is_layer_norm():
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(7, 3, 8)).astype(np.float32)) * 0.02
    x[2, 1] = 0
    factors = torch.from_numpy(np.random.default_rng(4).normal(size=(7, 3, 8)).astype(np.float32))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, theirs = small_norm(a), functional.layer_norm(b, (8,))
    assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert (mine[2, 1] == 0).all()
    (mine * factors).sum().backward()
    (theirs * factors).sum().backward()
    assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_distinct_keys_number_each_key_once_and_take_the_highest_flag():
    keys = np.array([[7, 0, 9], [9, 7, 7], [5, 0, 0]])
    flags = np.array([READ, LEARN_AND_COUNT, LEARN], np.uint8)
    few = distinct_keys(keys, flags)
    assert few.keys_U1[:, 0].tolist() == [0, 7, 9, 5]
    assert few.index_BL.tolist() == [[1, 0, 2], [2, 1, 1], [3, 0, 0]]
    assert few.flag_U[1:].tolist() == [LEARN_AND_COUNT, LEARN_AND_COUNT, LEARN]
    nothing = distinct_keys(np.zeros((0, 3), np.int64), np.zeros(0, np.uint8))
    assert nothing.keys_U1.tolist() == [[0]]
