"""The join against a dictionary oracle, and its independence of how records are cut."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import kernels as k
from stream.keys import key_of
from stream.records import TopicPartition
from stream.samples import Samples
from tests.support.examples import examples
from tests.support.oracle import Oracle
from tests.support.streams import (
    T0,
    Log,
    SamplePipeline,
    assign,
    click,
    feed,
    impression,
    record_batch,
    run,
    small_config,
    watermark,
)  # fmt: skip

USERS = 5
Event = tuple[str, dict[str, Any]]


def random_log(seed: int, n: int) -> tuple[Log, dict[TopicPartition, list[Event]]]:
    """Two partitions a topic: duplicates, early, late and orphan clicks, ties, late impressions."""
    rng = random.Random(seed)
    now, sent = 0, []
    events: dict[TopicPartition, list[Event]] = {
        TopicPartition(t, p): [] for t in ("impressions", "clicks") for p in (0, 1)
    }
    clicks: list[tuple[int, Event]] = []
    for number in range(n):
        now += rng.choice((0, 0, 1, 40, 300, 1_500))
        jitter = rng.choice((0, 0, 0, -200, -3_000, -15_000))
        user = rng.randrange(USERS)
        if rng.random() < 0.1 and sent:
            shown = rng.choice(sent)
        else:
            items = rng.sample(range(6), rng.choice((1, 1, 2, 3)))
            shown = {"request": number, "user": user, "ts": now + jitter, "items": items,
                     "tab": rng.randrange(2)}  # fmt: skip
            sent.append(shown)
        tp = TopicPartition("impressions", shown["user"] % 2)
        events[tp].append(("impression", shown))
        for item in shown["items"]:
            for kind in ("click", "like"):
                if rng.random() < 0.4:
                    delay = rng.choice((-100, 10, 900, 1_900, 2_500, 6_500, 30_000))
                    row = {"request": shown["request"], "item": item, "user": shown["user"],
                           "ts": shown["ts"] + delay, "click_kind": kind}  # fmt: skip
                    clicks += [(now + delay, ("click", row))] * rng.choice((1, 1, 2))
        if rng.random() < 0.3:
            row = {"request": None, "item": rng.randrange(6), "user": user, "ts": now,
                   "click_kind": rng.choice(("watch", "click"))}  # fmt: skip
            clicks.append((now, ("organic", row)))
        if rng.random() < 0.05:
            row = {"request": -number - 1, "item": 1, "user": user, "ts": now, "click_kind": "like"}
            clicks.append((now, ("click", row)))
    for _, event in sorted(clicks, key=lambda c: c[0]):
        events[TopicPartition("clicks", event[1]["user"] % 2)].append(event)
    end = ("watermark", {"ts": now + 100_000})
    for rows in events.values():
        rows.append(end)
    return {tp: [_encode(e) for e in rows] for tp, rows in events.items()}, events


def _encode(event: Event) -> tuple[bytes | None, bytes]:
    kind, e = event
    if kind == "watermark":
        return watermark(e["ts"])
    if kind == "impression":
        return impression(e["request"], e["user"], e["ts"], e["items"], tab=e["tab"])
    return click(e["user"], e["item"], e["ts"], e["click_kind"], e["request"])


def released_order(events: dict[TopicPartition, list[Event]]) -> list[tuple[int, Event]]:
    """Rule 1 by sorting everything: (partition clock, rank, partition, offset, row)."""
    rows = []
    for tp, partition in events.items():
        clock = 0
        rank = 0 if tp.topic == "impressions" else 1
        for offset, (kind, e) in enumerate(partition):
            clock = max(clock, e["ts"] + T0)
            parts = [dict(e, item=item) for item in e["items"]] if kind == "impression" else [e]
            rows += [(clock, rank, tp.partition, offset, i, (kind, part))
                     for i, part in enumerate(parts)]  # fmt: skip
    rows.sort(key=lambda r: r[:5])
    # Only the frontier's own watermark record is released at the end.
    last = next(i for i, r in enumerate(rows) if r[5][0] == "watermark")
    return [(r[0], r[5]) for r in rows[: last + 1]]


def oracle_of(events: dict[TopicPartition, list[Event]], delay: int = 0) -> Oracle:
    """The oracle after the whole stream."""
    s = small_config().stream
    oracle = Oracle(
        lateness=s.lateness_ms, linger=s.linger_ms, horizon=s.dedup_horizon_ms, batch=s.batch_size,
        delay=delay,
    )  # fmt: skip
    for clock, (kind, e) in released_order(events):
        oracle.event(clock, kind, dict(e, ts=e["ts"] + T0))
    return oracle


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """Samples as comparable rows."""
    return [
        {
            "item": int(samples.item_n[i]),
            "request": int(samples.request_n[i]),
            "ts": int(samples.ts_ms_n[i]),
            "clicks": samples.click_ts_nK[i].tolist(),
            "counts": samples.counts_nJC[i].tolist(),
            "history": samples.history_nL[0][i][: samples.history_len_n[0][i]].tolist(),
            "gap": int(samples.gap_ms_n[i]),
            "session": int(samples.session_position_n[i]),
            "clicked": int(samples.clicked_n[i]),
            "interactions": samples.interactions_n2[i].tolist(),
        }
        for i in range(len(samples))
    ]


def oracle_rows(oracle: Oracle) -> list[list[dict[str, Any]]]:
    """The oracle's batches as comparable rows."""
    return [
        [
            {
                "item": key_of(row.key[1]),
                "request": key_of(row.key[0]),
                "ts": row.ts,
                "clicks": [row.clicks.get(kind, 0) for kind in ("click", "like")],
                "counts": [list(row.counts[c]) for c in ("prior", "user", "item", "user_tab")],
                "history": [key_of(item) for item in row.history],
                "gap": row.gap,
                "session": row.session,
                "clicked": row.clicked,
                "interactions": list(row.interactions),
            }
            for row in batch
        ]
        for batch in oracle.batches
    ]


