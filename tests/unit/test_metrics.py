"""Scores against literals, scikit-learn and the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from learners.calibration import ece
from learners.metrics import AucHistogram, LossSums, Undefined, auc_exact, gauc
from learners.score_runs import group_numbers
from learners.slates import slate_scores

GROUPS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3])
LABELS = np.array([1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0])
SCORES = np.array([0.9, 0.2, 0.5, 0.3, 0.3, 0.6, 0.7, 0.1, 0.2, 0.4, 0.8])


def click_log(n, seed=0, rate=-3.5):
    rng = np.random.default_rng(seed)
    s = rng.normal(rate, 1.0, n)
    return s, (rng.random(n) < expit(s)).astype(np.float64)


def test_golden_values_of_normalised_entropy():
    sums = LossSums.of(logit([0.4, 0.1, 0.2, 0.1, 0.2]), [1, 0, 0, 0, 0])
    assert sums.log_loss == pytest.approx(0.314660, abs=1e-6)
    assert sums.ne == pytest.approx(0.628813, abs=1e-6)
    assert sums.calibration == pytest.approx(1.0)
    assert sums.rate == pytest.approx(0.2)


def test_golden_values_of_gauc():
    result = gauc(SCORES, LABELS, GROUPS)
    assert result.score == pytest.approx(0.5)
    assert (result.groups_used, result.groups_skipped) == (3, 1)
    assert (result.impressions_used, result.impressions) == (9, 11)
    scored = SCORES[GROUPS != 2], LABELS[GROUPS != 2]
    assert auc_exact(SCORES, LABELS) == pytest.approx(roc_auc_score(LABELS, SCORES))
    assert auc_exact(*scored) == pytest.approx(roc_auc_score(scored[1], scored[0]))


def test_log_loss_matches_scikit_learn_and_does_not_clip():
    s, y = click_log(5_000)
    w = np.random.default_rng(1).uniform(0.5, 2, 5_000)
    assert LossSums.of(s, y, w).log_loss == pytest.approx(
        sk_log_loss(y, expit(s), sample_weight=w), rel=1e-12
    )
    assert LossSums.of([800.0], [0]).log_loss == pytest.approx(800.0)


def test_constant_prediction_of_the_rate_has_ne_and_calibration_of_one():
    y = np.array([1, 0, 0, 0] * 25)
    sums = LossSums.of(np.full(100, logit(0.25)), y)
    assert sums.ne == pytest.approx(1.0, abs=1e-12)
    assert sums.calibration == pytest.approx(1.0, abs=1e-12)


def test_sums_merge_and_weights_stand_for_repeats():
    s, y = click_log(3_000)
    merged = LossSums.of(s[:1_000], y[:1_000]) + LossSums.of(s[1_000:], y[1_000:])
    whole = LossSums.of(s, y)
    assert merged.n == whole.n
    for name in ("weight", "loss", "label", "predicted"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    twice = LossSums.of(np.repeat(s, 2), np.repeat(y, 2))
    assert LossSums.of(s, y, np.full(3_000, 2.0)).ne == pytest.approx(twice.ne)


@pytest.mark.parametrize(
    ("labels", "name", "reason"),
    (
        ([], "log_loss", "no rows"),
        ([], "ne", "no rows"),
        ([0, 0], "ne", "only one class"),
        ([1, 1], "ne", "only one class"),
        ([0, 0], "calibration", "no positives"),
    ),
)
def test_scores_without_a_value_say_why(labels, name, reason):
    assert getattr(LossSums.of(np.zeros(len(labels)), labels), name) == Undefined(reason)


def test_auc_matches_scikit_learn_with_ties_and_weights():
    s, y = click_log(4_000)
    s = s.round(1)
    w = np.random.default_rng(2).uniform(0.1, 3, 4_000)
    assert auc_exact(s, y) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert auc_exact(s, y, w) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert auc_exact(-s, y) == pytest.approx(1 - auc_exact(s, y))
    assert auc_exact(np.zeros(4_000), y) == 0.5
    assert auc_exact(s, np.ones(4_000)) == Undefined("only one class")


def test_rank_scores_ignore_monotone_transforms_and_ne_does_not():
    s, y = click_log(2_000)
    g = np.random.default_rng(3).integers(0, 50, 2_000)
    assert auc_exact(np.exp(s), y) == auc_exact(s, y)
    assert gauc(np.exp(s), y, g) == gauc(s, y, g)
    assert abs(LossSums.of(2 * s, y).ne - LossSums.of(s, y).ne) > 1e-3


def test_histogram_is_close_to_the_exact_auc_and_merges_exactly():
    s, y = click_log(100_000)
    whole = AucHistogram.of(s, y)
    merged = AucHistogram.empty() + AucHistogram.of(s[:400], y[:400])
    merged = merged + AucHistogram.of(s[400:], y[400:])
    np.testing.assert_array_equal(whole.positives, merged.positives)
    np.testing.assert_array_equal(whole.negatives, merged.negatives)
    assert whole.auc == pytest.approx(auc_exact(s, y), abs=5e-4)
    assert AucHistogram.empty().auc == Undefined("only one class")
    assert AucHistogram.of([-99.0, 99.0], [0, 1]).auc == 1.0


def test_gauc_ignores_a_constant_per_group_and_one_class_groups():
    s, y = click_log(5_000, rate=-1.0)
    g = np.random.default_rng(4).integers(0, 200, 5_000)
    shifted = gauc(s + g, y, g)
    assert shifted.score == pytest.approx(gauc(s, y, g).score, abs=1e-12)
    assert abs(auc_exact(s + g, y) - auc_exact(s, y)) > 0.01
    more = gauc(np.append(s, [0.0, 9.0]), np.append(y, [0, 0]), np.append(g, [-1, -1]))
    assert more.score == gauc(s, y, g).score
    assert more.groups_skipped == gauc(s, y, g).groups_skipped + 1
    assert gauc(s, y, np.zeros(5_000)).score == pytest.approx(auc_exact(s, y))
    assert gauc([], [], []).score == Undefined("no rows")
    assert gauc([1.0], [1], [0]).score == Undefined("no group has both classes")


def test_numbers_of_groups_are_few_and_change_no_score():
    """Ids of a thousand million take no sums of as many entries, and order stays as it was."""
    rng = np.random.default_rng(8)
    g = rng.integers(0, 50, 2_000)
    s, y = rng.normal(size=2_000), (rng.random(2_000) < 0.3).astype(float)
    large = 10**9 + g * 20_000_000
    assert group_numbers(g) is g
    assert int(group_numbers(large).max()) == 49
    assert np.array_equal(group_numbers(large), g)
    assert gauc(s, y, large) == gauc(s, y, g)
    assert slate_scores(s, y, large) == slate_scores(s, y, g)


def test_gauc_matches_a_loop_over_groups():
    s, y = click_log(3_000, rate=-1.0)
    s = s.round(1)
    g = np.random.default_rng(5).integers(0, 100, 3_000)
    total = weight = 0.0
    for group in range(100):
        rows = g == group
        if 0 < y[rows].sum() < rows.sum():
            total += rows.sum() * roc_auc_score(y[rows], s[rows])
            weight += rows.sum()
    assert gauc(s, y, g).score == pytest.approx(total / weight, abs=1e-12)


def test_calibration_error_of_a_perfect_model_lies_at_its_floor():
    rng = np.random.default_rng(6)
    p = expit(rng.normal(-3.6, 0.9, 100_000))
    y = rng.random(100_000) < p
    good = ece(p, y)
    assert abs(good.z) < 3.5
    assert good.floor == pytest.approx(0.0016, abs=6e-4)
    bad = ece(np.minimum(p * 1.3, 1), y)
    assert bad.z > 10
    assert bad.excess > 0.005
    assert sum(row.n for row in bad.bins) == 100_000
    assert ece([], []).score == Undefined("no rows")
