"""Metrics of a prediction log, on rows made by hand."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.replay.report import DAY_MS, evaluation_of, metrics_of, write_json
from tests.support.streams import T0

DAY = T0 - T0 % DAY_MS


def rows(**changes):
    """Four impressions of two users on one day."""
    made = {
        "request_id": np.array([1, 2, 3, 4]), "item_id": np.array([7, 8, 7, 8]),
        "user_id": np.array([1, 1, 2, 2]), "ts_ms": DAY + np.arange(4) * 1_000,
        "label": np.array([1, 0, 1, 0], np.int8),
        "logit": np.array([1.0, -1.0, -2.0, 2.0], np.float32),
    }  # fmt: skip
    return made | changes


def written(tmp_path, **changes):
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table(rows(**changes)), path)
    return path


def test_the_numbers_are_those_of_the_formulas():
    reasons = {}
    found = metrics_of(rows(), 0, reasons)
    losses = [math.log1p(math.exp(-1)), math.log1p(math.exp(-1)), math.log1p(math.exp(2)),
              math.log1p(math.exp(2))]  # fmt: skip
    assert found["log_loss"] == pytest.approx(np.mean(losses))
    assert found["ne"] == pytest.approx(np.mean(losses) / math.log(2))
    assert found["auc"] == pytest.approx(0.25)  # one pair of four is in order
    assert found["ctr"] == 0.5
    assert found["gauc_user_day"] == pytest.approx(0.5)  # 1 for one user, 0 for the other
    p = 1 / (1 + np.exp(-rows()["logit"].astype(float)))
    assert found["calibration"] == pytest.approx(p.sum() / 2)
    assert found["gauc_request"] is None
    assert reasons == {"gauc_request": "every request shows one item"}


def test_requests_with_several_items_have_a_gauc():
    found = metrics_of(rows(request_id=np.array([1, 1, 2, 2])), 0, {})
    assert found["gauc_request"] == pytest.approx(0.5)


def test_a_user_is_a_group_of_its_own_each_day():
    """The same user on two days is two groups; the timezone decides where days end."""
    times = DAY + np.array([DAY_MS - 2, DAY_MS - 1, DAY_MS, DAY_MS + 1])
    one_user = rows(user_id=np.ones(4, int), ts_ms=times)
    assert metrics_of(one_user, 0, {})["gauc_user_day"] == pytest.approx(0.5)
    whole = metrics_of(one_user, 3_600_000, {})["gauc_user_day"]
    assert whole == pytest.approx(metrics_of(one_user, 0, {})["auc"])


def test_rows_without_a_prediction_are_left_out_and_told():
    reasons = {}
    logit = np.array([1.0, np.nan, -2.0, 2.0], np.float32)
    found = metrics_of(rows(logit=logit), 0, reasons)
    assert found["ctr"] == pytest.approx(2 / 3)
    assert reasons["predictions"] == "1 rows without a prediction left out"


def test_one_class_alone_leaves_auc_undefined():
    reasons = {}
    found = metrics_of(rows(label=np.zeros(4, np.int8)), 0, reasons)
    assert found["auc"] is None
    assert found["log_loss"] is not None
    assert reasons.keys() >= {"auc", "gauc_user_day"}


def test_days_and_spans(tmp_path):
    times = DAY + np.array([0, 10, DAY_MS, DAY_MS + 10])
    path = written(tmp_path, ts_ms=times)
    found = evaluation_of(path, evaluate_from_ms=int(times[1]), offset_ms=0)
    assert (found["from_ms"], found["to_ms"]) == (times[0], times[3])
    assert found["evaluated"] == {
        "samples": 3, "positives": 1, "from_ms": times[1], "to_ms": times[3]
    }  # fmt: skip
    assert [(d["samples"], d["positives"]) for d in found["daily"]] == [(1, 0), (2, 1)]
    assert f"{found['daily'][0]['date']}.auc" in found["reasons"]
    shifted = evaluation_of(path, evaluate_from_ms=None, offset_ms=-20)
    assert len(shifted["daily"]) == 2
    assert [d["samples"] for d in shifted["daily"]] == [2, 2]


def test_string_ids_are_groups_too(tmp_path):
    path = written(tmp_path, user_id=["a", "a", "b", "b"], request_id=["x", "x", "y", "y"],
                   item_id=["p", "q", "p", "q"])  # fmt: skip
    found = evaluation_of(path, evaluate_from_ms=None, offset_ms=0)
    assert found["metrics"]["gauc_request"] == pytest.approx(0.5)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
