"""A partition's clock: what one client can do to it, and how fast it gets over a gap."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream.columns import EventColumns, EventKind, ImpressionColumns
from stream.partition_clock import ClockLimits, PartitionClock
from tests.support.examples import examples

T0, MINUTE_MS = 1_650_000_000_000, 60_000
JUMP_MS, FUTURE_MS = 10 * MINUTE_MS, 60 * MINUTE_MS
LIMITS = ClockLimits(max_jump_ms=JUMP_MS, max_future_ms=FUTURE_MS)
DAY_MS = 1_440 * MINUTE_MS
BAD = 99
NO_IMPRESSIONS = ImpressionColumns(
    ids_mF=np.zeros((0, 1), np.int64), multi_mM=(), dense_mX=np.zeros((0, 0), np.float32),
    position_m=np.zeros(0, np.int32), propensity_m=np.zeros(0, np.float32),
)  # fmt: skip
Event = tuple[int, int, int]  # time, user, request


def columns(events: list[Event], kinds: list[int] | None = None) -> EventColumns:
    """Impression rows, or rows of the kinds given."""
    n = len(events)
    ts, user, request = (np.array(c, np.int64) for c in zip(*events, strict=True)) if n else (
        np.zeros((3, 0), np.int64)
    )  # fmt: skip
    return EventColumns(
        kind_n=np.array(kinds if kinds is not None else [EventKind.IMPRESSION] * n, np.uint8),
        ts_ms_n=ts, request_n=request, item_n=np.arange(n), user_n=user,
        click_kind_n=np.zeros(n, np.int16), record_n=np.arange(n, dtype=np.int32),
        index_n=np.zeros(n, np.int32), imp_n=np.full(n, -1, np.int32), impressions=NO_IMPRESSIONS,
    )  # fmt: skip


def clocks(events: list[Event]) -> list[int]:
    """The clock after each event."""
    return PartitionClock().walk(columns(events), 0, LIMITS).clock_n.tolist()


def honest(gaps: list[int]) -> list[Event]:
    """Events in order of time, each of another user than the one before."""
    times = T0 + np.cumsum(gaps)
    return [(int(t), 1 + i % 7, i + 1) for i, t in enumerate(times)]


steps = st.lists(st.integers(0, MINUTE_MS), min_size=2, max_size=40)
ahead = st.integers(JUMP_MS + MINUTE_MS, 400 * DAY_MS)


@examples(60)
@given(gaps=steps, offset=ahead, at=st.sets(st.integers(1, 39)), rows=st.integers(1, 50))
def test_a_client_with_a_wrong_clock_moves_it_by_one_jump_however_often(gaps, offset, at, rows):
    """Each time a request of several items, between events of others."""
    events, good = [], []
    for i, event in enumerate(honest(gaps)):
        if i in at:
            events += [(event[0] + offset, BAD, -i)] * rows
            good += [event[0]] * rows
        events.append(event)
        good.append(event[0])
    beyond = np.array(clocks(events)) - np.array(good)
    assert beyond.min() >= 0
    assert beyond.max() <= JUMP_MS


@examples(60)
@given(gaps=steps, offset=ahead, n=st.integers(1, 20))
def test_one_client_in_a_row_walks_by_a_jump_an_event(gaps, offset, n):
    events = honest(gaps)
    last = events[-1][0]
    burst = [(last + offset + i, BAD, -i) for i in range(1, n + 1)]
    assert clocks(events + burst)[-1] == min(burst[-1][0], last + n * JUMP_MS)
    # Nobody confirms it: where it has not been walked to, others go on as if it had not been.
    after = [(last + MINUTE_MS, 1, 777), (last + 2 * MINUTE_MS, 2, 778)]
    assert clocks(events + burst + after)[-1] == clocks(events + burst)[-1]


@examples(60)
@given(gaps=steps, gap=st.integers(FUTURE_MS + JUMP_MS, 400 * DAY_MS), then=steps)
def test_a_gap_is_over_with_its_second_event(gaps, gap, then):
    before = honest(gaps)
    after = honest([before[-1][0] - T0 + gap, *then])
    for i, (event, clock) in enumerate(
        zip(after, clocks(before + after)[len(before) :], strict=True)
    ):
        if i == 0:
            assert clock == before[-1][0] + JUMP_MS
        else:
            assert clock == event[0]


@examples(60)
@given(gaps=st.lists(st.integers(0, 3 * DAY_MS), min_size=2, max_size=40))
def test_on_a_sparse_stream_the_clock_stays_near(gaps):
    """Never behind by more than what is walked (`max_future_ms`) and the gap just gone by."""
    events = honest(gaps)
    behind = np.array([t for t, _, _ in events]) - np.array(clocks(events))
    assert behind.min() >= 0
    assert (behind[1:] <= FUTURE_MS + np.array(gaps[1:])).all()


wild = st.lists(
    st.tuples(
        st.integers(T0, T0 + 3 * DAY_MS), st.integers(1, 3), st.integers(0, 3),
        st.sampled_from([0, 0, 0, 1, 2, 3, 4]),
    ),
    max_size=40,
)  # fmt: skip


@examples(60)
@given(rows=wild, cut=st.integers(0, 40), then=st.integers(0, 40))
def test_where_rows_are_cut_changes_nothing(rows, cut, then):
    """Another walk from a clock that followed, or rows that had been taken already: the same."""
    events, kinds = [(t, u, r) for t, u, r, _ in rows], [k for *_, k in rows]
    one, released = PartitionClock(), PartitionClock()
    all_rows = columns(events, kinds)
    whole = one.walk(all_rows, 0, LIMITS)
    released.follow(whole, all_rows, 0, min(cut, len(rows)))
    released.follow(whole, all_rows, min(cut, len(rows)), min(max(cut, then), len(rows)))
    stop = min(max(cut, then), len(rows))
    rest, again = PartitionClock.from_map(released.to_map()), released.copy()
    tail = rest.walk(columns(events[stop:], kinds[stop:]), 0, LIMITS)
    assert tail.clock_n.tolist() == whole.clock_n[stop:].tolist()
    assert again.walk(all_rows, stop, LIMITS).clock_n[stop:].tolist() == tail.clock_n.tolist()
    assert rest.to_map() == again.to_map() == one.to_map()


@examples(60)
@given(rows=wild)
def test_it_never_falls_and_never_leads_the_events(rows):
    events, kinds = [(t, u, r) for t, u, r, _ in rows], [k for *_, k in rows]
    walk = PartitionClock().walk(columns(events, kinds), 0, LIMITS)
    times = np.where(np.array(kinds, int) == EventKind.REJECTED, 0, [t for t, _, _ in events])
    newest = np.maximum.accumulate(times.astype(np.int64))
    assert (np.diff(walk.clock_n) >= 0).all()
    assert (walk.agreed_n <= walk.clock_n).all()
    assert (walk.clock_n <= newest).all()
    is_cut = np.zeros(len(rows), bool)
    is_cut[walk.cut_n] = True
    assert (walk.clock_n[is_cut] < times[is_cut]).all()
    speaks = np.array(kinds, int) < EventKind.WATERMARK
    assert (walk.clock_n[speaks & ~is_cut] >= times[speaks & ~is_cut]).all()
