"""Row-wise Adagrad, flat Adam and running moments against literals and torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from learners.dense_optim import EARLY_SHARE, AdamConfig, FlatAdam
from learners.moments import Moments
from learners.sparse_optim import rowwise_adagrad_, rowwise_adagrad_host_, segment_sum
from tests.support.close import assert_close

YES, NO = torch.tensor(True), torch.tensor(False)


def adagrad(w, s, rows, g, lr=0.1):
    rowwise_adagrad_(w, s, torch.tensor(rows), torch.tensor(g), lr=lr, eps=1e-8)


def test_golden_values_of_rowwise_adagrad():
    w, s = torch.tensor([[0.1, -0.2, 0.3, 0.4]]), torch.zeros(1)
    adagrad(w, s, [0], [[1.0, 2.0, 3.0, 4.0]])
    assert s.item() == 7.5
    np.testing.assert_allclose(w[0], [0.063485, -0.273030, 0.190455, 0.253941], atol=1e-6)
    adagrad(w, s, [0], [[-1.0, 0.0, 1.0, 0.0]])
    assert s.item() == 8.0
    np.testing.assert_allclose(w[0], [0.098841, -0.273030, 0.155100, 0.253941], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("constant", (True, False))
def test_rowwise_adagrad_is_torchs_when_gradients_are_constant_along_a_row(constant):
    torch.manual_seed(0)
    w, s = torch.randn(5, 3), torch.zeros(5)
    parameter = nn.Parameter(w.clone())
    reference = torch.optim.Adagrad([parameter], lr=0.1, eps=1e-8)
    for _ in range(100):
        g = torch.randn(5, 1).expand(5, 3) if constant else torch.randn(5, 3)
        rowwise_adagrad_(w, s, torch.arange(5), g, lr=0.1, eps=1e-8)
        parameter.grad = g.clone()
        reference.step()
    assert torch.allclose(w, parameter, atol=1e-6) is constant


def test_untouched_rows_and_zero_gradients_keep_their_bits():
    w, s = torch.randn(6, 4), torch.rand(6)
    before = w.clone(), s.clone()
    adagrad(w, s, [1, 4], [[0.0] * 4, [1.0] * 4])
    kept = [0, 1, 2, 3, 5]
    assert torch.equal(w[kept], before[0][kept])
    assert torch.equal(s[kept], before[1][kept])
    assert not torch.equal(w[4], before[0][4])


def test_duplicates_are_summed_before_they_are_squared():
    g = torch.tensor([[1.0, 2.0], [10.0, 0.0], [3.0, -1.0]])
    sources = torch.tensor([0, 2, 0, 1], dtype=torch.int32)
    summed = segment_sum(g, sources, torch.tensor([0, 3], dtype=torch.int32))
    assert summed.tolist() == [[5.0, 3.0], [10.0, 0.0]]
    w, s = torch.zeros(1, 2), torch.zeros(1)
    rowwise_adagrad_(w, s, torch.tensor([0]), summed[:1], lr=0.1, eps=1e-8)
    assert s.item() == 17.0


def test_host_form_is_the_torch_form():
    rng = np.random.default_rng(0)
    a, b = torch.randn(50, 6), torch.rand(50)
    c, d = a.clone(), b.clone()
    for _ in range(20):
        g = torch.from_numpy(rng.normal(size=(40, 6)).astype(np.float32))
        rows = np.sort(rng.choice(50, 9, replace=False))
        offsets = np.concatenate(([0], np.sort(rng.choice(np.arange(1, 40), 8, replace=False))))
        offsets, sources = offsets.astype(np.int32), rng.integers(0, 40, 40).astype(np.int32)
        summed = segment_sum(g, torch.from_numpy(sources), torch.from_numpy(offsets))
        rowwise_adagrad_(a, b, torch.from_numpy(rows), summed, lr=0.05, eps=1e-8)
        rowwise_adagrad_host_(c, d, rows, offsets, sources, g, lr=0.05, eps=1e-8)
    assert_close(a, c, atol=1e-5, rtol=1e-5)
    assert_close(b, d, atol=1e-5, rtol=1e-5)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.slow
def test_flat_adam_follows_torchs_adam():
    ours, theirs = network(), network()
    flat = FlatAdam(ours.parameters(), AdamConfig(lr=1e-2, beta1=0.9))
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(8, 5)
        flat.zero_grad()
        ours(x).square().sum().backward()
        flat.step(YES)
        reference.zero_grad()
        theirs(x).square().sum().backward()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_weights_are_averaged_over_rows():
    net, shown = network(), network()
    flat = FlatAdam(net.parameters(), AdamConfig(lr=0.1, averaged_rows=100))
    flat.show_average(shown.parameters())
    expected = None
    for step, rows in enumerate((20, 50, 200, 10, 20, 90, 20, 10), start=1):
        flat.g.copy_(torch.randn_like(flat.g))
        flat.step(YES, rows)
        share = min(1.0, max(rows / 100, EARLY_SHARE / step))
        expected = flat.w.clone() if expected is None else expected.lerp(flat.w, share)
        assert_close(flat.average, expected, atol=1e-6, rtol=1e-5)
    kept = flat.average.clone()
    flat.step(NO, 50)
    assert torch.equal(flat.average, kept)
    flat_shown = torch.cat([p.detach().reshape(-1) for p in shown.parameters()])
    assert torch.equal(flat_shown, kept)
    assert not torch.equal(kept, flat.w)


def test_without_a_horizon_the_weights_themselves_predict():
    flat = FlatAdam(network().parameters(), AdamConfig(averaged_rows=0))
    flat.g.fill_(1.0)
    flat.step(YES, 10)
    assert flat.average is flat.w


def test_masked_steps_change_nothing_even_the_first():
    net = network()
    flat = FlatAdam(net.parameters(), AdamConfig())

    def state():
        return [x.clone() for x in (flat.w, flat.m, flat.v, flat.t)]

    before = state()
    flat.g.fill_(float("nan"))
    flat.step(NO)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    flat.g.fill_(1.0)
    flat.step(YES)
    before = state()
    flat.g.fill_(float("inf"))
    flat.step(NO)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert torch.isfinite(flat.w).all()
    assert flat.t.item() == 1


def test_adam_refuses_values_out_of_range():
    with pytest.raises(ValueError, match=r"betas in \[0, 1\)"):
        AdamConfig(beta1=1.0)


def test_moments_match_numpy_and_mask_rows_and_steps():
    rng = np.random.default_rng(0)
    moments = Moments(3, torch.device("cpu"))
    assert moments.standardise(torch.ones(2, 3)).abs().max() == 0
    seen = []
    for n in (1, 100, 7, 300):
        x = rng.normal([0.0, 1e6, 5.0], [1.0, 3.0, 0.0], (n, 3)).astype(np.float32)
        counted = (rng.random(n) < 0.8).astype(np.float32)
        moments.update(torch.from_numpy(x), torch.from_numpy(counted), YES)
        moments.update(torch.from_numpy(x) * 9, torch.from_numpy(counted), NO)
        seen.append(x[counted > 0])
    x = np.concatenate(seen).astype(np.float64)
    assert moments.n.item() == len(x)
    np.testing.assert_allclose(moments.mean_D, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.squares_D / moments.n, x.var(0), rtol=1e-6, atol=1e-12)
    z = moments.standardise(torch.from_numpy(x.astype(np.float32)))
    np.testing.assert_allclose(z[:, 0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std(), atol=1e-4)
    assert z[:, 2].abs().max() == 0  # never varied
    assert moments.standardise(torch.full((1, 3), 1e30)).max() == 5.0
