"""Rank, slate and calibration scores against literals, other libraries and their definitions."""

import itertools

import numpy as np
import pytest
from river import metrics as river_metrics
from scipy.special import expit, logit
from sklearn.metrics import ndcg_score, roc_auc_score

from learners import calibration
from learners.calibration import ece, ece_of_runs
from learners.metrics import (
    GroupedSums,
    LossSums,
    Undefined,
    auc_exact,
    gauc,
    log_losses,
    undo_down_sampling,
)
from learners.score_runs import (
    aucs,
    bucket_aucs,
    bucket_cells,
    score_codes,
    score_runs,
    scores_of_codes,
)
from learners.slates import slate_scores


def click_log(n, seed=0, rate=-2.0, spread=1.0):
    rng = np.random.default_rng(seed)
    s = rng.normal(rate, spread, n)
    return s.astype(np.float32), (rng.random(n) < expit(s)).astype(np.int8)


def test_float32_scores_keep_their_order_and_value_as_codes():
    s = np.array([-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 2.25, np.inf], np.float32)
    codes = score_codes(s)
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert codes[3] == codes[4]
    np.testing.assert_array_equal(scores_of_codes(codes), s)


def test_auc_of_groups_matches_scikit_learn_group_by_group():
    s, y = click_log(5_000)
    s = s.round(1)
    g = np.random.default_rng(1).integers(0, 40, 5_000)
    found = aucs(score_runs(s, y, g))
    np.testing.assert_array_equal(found.group_G, np.arange(40))
    for group in range(40):
        rows = g == group
        assert found.n_G[group] == rows.sum()
        assert found.positive_G[group] == y[rows].sum()
        assert found.auc_G[group] == pytest.approx(roc_auc_score(y[rows], s[rows]), abs=1e-12)


def test_groups_of_one_class_have_no_auc():
    found = aucs(score_runs([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 1], [2, 2, 5, 5]))
    np.testing.assert_array_equal(found.group_G, [2, 5])
    np.testing.assert_array_equal(found.defined_G, [False, True])
    assert found.auc_G[1] == 1.0


def test_auc_from_buckets_is_close_to_the_exact_one():
    s, y = click_log(60_000)
    g = np.random.default_rng(2).integers(0, 6, 60_000)
    edges = np.quantile(s, np.linspace(0, 1, 8_193)[1:-1])
    found = bucket_aucs(bucket_cells(np.searchsorted(edges, s), y), 8_192, g, 7)
    exact = aucs(score_runs(s, y, g))
    np.testing.assert_array_equal(found.group_G, exact.group_G)
    np.testing.assert_array_equal(found.n_G, exact.n_G)
    np.testing.assert_allclose(found.auc_G, exact.auc_G, atol=1e-5)


def test_auc_agrees_with_river():
    s, y = click_log(1_000)
    river = river_metrics.ROCAUC(n_thresholds=500)
    loss = river_metrics.LogLoss()
    for p, label in zip(expit(s.astype(np.float64)), y, strict=True):
        river.update(bool(label), float(p))
        loss.update(bool(label), float(p))
    assert auc_exact(s, y) == pytest.approx(river.get(), abs=5e-3)
    assert LossSums.of(s, y).log_loss == pytest.approx(loss.get(), abs=1e-9)


def test_negated_scores_have_the_complementary_auc():
    s, y = click_log(3_000)
    assert auc_exact(-s, y) == pytest.approx(1 - auc_exact(s, y), abs=1e-12)
    assert auc_exact(np.zeros(3_000, np.float32), y) == 0.5


