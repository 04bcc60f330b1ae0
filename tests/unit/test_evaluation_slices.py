"""Slices know the past alone: against a loop over all earlier rows, and on logs cut short."""

import numpy as np
import pyarrow as pa
import pytest

from infra.errors import InputError
from stream.evaluation.rows import MISSING, read_rows
from stream.evaluation.slices import causal_slices, field_slices, unrecorded
from tests.support.prediction_rows import HOUR_MS, START_MS, columns, rows_of, some, write

SETTLE_MS = 20 * 60_000


def shuffled(log, seed=0):
    """Rows as a join releases them: roughly, not exactly, in order of time."""
    late = np.random.default_rng(seed).integers(0, 2 * HOUR_MS, len(log["ts_ms"]))
    return some(log, np.argsort(log["ts_ms"] + late, kind="stable"))


def names(slicing):
    return [slicing.values[code] for code in slicing.code_n]


def bin_of(value, edges, labels):
    return labels[sum(value >= edge for edge in edges)]


def expected_keys(log, settle_ms):
    """The same by looking at all rows with a smaller time, for each row."""
    ts, item, user, label = (log[c] for c in ("ts_ms", "item_id", "user_id", "label"))
    counts, labels = (1, 10, 100, 1_000), ("0", "1-9", "10-99", "100-999", ">=1000")
    for i in range(len(ts)):
        same = item == item[i]
        exposures = (same & (ts < ts[i])).sum()
        clicks = label[same & (ts < ts[i] - settle_ms)].sum()
        hours = (ts[i] - ts[same].min()) / HOUR_MS
        impressions = ((user == user[i]) & (ts < ts[i])).sum()
        yield {
            "item exposures": bin_of(exposures, counts, labels),
            "item clicks": bin_of(clicks, counts, labels),
            "item age": "<1 h" if hours < 1 else "1-24 h" if hours < 24 else "1-7 d",
            "user impressions": bin_of(
                impressions, (5, 20, 100), ("0-4", "5-19", "20-99", ">=100")
            ),
            "index": exposures,
        }


def test_keys_equal_those_of_a_loop_over_the_past():
    log = shuffled(columns(1_500, users=25, items=40, slate=2))
    log["ts_ms"] = log["ts_ms"] // 200_000 * 200_000  # many ties
    slicings, index = causal_slices(rows_of(log), settle_ms=SETTLE_MS)
    found = {slicing.by: names(slicing) for slicing in slicings}
    for i, keys in enumerate(expected_keys(log, SETTLE_MS)):
        assert index[i] == keys.pop("index")
        assert {by: found[by][i] for by in keys} == keys


def test_a_log_cut_short_has_the_same_keys():
    log = shuffled(columns(3_000))
    whole, index = causal_slices(rows_of(log), settle_ms=SETTLE_MS)
    early = log["ts_ms"] <= np.quantile(log["ts_ms"], 0.6)
    cut, cut_index = causal_slices(rows_of(some(log, early)), settle_ms=SETTLE_MS)
    np.testing.assert_array_equal(cut_index, index[early])
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a.code_n[early], b.code_n)


def test_slices_partition_the_log():
    rows = rows_of(columns(2_000))
    slicings = [*causal_slices(rows, settle_ms=0)[0], *field_slices(rows)]
    assert [s.by for s in slicings] == [
        "item exposures",
        "item clicks",
        "item age",
        "user impressions",
        "history length",
        "missing vector",
        "field tab",
    ]
    for slicing in slicings:
        counts = np.bincount(slicing.code_n)
        assert counts.sum() == 2_000
        assert len(counts) <= len(slicing.values)


def test_an_own_click_is_never_known():
    log = columns(50, items=1, users=1)
    log["item_id"], log["label"] = np.full(50, 5), np.ones(50, np.int8)
    log["ts_ms"] = START_MS + np.repeat(np.arange(25), 2) * 1_000
    slicings = causal_slices(rows_of(log), settle_ms=0)[0]
    clicks = next(s for s in slicings if s.by == "item clicks")
    assert names(clicks)[:4] == ["0", "0", "1-9", "1-9"]
    settled = causal_slices(rows_of(log), settle_ms=3_000)[0][1]
    assert names(settled)[:10] == ["0"] * 8 + ["1-9"] * 2


def test_fields_keep_their_most_frequent_values():
    log = columns(500)
    log["field.tab"] = np.where(np.arange(500) < 300, MISSING, np.arange(500))
    slicing = field_slices(rows_of(log))[0]
    assert slicing.values[0] == "missing"
    assert len(slicing.values) == 21
    counts = np.bincount(slicing.code_n)
    assert (counts[0], counts[20]) == (300, 500 - 300 - 19)


@pytest.mark.parametrize(
    ("values", "kind"),
    (([7, None, 7, None, 9], pa.int64()), (["7", None, "7", None, "9"], pa.string())),
)
def test_fields_may_lack_values(tmp_path, values, kind):
    log = columns(5) | {"field.tab": pa.array(values, kind)}
    slicing = field_slices(read_rows(write(log, tmp_path / "log.parquet")))[0]
    assert names(slicing) == ["7", "missing", "7", "missing", "9"]


def test_what_is_not_recorded_is_said():
    log = columns(50)
    del log["history_len"], log["has_vector"]
    rows = rows_of(log)
    assert set(unrecorded(rows)) == {"history length", "missing vector"}
    assert len(causal_slices(rows, settle_ms=0)[0]) == 4
    assert unrecorded(rows_of(columns(50))) == {}


def test_no_rows_have_no_slices():
    rows = rows_of(some(columns(5), slice(0, 0)))
    assert all(len(s.code_n) == 0 for s in causal_slices(rows, settle_ms=5)[0])


def test_times_that_are_no_milliseconds_are_refused():
    log = columns(2_000, items=500)
    log["ts_ms"][0] = 10**17
    with pytest.raises(InputError, match="expected milliseconds"):
        causal_slices(rows_of(log), settle_ms=0)
