"""Contrastive losses, queue and momentum copy: golden values, gradients, and what is left out."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from embeddings.pretrain.contrast import (
    KeyQueue,
    follow,
    in_batch_nce,
    info_nce,
    momentum_copy,
    triplet,
)


def unit(*shape, seed):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def nothing(rows, keys):
    return torch.zeros(rows, keys, dtype=torch.bool)


def test_with_equal_logits_the_loss_is_the_logarithm_of_all_keys():
    keys = 196_800
    query, key = unit(4, 16, seed=0), unit(4, 16, seed=1)
    queue = unit(keys, 16, seed=2)
    loss = info_nce(query, key, queue, nothing(4, keys), temperature=1e6)
    assert torch.allclose(loss, torch.full((4,), math.log(keys + 1)), rtol=1e-2)
    assert math.log(keys + 1) == pytest.approx(12.19, abs=0.001)
    zero = torch.zeros(8, 16)
    group = torch.arange(8)
    assert torch.allclose(in_batch_nce(zero, zero, group, group, 0.2), torch.tensor(math.log(8)))


def test_random_keys_add_half_the_variance_of_their_logits():
    """With temperature .07 and 128 dimensions about .8 more (variance of a cosine: 1 / 128)."""
    query, key, queue = unit(64, 128, seed=0), unit(64, 128, seed=1), unit(20_000, 128, seed=2)
    loss = info_nce(query, key, queue, nothing(64, 20_000), temperature=0.07)
    assert loss.mean().item() - math.log(20_001) == pytest.approx(0.80, abs=0.35)


def test_the_gradient_is_the_softmax_mean_of_the_keys_less_the_positive():
    query, key, queue = unit(3, 8, seed=3), unit(3, 8, seed=4), unit(20, 8, seed=5)
    query.requires_grad_()
    info_nce(query, key, queue, nothing(3, 20), temperature=0.2).sum().backward()
    for b in range(3):
        keys = torch.cat((key[b : b + 1], queue))
        weights = (keys @ query[b].detach() / 0.2).softmax(dim=0)
        expected = (weights @ keys - key[b]) / 0.2
        assert torch.allclose(query.grad[b], expected, atol=1e-5)


def test_a_masked_key_is_as_good_as_absent():
    query, key, queue = unit(2, 8, seed=6), unit(2, 8, seed=7), unit(5, 8, seed=8)
    masked = nothing(2, 5)
    masked[:, 3] = True
    short = torch.cat((queue[:3], queue[4:]))
    assert torch.allclose(
        info_nce(query, key, queue, masked, 0.2), info_nce(query, key, short, nothing(2, 4), 0.2)
    )


def test_in_a_batch_an_item_is_no_negative_of_itself():
    left, right = unit(3, 8, seed=9), unit(3, 8, seed=10)
    right[2] = right[0]
    left_group, right_group = torch.tensor([0, 1, 2]), torch.tensor([7, 8, 7])
    loss = in_batch_nce(left, right, left_group, right_group, 0.2)
    logits = left @ right.T / 0.2
    forward = torch.stack(
        [
            logits[0, :2].logsumexp(0) - logits[0, 0],
            logits[1].logsumexp(0) - logits[1, 1],
            logits[2, 1:].logsumexp(0) - logits[2, 2],
        ]
    )
    backward = logits.T.logsumexp(dim=1) - logits.diag()
    assert torch.allclose(loss, (forward + backward) / 2, atol=1e-6)


def test_the_triplet_has_no_gradient_beyond_its_margin():
    query = unit(2, 8, seed=11).requires_grad_()
    key = query.detach().clone()
    far, near = -key, key
    loss = triplet(query, key, torch.stack((far[0], near[1])), margin=0.2)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 0.2], abs=1e-6)
    assert torch.all(query.grad[0] == 0)
    mixed = unit(1, 8, seed=12)
    query2 = unit(1, 8, seed=13).requires_grad_()
    triplet(query2, unit(1, 8, seed=14), mixed, margin=3.0).sum().backward()
    assert torch.allclose(query2.grad, mixed - unit(1, 8, seed=14))


def test_the_queue_is_first_in_first_out():
    queue = KeyQueue(unit(10, 4, seed=0), torch.full((10,), -1))
    batches = [unit(4, 4, seed=20 + n) for n in range(4)]
    queue.push(batches[0], torch.full((4,), 0))
    for n in (1, 2):  # ceil(10 / 4) = 3 steps in all: still two of the first batch
        queue.push(batches[n], torch.full((4,), n))
    assert sorted(queue.group_K.tolist()) == [0] * 2 + [1] * 4 + [2] * 4
    queue.push(batches[3], torch.full((4,), 3))
    assert 0 not in queue.group_K
    at = torch.nonzero(queue.group_K == 3)[:, 0]
    assert sorted(map(tuple, queue.keys_KD[at].tolist())) == sorted(map(tuple, batches[3].tolist()))


def test_of_a_batch_longer_than_the_queue_the_end_stays():
    queue = KeyQueue(unit(3, 4, seed=0), torch.full((3,), -1))
    queue.push(unit(5, 4, seed=1), torch.arange(5))
    assert sorted(queue.group_K.tolist()) == [2, 3, 4]


def test_keys_of_the_same_content_are_masked():
    queue = KeyQueue(unit(4, 4, seed=0), torch.tensor([5, 6, 7, 6]))
    masked = queue.masked([torch.tensor([6, 9]), torch.tensor([5, 9])])
    assert masked.tolist() == [[True, True, False, True], [False] * 4]


def test_the_momentum_copy_closes_in_by_its_factor_and_has_no_gradient():
    module = torch.nn.Linear(4, 3)
    follower = momentum_copy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter, generator=None))
    gap = [
        (a - b).detach() for a, b in zip(follower.parameters(), module.parameters(), strict=True)
    ]
    for _ in range(5):
        follow(follower, module, 0.9)
    after = zip(follower.parameters(), module.parameters(), gap, strict=True)
    for theirs, own, before in after:
        assert torch.allclose(theirs - own, before * 0.9**5, atol=1e-6)
        assert not theirs.requires_grad
    follower(torch.ones(2, 4)).sum()
    assert all(p.grad is None for p in follower.parameters())