def test_grouped_sums_are_the_sums_of_each_group_and_merge():
    s, y = click_log(4_000)
    g = np.random.default_rng(3).integers(0, 5, 4_000)

    def sums(rows):
        p = expit(s[rows].astype(np.float64))
        return GroupedSums.of(log_losses(s[rows], y[rows]), y[rows], p, g[rows], 6)

    whole, halves = sums(slice(None)), sums(slice(0, 900)) + sums(slice(900, None))
    for name in ("n_G", "label_G"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(halves, name))
    for name in ("loss_G", "squared_G", "predicted_G"):
        np.testing.assert_allclose(getattr(whole, name), getattr(halves, name), rtol=1e-12)
    for group in range(5):
        alone = LossSums.of(s[g == group], y[g == group])
        assert whole.at(group).ne == pytest.approx(alone.ne, rel=1e-12)
        assert whole.at(group).calibration == pytest.approx(alone.calibration, rel=1e-12)
        losses = log_losses(s[g == group], y[g == group])
        expected = losses.std(ddof=1) / np.sqrt(len(losses))
        assert whole.standard_error(group) == pytest.approx(expected, rel=1e-9)
    assert whole.at(5).ne == Undefined("no rows")
    assert whole.standard_error(5) == Undefined("fewer than two rows")


@pytest.mark.parametrize("keep_rate", (0.5, 0.1, 0.02))
def test_undoing_down_sampling_gives_the_rate_of_the_whole_stream(keep_rate):
    """A model that is right on the sampled stream is right on the whole one after correction."""
    rng = np.random.default_rng(4)
    truth = rng.normal(-3, 1, 400_000)
    y = rng.random(400_000) < expit(truth)
    sampled_logit = truth - np.log(keep_rate)  # log odds after dropping negatives
    corrected = undo_down_sampling(sampled_logit, keep_rate)
    p = expit(sampled_logit)
    np.testing.assert_allclose(expit(corrected), p / (p + (1 - p) / keep_rate), rtol=1e-12)
    se = np.sqrt(y.sum()) / y.sum()
    assert LossSums.of(corrected, y).calibration == pytest.approx(1, abs=4 * se)
    assert LossSums.of(sampled_logit, y).calibration > 1.3


def test_weights_of_kept_rows_give_the_loss_of_the_whole_stream():
    s, y = click_log(4_000)
    full, rng, rate = LossSums.of(s, y).log_loss, np.random.default_rng(5), 0.25
    sums = []
    for _ in range(100):
        kept = (y == 1) | (rng.random(4_000) < rate)
        weights = np.where(y[kept] == 1, 1.0, 1 / rate)
        sums.append(LossSums.of(s[kept], y[kept], weights).loss / 4_000)
    assert np.mean(sums) == pytest.approx(full, abs=3 * np.std(sums) / 10)
    unweighted = np.mean(log_losses(s[kept], y[kept]))
    assert abs(unweighted - full) > 30 * np.std(sums) / 10


def test_slate_scores_of_a_small_example():
    """Request 0: positives at places 1 and 3; request 1: at place 2; requests 2, 3 are skipped."""
    requests = [0, 0, 0, 1, 1, 2, 3, 3]
    scores = [0.9, 0.5, 0.1, 0.2, 0.8, 0.5, 0.3, 0.4]
    labels = [1, 0, 1, 1, 0, 1, 0, 0]
    found = slate_scores(scores, labels, requests, k=3)
    ideal = 1 + 1 / np.log2(3)
    expected = ((1 + 0.5) / ideal + 1 / np.log2(3)) / 2
    assert found.ndcg == pytest.approx(expected)
    assert found.mrr == pytest.approx((1 + 0.5) / 2)
    assert found.hit1 == pytest.approx(0.5)
    assert (found.used, found.skipped) == (2, 2)
    assert (found.impressions_used, found.impressions) == (5, 8)


def test_ndcg_matches_scikit_learn_with_ties():
    rng = np.random.default_rng(6)
    s = rng.normal(0, 1, (200, 12)).round(1)
    y = rng.random((200, 12)) < 0.25
    y[:, 0], y[:, 1] = True, False
    requests = np.repeat(np.arange(200), 12)
    for k in (1, 5, 20):
        found = slate_scores(s.ravel(), y.ravel(), requests, k=k)
        assert found.ndcg == pytest.approx(ndcg_score(y, s, k=k), abs=1e-12)


