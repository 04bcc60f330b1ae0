"""Dense inputs of counters against the formula in double precision."""

import numpy as np

from stream.rate_kernels import COUNTS, LOG1P, RatePlan, fill_rates


def test_rates_and_counts_are_those_of_the_formula():
    rng = np.random.default_rng(3)
    shown = np.concatenate([rng.integers(0, 50, 60), [0, COUNTS - 1, COUNTS, 3_000_000]])
    n, label = len(shown), 1
    counts = np.zeros((n, 3, 4), np.int32)
    counts[:, 0, 0], counts[:, 0, 3] = 1_000 + shown, 300
    for j in (1, 2):
        counts[:, j, 0] = shown
        counts[:, j, 1] = shown + rng.integers(-2, 9, n)
        counts[:, j, 3] = rng.integers(0, shown + 1)
    decayed = (counts[:, 2:, [0, 2, 3]] * 0.37).astype(np.float32)
    plan = RatePlan(
        np.array([0, 10, 4], np.float32), np.array([-1, -1, 0]), np.array([0, 1, 0], np.uint8)
    )
    out = np.full((n, 1 + 2 + 1 + 4 + 1), np.nan, np.float32)
    fill_rates(counts, decayed, plan, label, LOG1P, out)

    prior = (counts[:, 0, 3] + 0.5) / (counts[:, 0, 0] + 1)
    logit = np.log(prior / (1 - prior))

    def pair(shown, clicks, weight):
        hits = clicks + weight * prior
        return [np.log(hits / (shown + weight - hits)) - logit, np.log1p(shown)]

    expected = [
        logit, *pair(counts[:, 1, 0], counts[:, 1, 3], 10),
        np.log1p(np.maximum(counts[:, 1, 1] - counts[:, 1, 0], 0)),
        *pair(counts[:, 2, 0], counts[:, 2, 3], 4),
        *pair(decayed[:, 0, 0].astype(float), decayed[:, 0, 2].astype(float), 4),
    ]  # fmt: skip
    np.testing.assert_allclose(out[:, :8], np.stack(expected, axis=1), rtol=2e-4, atol=2e-5)
    assert np.isnan(out[:, 8]).all()  # what is configured besides is not the kernel's
