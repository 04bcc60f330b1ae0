import msgpack
import numpy as np
import pytest

from stream.records import TopicPartition
from stream.samples import Samples
from tests.support.streams import click, impression, run, small_config, watermark


def learned():
    """Batches of a small run."""
    shown = [impression(n, n % 3, 100 * n, [n % 4, 9], tab=1) for n in range(8)]
    clicks = [click(n % 3, 9, 100 * n + 50, "click", n) for n in range(0, 8, 2)]
    log = {
        TopicPartition("impressions", 0): [*shown, watermark(90_000)],
        TopicPartition("clicks", 0): [*clicks, watermark(90_000)],
    }
    return run(small_config(), log).batches


def test_samples_survive_their_bytes():
    for samples in learned():
        back = Samples.from_bytes(samples.to_bytes())
        assert len(back) == len(samples) >= 4
        for name in Samples.__slots__:
            one, other = getattr(samples, name), getattr(back, name)
            if isinstance(one, tuple):
                assert len(one) == len(other)
                assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), name
            elif isinstance(one, np.ndarray):
                assert one.dtype == other.dtype, name
                np.testing.assert_array_equal(one, other)
            else:
                assert one == other, name


def test_no_histories_survive_too():
    samples = learned()[0]
    bare = {name: getattr(samples, name) for name in Samples.__slots__}
    bare |= {"history_nL": (), "history_len_n": ()}
    assert Samples.from_bytes(Samples(**bare).to_bytes()).history_nL == ()


def test_another_version_is_refused():
    value = msgpack.unpackb(learned()[0].to_bytes())
    with pytest.raises(ValueError, match="expected version 1"):
        Samples.from_bytes(msgpack.packb(value | {"v": 2}))


def test_a_session_counts_the_users_impressions_and_ends_with_a_gap():
    times = (0, 900, 900, 1_900, 2_901, 3_000)
    shown = [impression(n, 7, ts, [n, n + 50], tab=1) for n, ts in enumerate(times)]
    log = {
        TopicPartition("impressions", 0): [*shown, watermark(90_000)],
        TopicPartition("clicks", 0): [watermark(90_000)],
    }
    pipeline = run(small_config(session_gap_ms=1_000), log)
    positions = [s.session_position_n.tolist() for s in pipeline.batches]
    # Two items at a time; what was shown at 900 does not see each other; 2901 is too far.
    assert [p for batch in positions for p in batch] == [0, 0, 2, 2, 2, 2, 6, 6, 0, 0, 2, 2]
    column = [d.name for d in pipeline.plan.spec.dense].index("session")
    batch = pipeline._assembler.prediction_batch(pipeline.batches[0])
    assert batch.dense_BD[:, column].tolist() == positions[0]


def test_open_counts_what_has_no_outcome_yet():
    # Shown to one user at 0, 1000 and 9000; what is shown settles 6000 and some later.
    shown = [impression(n, 7, ts, [n], tab=1) for n, ts in enumerate((0, 1_000, 9_000))]
    log = {
        TopicPartition("impressions", 0): [*shown, watermark(90_000)],
        TopicPartition("clicks", 0): [watermark(90_000)],
    }
    pipeline = run(small_config(), log)
    column = [d.name for d in pipeline.plan.spec.dense].index("user.open")
    rows = [
        row
        for batch in pipeline.batches
        for row in pipeline._assembler.prediction_batch(batch).dense_BD[:, column].tolist()
    ]
    assert rows == pytest.approx([0, np.log(2), 0])


def test_clicked_says_whether_the_user_did_since_the_impression_before():
    shown = [impression(n, 7, 1_000 * n, [n], tab=1) for n in range(5)]
    clicks = [
        click(7, 0, 500, "click", 0),
        click(7, 50, 2_100, "watch"),
        click(7, 1, 2_200, "like", 1),
        click(8, 3, 3_100, "watch"),
    ]
    log = {
        TopicPartition("impressions", 0): [*shown, watermark(90_000)],
        TopicPartition("clicks", 0): [*clicks, watermark(90_000)],
    }
    pipeline = run(small_config(), log)
    found = [c for batch in pipeline.batches for c in batch.clicked_n.tolist()]
    assert found == [0, 1, -1, 1, -1]
    column = [d.name for d in pipeline.plan.spec.dense].index("clicked")
    batch = pipeline._assembler.prediction_batch(pipeline.batches[0])
    assert batch.dense_BD[:, column].tolist() == pipeline.batches[0].clicked_n.tolist()