def test_tied_slates_score_their_expectation_over_all_orders():
    labels = [1, 0, 1, 0, 0]
    scores = [0.5, 0.5, 0.5, 0.5, 0.9]
    found = slate_scores(scores, labels, [0] * 5)
    orders = [[0, *order] for order in itertools.permutations(labels[:4])]
    ranks = [1 / (order.index(1) + 1) for order in orders]
    assert found.mrr == pytest.approx(np.mean(ranks))
    assert found.hit1 == 0.0
    chance = slate_scores(scores[:4], labels[:4], [0] * 4)
    assert chance.hit1 == pytest.approx(0.5)


def test_slates_without_a_choice_say_why():
    found = slate_scores([0.1, 0.2], [1, 0], [0, 1])
    assert found.ndcg == Undefined("no request has several items and both classes")
    assert (found.used, found.skipped) == (0, 2)
    assert slate_scores([], [], []).mrr == found.mrr


def test_a_constant_prediction_is_one_bin_whatever_the_order_of_labels():
    found = ece(np.full(1_000, 0.25), np.arange(1_000) < 250)
    assert len(found.bins) == 1
    assert found.score == pytest.approx(0.0, abs=1e-12)
    assert (found.bins[0].n, found.bins[0].observed) == (1_000, 0.25)


def test_bins_have_equal_mass_and_their_error_adds_up():
    s, y = click_log(10_007)
    found = ece(expit(s.astype(np.float64)), y, bins=20)
    assert len(found.bins) == 20
    assert {b.n for b in found.bins} <= {500, 501}
    error = sum(b.n * abs(b.predicted - b.observed) for b in found.bins) / 10_007
    assert found.score == pytest.approx(error)
    of_runs = ece_of_runs(score_runs(s, y), bins=20)
    assert of_runs.score == pytest.approx(found.score, abs=1e-6)


@pytest.mark.parametrize(("n", "floor"), ((1_000, 0.0155), (10_000, 0.0054), (100_000, 0.0016)))
def test_the_error_of_a_perfect_model_lies_at_the_known_floor(n, floor):
    """Floors for 20 bins and a click rate of 0.028, from docs/evaluation.md."""
    rng = np.random.default_rng(7)
    errors = []
    for seed in range(8):
        p = expit(rng.normal(-3.9, 0.9, n))
        found = ece(p, rng.random(n) < p, seed=seed)
        errors.append(found.score)
        assert found.floor == pytest.approx(floor, rel=0.25)
    assert np.mean(errors) == pytest.approx(floor, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("rate", (-2.0, -9.0, 9.0))
def test_the_floor_of_many_rows_equals_that_of_redrawn_rows(monkeypatch, rate):
    s, y = click_log(150_000, rate=rate, spread=0.5)
    p = expit(s.astype(np.float64))
    exact = np.mean([ece(p, y, seed=seed).floor for seed in range(5)])
    monkeypatch.setattr(calibration, "EXACT_ROWS_MAX", 0)
    fast = np.mean([ece(p, y, seed=seed).floor for seed in range(5)])
    assert fast == pytest.approx(exact, rel=0.1)


def test_user_rates_that_learn_within_a_group_are_caught_by_gauc_of_the_group():
    """A running rate reacts to each label of its user-day, so the rest runs the other way."""
    rng = np.random.default_rng(8)
    y = rng.random((400, 10)) < 0.3
    seen = np.cumsum(y, axis=1) - y
    s = logit((seen + 3) / (np.arange(10) + 10.0))
    user_day = np.repeat(np.arange(400), 10)
    assert gauc(s.ravel(), y.ravel(), user_day).score < 0.4
    frozen = np.repeat(s[:, :1], 10, axis=1)
    assert gauc(frozen.ravel(), y.ravel(), user_day).score == pytest.approx(0.5)


def test_constant_forecast_of_the_rate_is_the_unit_of_normalised_entropy():
    y = np.repeat([1, 0], (37, 163))
    sums = LossSums.of(np.full(200, logit(37 / 200)), y)
    assert sums.ne == pytest.approx(1.0, abs=1e-12)
    assert sums.calibration == pytest.approx(1.0, abs=1e-12)
