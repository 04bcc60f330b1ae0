"""Order, frontier, clocks and positions of the sequencer, from columns made by hand."""

import numpy as np
import pytest

from stream.columns import EventColumns, EventKind, ImpressionColumns, Reason, Rejected
from stream.partition_clock import ClockLimits
from stream.positions import MASK64, Position, record_hash
from stream.records import RecordBatch, TopicPartition
from stream.sequencer import PARTITIONS_MAX, Sequencer

RANKS = {"impressions": 0, "clicks": 1}
I0, I1 = TopicPartition("impressions", 0), TopicPartition("impressions", 1)
C0 = TopicPartition("clicks", 0)
NO_IMPRESSIONS = ImpressionColumns(
    ids_mF=np.zeros((0, 1), np.int64), multi_mM=(), dense_mX=np.zeros((0, 0), np.float32),
    position_m=np.zeros(0, np.int32), propensity_m=np.zeros(0, np.float32),
)  # fmt: skip


def columns(times, records=None, kinds=None, users=None):
    """Organic rows at `times`; `records` is each row's record."""
    n = len(times)
    record_n = np.arange(n) if records is None else np.array(records)
    starts = np.searchsorted(record_n, record_n)
    kind_n = np.full(n, EventKind.ORGANIC) if kinds is None else np.array(kinds)
    bad = [
        Rejected(record=int(record_n[i]), index=0, reason=Reason.MALFORMED, detail="bad")
        for i in np.flatnonzero(kind_n == EventKind.REJECTED)
    ]
    return EventColumns(
        kind_n=kind_n.astype(np.uint8), ts_ms_n=np.array(times, np.int64),
        request_n=np.zeros(n, np.int64), item_n=np.arange(n, dtype=np.int64),
        user_n=np.zeros(n, np.int64) if users is None else np.array(users, np.int64),
        click_kind_n=np.zeros(n, np.int16),
        record_n=record_n.astype(np.int32), index_n=(np.arange(n) - starts).astype(np.int32),
        imp_n=np.full(n, -1, np.int32), impressions=NO_IMPRESSIONS, rejected=bad,
    )  # fmt: skip


def batch(tp, offsets):
    return RecordBatch(
        tp=tp, offset_n=np.array(offsets, np.int64),
        timestamp_ms_n=np.zeros(len(offsets), np.int64),
        keys=[b"k"] * len(offsets), values=[str(o).encode() for o in offsets],
    )  # fmt: skip


def push(sequencer, tp, times, first=0, kinds=None):
    offsets = range(first, first + len(times))
    sequencer.push(batch(tp, offsets), columns(times, kinds=kinds))


def empty(jump=10**9, room=100):
    limits = ClockLimits(max_jump_ms=jump, max_future_ms=3_600_000)
    return Sequencer(limits=limits, buffered_max=room)


def sequencer(*tps, jump=10**9, room=100):
    made = empty(jump, room)
    made.assign(RANKS, [Position(source_id="s", topic=tp.topic, partition=tp.partition)
                        for tp in tps])  # fmt: skip
    return made


def released(made):
    """(topic, partition, time) of the rows that come out."""
    out = made.release()
    if out is None:
        return []
    return [
        (out.batches[c].tp.topic, out.batches[c].tp.partition, t)
        for c, t in zip(out.chunk_n.tolist(), out.ts_ms_n.tolist(), strict=True)
    ]


def test_rows_come_out_by_clock_then_topic_then_partition():
    made = sequencer(I0, I1, C0)
    push(made, C0, [10, 20])
    push(made, I1, [10, 20])
    push(made, I0, [10, 20])
    assert released(made) == [
        ("impressions", 0, 10), ("impressions", 1, 10), ("clicks", 0, 10), ("impressions", 0, 20),
    ]  # fmt: skip


def test_nothing_passes_a_partition_that_has_said_nothing():
    made = sequencer(I0, C0)
    push(made, I0, [10, 20])
    assert released(made) == []
    push(made, C0, [15])
    assert released(made) == [("impressions", 0, 10), ("clicks", 0, 15)]


def test_a_partition_that_lags_takes_its_own_clock():
    """An event that is behind its partition's clock keeps its place in the partition."""
    made = sequencer(I0)
    push(made, I0, [10, 50, 20, 60])
    out = made.release()
    assert out.clock_n.tolist() == [10, 50, 50, 60]
    assert out.ts_ms_n.tolist() == [10, 50, 20, 60]


def test_a_jump_of_the_clock_is_cut_short_but_a_watermark_is_believed():
    made = sequencer(I0, jump=100)
    push(made, I0, [1_000, 9_000, 1_010, 1_300])
    out = made.release()
    assert out.clock_n.tolist() == [1_000, 1_100, 1_100, 1_110]
    assert made.clock_jumps == 2
    kinds = [EventKind.ORGANIC, EventKind.WATERMARK]
    push(made, I0, [1_110, 9_000], first=4, kinds=kinds)
    assert made.release().clock_n.tolist() == [1_110, 9_000]
    assert made.clock_jumps == 2


def test_jumps_are_counted_when_they_are_released():
    made = sequencer(I0, C0, jump=100)
    push(made, I0, [1_000, 9_000, 9_000])
    assert made.clock_jumps == 0
    push(made, C0, [1_000, 1_090, 1_150])
    made.release()
    assert made.clock_jumps == 1
    made.finish(C0)
    made.release()
    assert made.clock_jumps == 2


