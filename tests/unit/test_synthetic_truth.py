"""Exact answers: floors, regrets and calibration against brute force and by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learners.metrics import entropy, log_losses
from stream import cli
from stream.importers import synthetic_truth as t
from stream.importers.synthetic_log import read_truth, truth_path
from tests.support.synthetic_truth import stream_of

P = np.array([0.1, 0.5, 0.9, 0.3])
TRUE_LOGITS = np.log(P / (1 - P))


def test_the_floor_is_the_mean_entropy():
    assert t.entropies(P) == pytest.approx([entropy(p) for p in P])
    assert t.entropies([0.0, 1.0]) == pytest.approx([0.0, 0.0])
    assert t.floor_ne(P) == pytest.approx(np.mean([entropy(p) for p in P]) / entropy(P.mean()))
    assert t.floor_ne([0.3, 0.3]) == pytest.approx(1.0)


def test_the_expected_loss_is_the_mean_over_both_labels():
    s = np.array([-3.0, 0.2, 1.0, 40.0])
    by_hand = P * log_losses(s, np.ones(4)) + (1 - P) * log_losses(s, np.zeros(4))
    assert t.expected_losses(P, s) == pytest.approx(by_hand)


def test_regret_is_zero_for_the_truth_alone():
    assert t.regrets(P, TRUE_LOGITS) == pytest.approx(np.zeros(4), abs=1e-12)
    assert (t.regrets(P, TRUE_LOGITS + 0.1) > 1e-4).all()
    kl = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.5 / 0.8)
    assert t.regrets([0.5], [np.log(0.2 / 0.8)])[0] == pytest.approx(kl)


def test_calibration_is_against_the_expected_positives():
    assert t.true_calibration(P, TRUE_LOGITS) == pytest.approx(1.0)
    assert t.true_calibration([0.2, 0.2], [0.0, 0.0]) == pytest.approx(2.5)


def test_z_is_standard_normal_under_the_truth():
    rng = np.random.default_rng(0)
    p = rng.beta(1, 4, size=2_000)
    z = [t.calibration_z(p, rng.random(2_000) < p) for _ in range(300)]
    assert abs(np.mean(z)) < 0.2
    assert np.std(z) == pytest.approx(1.0, abs=0.15)
    assert t.calibration_z(p, rng.random(2_000) < 0.8 * p) < -4


def test_rows_are_found_by_request_and_item():
    truth = {"request_id": np.array([1, 1, 2, 7]), "item_id": np.array([5, 3, 5, 1])}
    found = t.rows_of(truth, np.array([7, 1, 2, 1]), np.array([1, 3, 5, 5]))
    assert found.tolist() == [3, 1, 2, 0]
    with pytest.raises(ValueError, match="1 of 2 predictions are not in the truth"):
        t.rows_of(truth, np.array([1, 9]), np.array([5, 5]))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A log's truth, and predictions of two arms: the truth itself and a constant."""
    folder = tmp_path_factory.mktemp("scored")
    log = stream_of(folder, impressions=2_000)
    truth, _ = read_truth(truth_path(log))
    p = truth["probability"]
    labels = np.random.default_rng(0).random(len(p)) < p
    table = pa.table({
        "request_id": truth["request_id"], "item_id": truth["item_id"], "ts_ms": truth["ts_ms"],
        "label": labels.astype(np.int8), "logit.truth": np.log(p / (1 - p)),
        "logit.constant": np.full(len(p), -1.0),
    })  # fmt: skip
    pq.write_table(table, folder / "predictions.parquet")
    return truth_path(log), folder / "predictions.parquet"


def run(*arguments):
    return cli.run(["synth-score", *map(str, arguments)])


def test_the_command_scores_every_arm(scored, capsys):
    assert run(*scored, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() == {"truth", "constant"}
    assert scores["truth"]["regret"] == pytest.approx(0.0, abs=1e-9)
    assert scores["truth"]["log_loss"] == pytest.approx(scores["constant"]["floor"])
    assert scores["constant"]["regret"] > 0.01
    assert abs(scores["truth"]["z"]) < 4
    assert run(*scored) == 0
    assert "regret" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("PREDICTIONS", "PREDICTIONS"), "expected the truth of a synthetic stream"),
        (("TRUTH", "TRUTH"), "expected a prediction log"),
        (("TRUTH", "none.parquet"), "not a readable Parquet file"),
        (("TRUTH", "PREDICTIONS", "--from", "2050-01-01"), "no prediction from"),
    ),
)
def test_wrong_files_are_one_line_and_code_two(scored, capsys, arguments, words):
    named = {"TRUTH": scored[0], "PREDICTIONS": scored[1]}
    assert run(*(named.get(a, a) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
