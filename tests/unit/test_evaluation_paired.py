"""Intervals of paired differences: width, coverage, blocks, groups."""

import numpy as np
import pytest

from stream.evaluation import paired
from stream.evaluation.paired import paired_bootstrap


def blocked(rng, blocks, mean=0.0, spread=1.0):
    """Differences whose blocks (of one to nine rows) share an offset."""
    size = rng.integers(1, 10, blocks)
    block = np.repeat(np.arange(blocks), size)
    return mean + rng.normal(0, spread, blocks)[block] + rng.normal(0, 1, len(block)), block


@pytest.mark.slow
@pytest.mark.parametrize("blocks", (60, 400))
def test_the_interval_covers_the_true_difference(blocks):
    """Of 200 simulations, about 190 hold the truth; between 180 and 199 is 3.2 standard errors."""
    rng = np.random.default_rng(0)
    held = below = 0
    for seed in range(200):
        d, block = blocked(rng, blocks, mean=0.1)
        found = paired_bootstrap(d, block, resamples=400, seed=seed)
        held += found.low <= 0.1 <= found.high
        below += found.high < 0.1
    assert 180 <= held <= 199
    assert below <= 15


def test_rows_taken_alone_would_be_too_sure():
    """Why blocks: the interval of single rows misses the truth far too often."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        d, _ = blocked(rng, 60)
        found = paired_bootstrap(d, np.arange(len(d)), resamples=200, seed=seed)
        held += found.low <= 0 <= found.high
    assert held <= 80


def test_the_interval_has_the_width_of_theory():
    d = np.random.default_rng(2).normal(0.5, 2, 5_000)
    found = paired_bootstrap(d, np.arange(5_000), resamples=2_000)
    assert found.mean == pytest.approx(d.mean(), abs=1e-12)
    half = 1.96 * d.std() / np.sqrt(5_000)
    assert found.high - d.mean() == pytest.approx(half, rel=0.1)
    assert d.mean() - found.low == pytest.approx(half, rel=0.1)
    assert found.blocks == 5_000


def test_many_blocks_are_joined_and_keep_the_width(monkeypatch):
    d, block = blocked(np.random.default_rng(3), 6_000)
    full = paired_bootstrap(d, block, resamples=1_000)
    monkeypatch.setattr(paired, "BLOCKS_MAX", 1_500)
    joined = paired_bootstrap(d, block, resamples=1_000)
    assert joined.blocks == full.blocks == 6_000
    assert joined.mean == pytest.approx(full.mean, abs=1e-12)
    assert joined.high - joined.low == pytest.approx(full.high - full.low, rel=0.12)


def test_groups_are_resampled_with_the_whole():
    rng = np.random.default_rng(4)
    d, block = blocked(rng, 300)
    code = rng.integers(0, 3, len(d))
    found = paired_bootstrap(d, block, [(code, 4), (np.zeros(len(d), np.uint8), 1)])
    groups, whole = found.groupings
    for g in range(3):
        assert groups.mean_G[g] == pytest.approx(d[code == g].mean())
        assert groups.n_G[g] == (code == g).sum()
        alone = paired_bootstrap(d[code == g], block[code == g], seed=9)
        width = groups.high_G[g] - groups.low_G[g]
        assert width == pytest.approx(alone.high - alone.low, rel=0.2)
    assert (whole.low_G[0], whole.high_G[0]) == (found.low, found.high)
    assert groups.n_G[3] == 0
    assert not groups.sure_G[3]


def test_few_blocks_have_no_interval():
    d = np.arange(90.0)
    found = paired_bootstrap(d, np.repeat(np.arange(9), 10))
    assert (found.low, found.high) == (None, None)
    assert found.mean == pytest.approx(44.5)
    more = paired_bootstrap(d, np.repeat(np.arange(10), 9), [(np.arange(90) == 0, 2)])
    assert more.low is not None
    assert more.groupings[0].sure_G.tolist() == [True, False]


def test_the_same_seed_gives_the_same_interval():
    d, block = blocked(np.random.default_rng(5), 200)
    one, two = paired_bootstrap(d, block, seed=3), paired_bootstrap(d, block, seed=3)
    assert (one.low, one.high) == (two.low, two.high)
    other = paired_bootstrap(d, block, seed=4)
    assert (one.low, one.high) != (other.low, other.high)


def test_equal_losses_differ_by_nothing():
    found = paired_bootstrap(np.zeros(500), np.arange(500))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
