"""What the prediction log says about each prediction: batch, freshness, history, vector, fields."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream.keys import ints_of_keys, key_of_str, keys_of_ints, salt_of, salted, unsalted
from stream.prediction_log import PredictionLog
from stream.prediction_memory import Predicted, PredictionMemory
from stream.predictions import MISSING, Predictions
from tests.support.replays import envelope_log, ranked_config, replay


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("columns")
    log = envelope_log(folder / "log.parquet")
    result = replay(ranked_config(report={"fields": ["tab"]}), (log,), folder / "report")
    table = pq.read_table(result.predictions)
    return {name: table[name].to_numpy() for name in table.column_names}


def test_salts_are_taken_off_again():
    keys = np.append(keys_of_ints(np.arange(-5, 5)), [key_of_str("tab"), 0])
    salt = salt_of("field")
    assert unsalted(salted(keys, salt), salt).tolist() == keys.tolist()
    assert ints_of_keys(unsalted(salted(keys, salt), salt))[:10].tolist() == list(range(-5, 5))


def test_weights_know_no_label_that_was_open_when_the_row_was_shown(rows):
    """Causality: what trained the weights had settled before the row was predicted."""
    assert (rows["weights_ms"] < rows["ts_ms"] + 2_000).all()  # its own window is 2 s or longer
    assert rows["weights_ms"].max() > 0


def test_rows_of_one_batch_were_predicted_by_the_same_weights(rows):
    for batch in np.unique(rows["batch"]):
        assert len(np.unique(rows["weights_ms"][rows["batch"] == batch])) == 1
    assert len(np.unique(rows["batch"])) > 3


def test_configured_fields_come_back_as_they_were(rows):
    assert set(np.unique(rows["field.tab"])) == {0, 1, 2}


def test_fields_of_text_are_text_again(tmp_path):
    log = PredictionLog(tmp_path, 0)
    n = 3
    phone = int(ints_of_keys(np.array([key_of_str("phone")]))[0])
    predicted = Predicted(np.zeros((n, 1), np.float32), *(np.zeros(n, t) for t in (int, int, bool)))
    zeros = np.zeros(n, np.int64)
    log.append(Predictions(
        request_n=zeros, item_n=zeros, user_n=zeros, ts_ms_n=zeros, predicted=predicted,
        labels_nK=np.zeros((n, 1), np.float32), history_len_n=zeros,
        fields={"device": np.array([phone, MISSING, 7]), "tab": np.arange(n)},
    ))  # fmt: skip
    table = pq.read_table(log.finish(names={phone: "phone"}))
    assert table["field.device"].to_pylist() == ["phone", "missing", "7"]
    assert table["field.tab"].to_pylist() == [0, 1, 2]


def test_texts_of_events_and_items_are_remembered(tmp_path):
    log = envelope_log(tmp_path / "log.parquet", tabs=("home", "search"))
    config = ranked_config(report={"fields": ["tab"]})
    rows = pq.read_table(replay(config, (log,), tmp_path / "report").predictions)
    assert set(rows["field.tab"].to_pylist()) == {"home", "search"}


def test_memory_keeps_what_is_put_and_goes_through_a_snapshot():
    memory = PredictionMemory(2)
    logits = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    memory.put(np.array([5, 1]), logits, 7, 1_000, np.array([True, False]))
    assert memory.get(np.array([1])).logit_nA.tolist() == [[3.0, 4.0]]
    assert memory.get(np.array([1, 5])).has_vector_n.tolist() == [False, True]
    assert np.isnan(memory.get(np.array([90])).logit_nA).all()
    other = PredictionMemory(2)
    other.apply({"predicted": memory.export(np.array([1, 5]))})
    for a, b in zip(memory.get(np.array([1, 5])), other.get(np.array([1, 5])), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(ValueError, match="expected 1 columns"):
        PredictionMemory(1).apply({"predicted": memory.export(np.array([1]))})