@examples(60)
@given(seed=st.integers(0, 10**9), n=st.integers(3, 60))
def test_samples_equal_the_oracle(seed: int, n: int) -> None:
    """Labels, order, batches, frozen counts, histories and counts of outcomes all agree."""
    log, events = random_log(seed, n)
    pipeline, oracle = run(small_config(), log), oracle_of(events)
    assert [rows_of(b) for b in pipeline.batches] == oracle_rows(oracle)
    s, t = pipeline.join.queues.scalars, pipeline.join.queues.tallies
    too_late = s[k.TOO_LATE_IMPRESSIONS] + t[:, k.TOO_LATE_CLICK].sum()
    assert too_late == oracle.tallies["too_late"]
    assert s[k.DUPLICATES] == oracle.tallies["duplicate_impression"]
    duplicates = oracle.tallies["duplicate_click"] + oracle.tallies["duplicate_organic"]
    assert t[:, k.DUPLICATE_CLICK].sum() == duplicates
    assert t[:, k.LATE].sum() == oracle.tallies["late"]
    assert t[:, k.ORPHAN].sum() == oracle.tallies["orphan"]


@examples(30)
@given(
    seed=st.integers(0, 10**9), n=st.integers(3, 60),
    delay=st.sampled_from((1, 2, 300, 1_500, 5_000, 20_000)), size=st.integers(1, 30),
)  # fmt: skip
def test_delayed_features_equal_the_oracle(seed: int, n: int, delay: int, size: int) -> None:
    """State as of `feature_delay_ms` before, for any cut; the same labels."""
    log, events = random_log(seed, n)
    cuts = cuts_of(log, random.Random(seed), size)
    pipeline = run(small_config(feature_delay_ms=delay), log, cuts)
    assert [rows_of(b) for b in pipeline.batches] == oracle_rows(oracle_of(events, delay))


def cuts_of(log: Log, rng: random.Random, size: int) -> list[tuple[TopicPartition, int]]:
    """Fetches of up to `size` records from random partitions until everything was fetched."""
    left = {tp: len(values) for tp, values in log.items()}
    cuts = []
    while left:
        tp = rng.choice(sorted(left))
        n = rng.randint(1, size)
        cuts.append((tp, n))
        left[tp] -= n
        if left[tp] <= 0:
            del left[tp]
    return cuts


