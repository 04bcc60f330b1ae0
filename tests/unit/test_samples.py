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
