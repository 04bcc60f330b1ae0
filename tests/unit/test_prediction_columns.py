"""What the prediction log says about each prediction: batch, freshness, history, vector, fields."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream.keys import ints_of_keys, key_of_str, keys_of_ints, salt_of, salted, unsalted
from stream.prediction_memory import PredictionMemory
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


def test_memory_keeps_what_is_put_and_goes_through_a_snapshot():
    memory = PredictionMemory(2)
    memory.put(np.array([5, 1]), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), 7, 1_000)
    assert memory.get(np.array([1])).logit_nA.tolist() == [[3.0, 4.0]]
    assert np.isnan(memory.get(np.array([90])).logit_nA).all()
    other = PredictionMemory(2)
    other.apply({"predicted": memory.export(np.array([1, 5]))})
    for a, b in zip(memory.get(np.array([1, 5])), other.get(np.array([1, 5])), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(ValueError, match="expected 1 columns"):
        PredictionMemory(1).apply({"predicted": memory.export(np.array([1]))})
