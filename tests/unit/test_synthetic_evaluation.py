"""The evaluation of a prediction log against exact answers: arms of which everything is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.evaluation.options import EvaluationOptions
from stream.evaluation.rows import read_rows
from stream.evaluation.value import evaluate
from stream.importers.synthetic_log import read_truth, truth_path
from stream.importers.synthetic_truth import (
    calibration_z,
    entropies,
    expected_losses,
    floor_ne,
    regrets,
    true_calibration,
)
from tests.support.synthetic_truth import stream_of

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The truth of a stream, arms at known distances from it, and their evaluation."""
    folder = tmp_path_factory.mktemp("evaluation")
    log = stream_of(folder, users=1_000, impressions=48_000, days=4.0, new_items_per_hour=1)
    truth, config = read_truth(truth_path(log))
    p = truth["probability"]
    logit, rng = np.log(p / (1 - p)), np.random.default_rng(8)
    over = np.minimum(1.1 * p, 0.999)
    arms = {
        "truth": logit,
        "noisy": logit + rng.normal(scale=0.6, size=len(p)),
        "twin": logit + rng.normal(scale=0.01, size=len(p)),
        "over": np.log(over / (1 - over)),
    }
    columns = {n: truth[n] for n in ("request_id", "item_id", "user_id", "ts_ms")}
    columns["label"] = (rng.random(len(p)) < p).astype(np.int8)
    columns |= {f"logit.{name}": values.astype(np.float32) for name, values in arms.items()}
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    options = EvaluationOptions(window_ms=config.window_ms, resamples=400)
    value = evaluate(read_rows(folder / "predictions.parquet"), options)
    return p, arms, columns["label"], value


def arm_of(value, name):
    return next(arm for arm in value["arms"] if arm["name"] == name)


def pair_of(value, a, b):
    return next(pair for pair in value["pairs"] if (pair["a"], pair["b"]) == (a, b))


def test_scores_are_the_exact_ones_but_for_label_noise(made):
    p, arms, labels, value = made
    assert abs(calibration_z(p, labels)) < 4
    for name, logit in arms.items():
        metrics = arm_of(value, name)["metrics"]
        # Var of a row's loss given p: p (1 - p) s^2.
        error = np.sqrt((p * (1 - p) * logit**2).sum()) / len(p)
        assert abs(metrics["log_loss"] - expected_losses(p, logit).mean()) < 4 * error
        assert metrics["calibration"] == pytest.approx(true_calibration(p, logit), rel=0.04)
    assert arm_of(value, "truth")["metrics"]["ne"] == pytest.approx(floor_ne(p), abs=0.02)


def test_the_truth_is_calibrated_up_to_noise_and_a_tenth_too_much_is_seen(made):
    value = made[3]
    assert arm_of(value, "truth")["metrics"]["ece_z"] < 3
    assert arm_of(value, "over")["metrics"]["ece_z"] > 3
    bins = arm_of(value, "truth")["reliability"]
    outside = sum(not b["low"] <= b["observed"] <= b["high"] for b in bins)
    assert len(bins) == 20
    assert outside <= 4


def test_nothing_ranks_better_than_the_truth(made):
    value = made[3]
    for name in ("auc", "gauc_request", "gauc_user_day", "ndcg", "mrr"):
        assert arm_of(value, "truth")["metrics"][name] > arm_of(value, "noisy")["metrics"][name]


def test_the_interval_holds_the_true_difference(made):
    p, arms, _, value = made
    for a, b in (("truth", "noisy"), ("truth", "over"), ("noisy", "over")):
        pair = pair_of(value, a, b)
        true = (regrets(p, arms[a]) - regrets(p, arms[b])).mean()
        assert pair["low"] < true < pair["high"]
        assert pair["high"] - pair["low"] < 0.01


def test_the_decision_takes_the_truth_and_leaves_a_twin_open(made):
    value = made[3]
    better = pair_of(value, "truth", "noisy")["decision"]
    assert (better["accept"], better["winner"]) == (True, "truth")
    # One twin in twenty would seem different; this seed's does not.
    twin = pair_of(value, "truth", "twin")["decision"]
    assert (twin["accept"], twin["winner"]) == (None, None)
    assert "No difference" in twin["words"]
    uncalibrated = pair_of(value, "noisy", "over")["decision"]
    assert uncalibrated["winner"] is None
    assert "calibration" in uncalibrated["words"]


def test_slices_and_days_add_up_to_all_rows(made):
    p, _, labels, value = made
    arm = arm_of(value, "truth")
    for by in {one["by"] for one in arm["slices"]}:
        assert sum(one["n"] for one in arm["slices"] if one["by"] == by) == len(p), by
    assert sum(day["samples"] for day in arm["daily"]) == len(p)
    assert sum(hour["positives"] for hour in arm["hourly"]) == labels.sum()
    assert np.isclose(entropies(p).mean(), arm["metrics"]["log_loss"], rtol=0.02)