def test_rejected_rows_take_the_clock_and_are_told_once():
    made = sequencer(I0)
    push(made, I0, [10, 0, 30], kinds=[EventKind.ORGANIC, EventKind.REJECTED, EventKind.ORGANIC])
    out = made.release()
    assert out.clock_n.tolist() == [10, 10, 30]
    assert [(r.tp, r.offset, r.reason, r.value) for r in out.rejected] == [
        (I0, 1, "malformed", b"1")
    ]
    push(made, I0, [40], first=3)
    assert made.release().rejected == []


def test_silent_partitions_stop_holding_others_back_until_they_speak():
    made = sequencer(I0, C0)
    push(made, I0, [10, 20])
    made.set_idle([C0])
    assert released(made) == [("impressions", 0, 10), ("impressions", 0, 20)]
    push(made, C0, [12])
    assert released(made) == [("clicks", 0, 12)]
    push(made, I0, [30], first=2)
    assert released(made) == []  # the partition spoke, so it counts again


def test_finished_partitions_hold_nobody_back_and_all_finished_release_all():
    made = sequencer(I0, C0)
    push(made, I0, [10, 20])
    push(made, C0, [5])
    made.finish(C0)
    assert len(released(made)) == 3
    push(made, C0, [90], first=1)
    made.finish(I0)
    assert released(made) == [("clicks", 0, 90)]


def test_positions_count_what_was_released_not_what_was_fetched():
    made = sequencer(I0, C0)
    made.push(batch(I0, [4, 7, 9]), columns([10, 20, 90]))
    push(made, C0, [50])
    made.release()
    position = made.positions()[I0]
    assert (position.next_offset, position.index) == (8, 0)
    assert (position.count, position.offset_sum) == (2, 11)
    assert position.last_hash == record_hash(b"k", b"7")
    assert made.positions()[C0].count == 1
    assert made.buffered == 1


def begun():
    """Released up to the middle of the record at offset 6."""
    made = sequencer(I0, C0)
    made.push(batch(I0, [3, 6, 8]), columns([10, 20, 60, 70, 80], [0, 1, 1, 1, 2]))
    push(made, C0, [65])
    out = made.release()
    assert out.ts_ms_n.tolist() == [10, 20, 60, 65]
    return made


def test_a_release_can_stop_inside_a_record():
    made = begun()
    position = made.positions()[I0]
    assert (position.next_offset, position.index, position.count) == (4, 2, 1)
    made.finish(C0)
    assert released(made) == [("impressions", 0, 70), ("impressions", 0, 80)]
    position = made.positions()[I0]
    assert (position.next_offset, position.index, position.count) == (9, 0, 3)


def test_a_record_that_was_begun_goes_on_after_restore_also_behind_a_gap():
    before = begun()
    made = empty()
    made.restore(before.export())
    made.push(batch(I0, [6, 8]), columns([20, 60, 70, 80], [0, 0, 0, 1]))
    made.finish(C0)
    assert released(made) == [("impressions", 0, 70), ("impressions", 0, 80)]
    before.finish(C0)
    before.release()
    assert made.positions() == before.positions()


def test_restored_clocks_hold_the_order():
    before = sequencer(I0, C0)
    push(before, I0, [10, 50])
    push(before, C0, [50])
    before.release()
    made = empty()
    made.restore(before.export())
    made.finish(C0)
    push(made, I0, [20], first=2)  # late: takes the clock of 50
    out = made.release()
    assert out.clock_n.tolist() == [50]


def test_what_waits_for_release_has_not_moved_the_clock_that_is_kept():
    """A snapshot between the two claims of a gap: the second one is believed all the same."""
    times, users = [1_000, 10**8, 10**8 + 10, 10**8 + 20], [1, 2, 3, 4]

    def shown(first, stop):
        return batch(I0, range(first, stop)), columns(times[first:stop], users=users[first:stop])

    whole = sequencer(I0, C0, jump=100)
    whole.push(*shown(0, 4))
    push(whole, C0, [1_150])
    released(whole)
    made = empty(100)
    made.restore(whole.export())
    assert made.positions()[I0].next_offset == 2
    made.push(*shown(2, 4))
    for one in (whole, made):
        one.finish(C0)
    expected = [10**8 + 10, 10**8 + 20]
    assert [one.release().clock_n.tolist() for one in (whole, made)] == [expected, expected]


def test_wants_leaves_full_partitions_out():
    made = sequencer(I0, C0, room=2)
    push(made, I0, [10, 20])
    assert made.wants() == {C0}
    push(made, C0, [30])
    made.release()
    assert made.wants() == {I0, C0}


def test_assigning_again_keeps_buffer_and_position():
    made = sequencer(I0, C0)
    push(made, I0, [10, 20])
    made.assign(RANKS, [Position(source_id="s", topic="impressions", partition=0)])
    push(made, C0, [15])
    assert released(made)
    assert made.positions()[I0].next_offset == 1


def test_rebase_restarts_offsets_and_keeps_clocks():
    made = sequencer(I0)
    push(made, I0, [50])
    made.release()
    made.finish(I0)
    made.rebase([Position(source_id="other", topic="impressions", partition=0)])
    assert made.positions()[I0].source_id == "other"
    push(made, I0, [20])
    assert made.release().clock_n.tolist() == [50]
    assert made.positions()[I0].next_offset == 1


def test_too_many_partitions_are_refused():
    with pytest.raises(ValueError, match="at most 8191 fit"):
        sequencer(TopicPartition("impressions", PARTITIONS_MAX))


def test_offset_sums_wrap():
    position = Position(source_id="s", topic="clicks", partition=0, offset_sum=MASK64)
    after = position.after(np.array([5], np.int64), (None, None), 0)
    assert after.offset_sum == 4
