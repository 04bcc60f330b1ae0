"""Prediction logs become columns of numbers, alone and joined; what is wrong is named."""

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import InputError
from stream.evaluation import align, read_rows
from stream.evaluation.rows import coded
from tests.support.prediction_rows import columns, rows_of, some, two_arms, write

BASIC = ("request_id", "item_id", "user_id", "ts_ms", "label", "logit")


def values(column):
    return np.array(column.values.to_pylist())[column.code_n]


@pytest.mark.parametrize(
    "ids",
    (
        [5, 5, 9, 9, 9, -2],
        [5, 9, 5, 9, -2, 5],
        ["b", "a", "b", "c"],
        [],
        list(range(50)),
    ),
)
def test_codes_stand_for_ids(ids):
    column = coded(pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64()))
    assert values(column).tolist() == ids
    assert column.count == len(set(ids))
    assert column.code_n.dtype == np.int32


def test_a_log_is_read_with_all_its_columns(tmp_path):
    log = columns(500, slate=3)
    rows = read_rows(write(log, tmp_path / "log.parquet"))
    for name, column in (("request_id", rows.request), ("item_id", rows.item)):
        np.testing.assert_array_equal(values(column), log[name])
    np.testing.assert_array_equal(values(rows.user), log["user_id"])
    np.testing.assert_array_equal(values(rows.fields["tab"]), log["field.tab"])
    np.testing.assert_array_equal(rows.ts_ms_n, log["ts_ms"])
    np.testing.assert_array_equal(rows.logits["ranker"], log["logit"])
    np.testing.assert_array_equal(rows.batch_n, log["batch"])
    np.testing.assert_array_equal(rows.history_len_n, log["history_len"])
    np.testing.assert_array_equal(rows.has_vector_n, log["has_vector"])
    assert rows.ahead == 0
    assert len(rows) == 500


def test_an_old_log_lacks_what_it_did_not_record(tmp_path):
    log = {name: column for name, column in columns(40).items() if name in BASIC}
    log["item_id"] = [f"item {i}" for i in log["item_id"]]
    rows = read_rows(write(log, tmp_path / "old.parquet"), name="mine")
    assert list(rows.logits) == ["mine"]
    assert rows.batch_n is rows.history_len_n is rows.has_vector_n is rows.ahead is None
    assert rows.fields == {}
    assert values(rows.item).tolist() == log["item_id"]


def test_rows_predicted_by_weights_from_later_are_counted(tmp_path):
    log = columns(100)
    log["weights_ms"][7:10] = log["ts_ms"][7:10] + 1
    assert read_rows(write(log, tmp_path / "log.parquet")).ahead == 3


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda log: log.pop("ts_ms"), "column 'ts_ms' is missing"),
        (lambda log: log.pop("logit"), "column 'logit' is missing"),
        (lambda log: log["label"].__setitem__(3, 2), "labels are 0 and 1"),
        (
            lambda log: log.update(item_id=pa.array([None, *range(29)], pa.int64())),
            "column 'item_id' has empty values",
        ),
    ),
)
def test_a_log_that_is_none_is_refused(tmp_path, change, message):
    log = columns(30)
    change(log)
    with pytest.raises(InputError, match=message):
        read_rows(write(log, tmp_path / "log.parquet"))


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_rows(path)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_rows(tmp_path / "absent.parquet")


def test_logs_are_joined_on_what_all_of_them_hold():
    log = columns(300, slate=2)
    rng = np.random.default_rng(0)
    kept, order = np.flatnonzero(rng.random(300) < 0.9), rng.permutation(300)[:280]
    other = some(log, order) | {"logit.b": log["logit"][order] * 2}
    del other["logit"]
    joined = align({"first": rows_of(some(log, kept)), "second": rows_of(other)})
    both = kept[np.isin(kept, order)]
    assert len(joined) == len(both)
    np.testing.assert_array_equal(joined.ts_ms_n, log["ts_ms"][both])
    np.testing.assert_array_equal(joined.logits["logit"], log["logit"][both])
    np.testing.assert_array_equal(joined.logits["b"], log["logit"][both] * 2)
    assert joined.unmatched == {"first": len(kept) - len(both), "second": 280 - len(both)}


def test_equal_arm_names_are_told_apart_by_their_log():
    log = columns(50)
    joined = align({"x": rows_of(log), "y": rows_of(log)})
    assert list(joined.logits) == ["x.logit", "y.logit"]
    assert joined.unmatched == {"x": 0, "y": 0}


def test_numbers_and_texts_of_one_id_match():
    log = columns(50)
    text = log | {name: [str(v) for v in log[name]] for name in ("request_id", "item_id")}
    assert len(align({"x": rows_of(log), "y": rows_of(text)})) == 50


def test_learn_steps_of_joined_logs_are_those_that_agree():
    log = columns(8)
    one, two = log | {"batch": np.arange(8) // 4}, log | {"batch": np.arange(8) // 3}
    batch = align({"x": rows_of(one), "y": rows_of(two)}).batch_n
    same = batch[:, None] == batch[None]
    step = np.arange(8)
    expected = (step[:, None] // 4 == step // 4) & (step[:, None] // 3 == step // 3)
    np.testing.assert_array_equal(same, expected)
    without = {name: column for name, column in log.items() if name != "batch"}
    assert align({"x": rows_of(one), "y": rows_of(without)}).batch_n is None


def test_logs_that_do_not_belong_together_are_refused():
    log = two_arms(60)
    flipped = log | {"label": 1 - log["label"]}
    with pytest.raises(InputError, match="60 rows have different labels"):
        align({"x": rows_of(log), "y": rows_of(flipped)})
    other = log | {"request_id": log["request_id"] + 1_000_000}
    with pytest.raises(InputError, match=r"no \(request, item\) is in all"):
        align({"x": rows_of(log), "y": rows_of(other)})
    twice = some(log, np.append(np.arange(60), 4))
    with pytest.raises(InputError, match="'y': an item of a request is there twice"):
        align({"x": rows_of(log), "y": rows_of(twice)})
