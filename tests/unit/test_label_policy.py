import numpy as np
import pytest

from learners.batch import RowKind
from stream.label_policy import LabelConfig, WindowPolicy
from stream.records import TopicPartition
from tests.support.streams import click, impression, run, small_config, watermark


def batches_of(*clicks):
    """Batches of one request with two items, shown at 0."""
    log = {
        TopicPartition("impressions", 0): [impression(1, 5, 0, [1, 2]), watermark(90_000)],
        TopicPartition("clicks", 0): [*clicks, watermark(90_000)],
    }
    return run(small_config(), log).batches


def test_one_row_a_sample_with_all_labels_known():
    (samples,) = batches_of(click(5, 1, 700, "click", 1), click(5, 1, 3_000, "like", 1))
    rows = WindowPolicy().rows(samples)
    assert rows.row_n.tolist() == [0, 1]
    assert rows.labels_nK.tolist() == [[1, 1], [0, 0]]
    assert rows.label_mask_nK.tolist() == [[1, 1], [1, 1]]
    assert rows.labels_nK.dtype == rows.label_mask_nK.dtype == np.float32
    assert rows.row_kind_n.tolist() == [RowKind.SAMPLE] * 2


def test_each_kind_has_a_window_of_its_own():
    """The click window is 2 s, that of likes 6 s; both ends belong to them."""
    at_end = batches_of(click(5, 1, 2_000, "click", 1), click(5, 2, 6_000, "like", 1))
    assert WindowPolicy().rows(at_end[0]).labels_nK.tolist() == [[1, 0], [0, 1]]
    after = batches_of(click(5, 1, 2_001, "click", 1), click(5, 2, 6_001, "like", 1))
    assert WindowPolicy().rows(after[0]).labels_nK.tolist() == [[0, 0], [0, 0]]


def test_age_is_from_the_impression_to_the_watermark_that_let_it_go():
    (samples,) = batches_of()
    rows = WindowPolicy().rows(samples)
    assert (rows.age_ms_n >= 6_000).all()
    assert rows.age_ms_n.tolist() == (samples.settle_ms - samples.ts_ms_n).tolist()


@pytest.mark.parametrize("window_ms", (0, -1))
def test_a_window_must_be_positive(window_ms):
    with pytest.raises(ValueError, match="window_ms must be positive"):
        LabelConfig(window_ms=window_ms)