def fingerprint(pipeline: SamplePipeline) -> tuple[Any, ...]:
    """Everything that must not depend on cuts, bit for bit (decayed floats included)."""
    columns = [np.concatenate([getattr(b, name).ravel().view(np.uint8) for b in pipeline.batches])
               for name in ("key_n", "counts_nJC", "decayed_nDC", "click_ts_nK",
                            "number_n", "gap_ms_n", "session_position_n", "clicked_n",
                            "interactions_n2")]  # fmt: skip
    histories = [b.history_nL[0].tobytes() for b in pipeline.batches]
    predicted = [c.tobytes() for p in pipeline.predictions for c in p.predicted]
    sizes = [len(b) for b in pipeline.batches]
    settled = [b.settle_ms for b in pipeline.batches]
    return (
        [c.tobytes() for c in columns], histories, predicted, sizes, settled,
        pipeline.ledger.to_map(),
        pipeline.join.queues.tallies.tolist(), pipeline.counts,
    )  # fmt: skip


@examples(25)
@given(seed=st.integers(0, 10**9))
@pytest.mark.parametrize("size", (1, 7, 1_000))
def test_cuts_and_interleavings_change_nothing(size: int, seed: int) -> None:
    """Same samples, order, batches, predictions and frozen features for any fetches and slices."""
    log, _ = random_log(seed, 40)
    whole = fingerprint(run(small_config(), log))
    rng = random.Random(seed)
    config = small_config(max_slice_events=size)
    assert fingerprint(run(config, log, cuts_of(log, rng, size))) == whole


@examples(25)
@given(seed=st.integers(0, 10**9), at=st.floats(0, 1), delay=st.sampled_from((0, 1_500)))
def test_resume_after_any_record_continues_bit_for_bit(seed: int, at: float, delay: int) -> None:
    """Kill anywhere: state from parts plus records from the positions gives the same samples."""
    log, _ = random_log(seed, 40)
    cuts = cuts_of(log, random.Random(seed), 3)
    config = small_config(feature_delay_ms=delay)
    whole = run(config, log, cuts)
    first = SamplePipeline(config)
    assign(first, log)
    offsets = dict.fromkeys(log, 0)
    for tp, n in cuts[: int(at * len(cuts))]:
        values = log[tp][offsets[tp] : offsets[tp] + n]
        if values:
            first.process([record_batch(tp, offsets[tp], values)], 0)
            offsets[tp] += len(values)
    second = SamplePipeline(config)
    second.apply({part.name: part for part in first.export_full()})
    second.batches, second.predictions = first.batches, first.predictions
    offsets = {tp: p.next_offset for tp, p in second.positions().items()}
    feed(second, log, offsets)
    assert fingerprint(second) == fingerprint(whole)
    assert second.positions() == whole.positions()


@examples(30)
@given(seed=st.integers(0, 10**9), open_max=st.integers(1, 40))
def test_nothing_gets_lost(seed: int, open_max: int) -> None:
    """Conservation by kind: admitted = positives + negatives + open + evicted, at any limit."""
    log, _ = random_log(seed, 40)
    pipeline = run(small_config(open_max=open_max), log)
    s, t = pipeline.join.queues.scalars, pipeline.join.queues.tallies
    for kind in range(2):
        settled = t[kind, k.POSITIVE] + t[kind, k.NEGATIVE]
        assert s[k.ADMITTED] == settled + s[k.OPEN_COUNT] + t[kind, k.EVICTED_OPEN]
        assert t[kind, k.POSITIVE] + t[kind, k.EVICTED_OPEN] >= t[kind, k.JOINED] - s[k.OPEN_COUNT]
        assert t[kind, k.JOINED] >= t[kind, k.POSITIVE]
    learned = sum(len(b) for b in pipeline.batches)
    assert pipeline.ledger.samples == learned
    assert learned + s[k.N_OUT] == t[0, k.POSITIVE] + t[0, k.NEGATIVE]
    keys = np.concatenate([b.key_n for b in pipeline.batches] or [np.zeros(0, np.int64)])
    assert len(set(keys.tolist())) == len(keys)
    free = s[k.N_FREE] + s[k.OPEN_COUNT] + s[k.N_OUT]
    assert free == len(pipeline.join.opened.key)


@examples(30)
@given(seed=st.integers(0, 10**9), ids_max=st.integers(5, 60))
def test_a_full_memory_of_ids_never_lets_a_duplicate_through(seed: int, ids_max: int) -> None:
    """Ids that go before their time raise the floor: too late, but never learned twice."""
    log, _ = random_log(seed, 60)
    pipeline = run(small_config(ids_max=ids_max), log)
    keys = np.concatenate([b.key_n for b in pipeline.batches] or [np.zeros(0, np.int64)])
    assert len(set(keys.tolist())) == len(keys)
