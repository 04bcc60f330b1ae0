"""The report of a run: its main figures are the evaluation's; files are whole or not there."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.evaluation import EvaluationOptions
from stream.replay.report import evaluation_of, write_json
from tests.support.streams import T0

DAY_MS = 86_400_000
DAY = T0 - T0 % DAY_MS


def written(tmp_path, **changes):
    """A log of four impressions of two users on one day."""
    made = {
        "request_id": np.array([1, 2, 3, 4]), "item_id": np.array([7, 8, 7, 8]),
        "user_id": np.array([1, 1, 2, 2]), "ts_ms": DAY + np.arange(4) * 1_000,
        "label": np.array([1, 0, 1, 0], np.int8),
        "logit": np.array([1.0, -1.0, -2.0, 2.0], np.float32),
    }  # fmt: skip
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table(made | changes), path)
    return path


def test_the_numbers_are_those_of_the_formulas(tmp_path):
    found = evaluation_of(written(tmp_path), EvaluationOptions())
    metrics = found["metrics"]
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(-1)), math.log1p(math.exp(2)),
              math.log1p(math.exp(2))]  # fmt: skip
    assert metrics["log_loss"] == pytest.approx(np.mean(losses))
    assert metrics["ne"] == pytest.approx(np.mean(losses) / math.log(2))
    assert metrics["auc"] == pytest.approx(0.25, abs=1e-3)  # one pair of four is in order
    assert metrics["ctr"] == 0.5
    assert metrics["gauc_user_day"] == pytest.approx(0.5)  # 1 for one user, 0 for the other
    assert metrics["gauc_request"] is None
    assert found["reasons"]["gauc_request"] == "every request shows one item"


def test_days_and_spans(tmp_path):
    times = DAY + np.array([0, 10, DAY_MS, DAY_MS + 10])
    path = written(tmp_path, ts_ms=times)
    found = evaluation_of(path, EvaluationOptions(evaluate_from_ms=int(times[1])))
    assert (found["from_ms"], found["to_ms"]) == (times[0], times[3])
    assert found["evaluated"] == {
        "samples": 3, "positives": 1, "from_ms": times[1], "to_ms": times[3]
    }  # fmt: skip
    assert [(d["samples"], d["positives"]) for d in found["daily"]] == [(1, 0), (2, 1)]
    assert found["daily"][0]["auc"] is None
    assert found["reasons"][f"daily.{found['daily'][0]['date']}.auc"] == "only one class"
    shifted = evaluation_of(path, EvaluationOptions(offset_ms=-20))
    assert [d["samples"] for d in shifted["daily"]] == [2, 2]


def test_string_ids_are_groups_too(tmp_path):
    path = written(tmp_path, user_id=["a", "a", "b", "b"], request_id=["x", "x", "y", "y"],
                   item_id=["p", "q", "p", "q"])  # fmt: skip
    found = evaluation_of(path, EvaluationOptions())
    assert found["metrics"]["gauc_request"] == pytest.approx(0.5)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
