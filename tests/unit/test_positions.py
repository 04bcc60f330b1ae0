import numpy as np
import pytest

from stream.positions import Position, record_hash
from stream.records import TopicPartition

START = Position(source_id="s", topic="clicks", partition=3)


@pytest.mark.parametrize(
    ("one", "other"),
    (
        ((None, b""), (b"", None)),
        ((None, None), (b"", b"")),
        ((b"ab", b"c"), (b"a", b"bc")),
        ((b"", b"\x00"), (b"", b"\x01")),
    ),
)
def test_different_records_have_different_hashes(one, other):
    assert record_hash(*one) != record_hash(*other)
    assert record_hash(*one) == record_hash(*one)
    assert 0 <= record_hash(*one) < 1 << 64


def test_after_counts_whole_records_and_names_the_last():
    position = START.after(np.array([0, 1, 5], np.int64), (b"k", b"v"), 2)
    assert position.tp == TopicPartition("clicks", 3)
    assert (position.next_offset, position.index) == (6, 2)
    assert (position.count, position.offset_sum) == (3, 6)
    assert position.last_hash == record_hash(b"k", b"v")


def test_after_nothing_whole_moves_the_index_alone():
    position = START.after(np.array([7], np.int64), (None, b"v"), 0)
    begun = position.after(np.zeros(0, np.int64), None, 4)
    assert begun.index == 4
    assert (begun.next_offset, begun.count) == (8, 1)
    assert begun.last_hash == position.last_hash


def test_steps_and_one_leap_give_the_same():
    offsets = np.array([2, 3, 9, 11], np.int64)
    leap = START.after(offsets, (b"k", b"11"), 0)
    steps = START
    for offset in offsets:
        steps = steps.after(np.array([offset]), (b"k", str(offset).encode()), 0)
    assert steps == leap


def test_going_back_is_our_own_mistake():
    position = START.after(np.array([7], np.int64), (None, b"v"), 0)
    with pytest.raises(AssertionError):
        position.after(np.array([7], np.int64), (None, b"v"), 0)


def test_a_map_and_back():
    position = START.after(np.array([7], np.int64), (None, b"v"), 1)
    assert Position.from_map(position.to_map()) == position
