"""Streams that once broke the join: many ids, long gaps, mixed forms, envelopes cut in a gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream import kernels as k
from stream.codec_write import encode_columns, impression_body
from stream.records import TopicPartition
from tests.support.streams import (
    T0,
    Log,
    SamplePipeline,
    assign,
    click,
    envelope,
    feed,
    impression,
    record_batch,
    run,
    small_config,
    watermark,
)

SHOWN, CLICKS = TopicPartition("impressions", 0), TopicPartition("clicks", 0)
HOUR_MS = 3_600_000


def test_resume_with_many_remembered_ids_forgets_the_right_ones() -> None:
    """5,000 ids alive at the snapshot: no redelivery is learned twice, none stays for ever."""
    n = 5_000
    rows = [impression(i, i % 50, i, [i % 9]) for i in range(n)]
    rows += [impression(i, i % 50, i, [i % 9]) for i in range(n)]
    log: Log = {SHOWN: [*rows, watermark(10**6)], CLICKS: [watermark(10**6)]}
    config = small_config(dedup_horizon_ms=60_000, batch_size=64)
    first = SamplePipeline(config)
    assign(first, log)
    first.process([record_batch(SHOWN, 0, rows[:n])], 0)
    first.process([record_batch(CLICKS, 0, log[CLICKS])], 0)
    second = SamplePipeline(config)
    second.apply({part.name: part for part in first.export_full()})
    assert second.join.scalar(k.N_SEEN) == n
    second.batches = first.batches
    feed(second, log, {tp: p.next_offset for tp, p in second.positions().items()})
    assert second.ledger.samples == n
    assert second.join.scalar(k.DUPLICATES) == n
    assert second.join.scalar(k.N_SEEN) == np.count_nonzero(second.join.queues.seen[:, 0])


@pytest.mark.parametrize("hours", (1, 3, 24))
def test_a_gap_longer_than_the_horizon_loses_no_label(hours: int) -> None:
    """The clock walks through a gap; ids of what is ahead of it must outlast the walk."""
    gap = hours * HOUR_MS
    shown = [impression(0, 0, 0, [1])]
    shown += [impression(i, i % 5, gap + 100 * i, [i % 9]) for i in range(1, 200)]
    clicks = [click(i % 5, i % 9, gap + 100 * i + 50, "click", i) for i in range(1, 200, 3)]
    again = [impression(i, i % 5, gap + 100 * i, [i % 9]) for i in range(1, 40)]
    end = watermark(gap + 10**6)
    log: Log = {SHOWN: [*shown, *again, end], CLICKS: [*clicks, end]}
    pipeline = run(small_config(), log)
    assert pipeline.ledger.samples == 200
    assert pipeline.join.queues.tallies[0, k.POSITIVE] == len(clicks)
    assert pipeline.join.scalar(k.DUPLICATES) == 39


def columnar(request: int, user: int, ts: int, item: int, tab: int) -> tuple[None, bytes]:
    """One impression as a columnar envelope."""
    columns: dict[str, Any] = {
        "request_id": request,
        "user_id": user,
        "ts_ms": T0 + ts,
        "item_id": item,
        "context.tab": tab,
    }
    return None, encode_columns("impression_columns", 1, columns)


def test_mixed_forms_in_one_fetch_keep_their_own_features() -> None:
    """Rows, row envelopes and columns beside one another, in one fetch or one by one."""
    rows = []
    for i in range(12):
        if i % 3 == 0:
            rows.append(columnar(i, i, 100 * i, i, i))
        elif i % 3 == 1:
            rows.append(impression(i, i, 100 * i, [i], tab=i))
        else:
            body = impression_body(
                request_id=i, user_id=i, ts_ms=T0 + 100 * i, items=[{"item_id": i, "position": 0}],
                context={"tab": i},
            )  # fmt: skip
            rows.append(envelope("impressions", [body]))
    log: Log = {SHOWN: [*rows, watermark(10**5)], CLICKS: [watermark(10**5)]}
    whole = run(small_config(), log)
    single = run(small_config(), log, [(SHOWN, 1)] * len(rows))
    ids = [np.concatenate([b.ids_nF[:, 0] for b in p.batches]).tolist() for p in (whole, single)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(rows)


def test_resume_inside_an_envelope_that_walks_a_gap() -> None:
    """Rows that moved the clock before the restart do not move it again."""
    bodies = [
        impression_body(
            request_id=i, user_id=i, ts_ms=T0 + i * HOUR_MS // 4,
            items=[{"item_id": i, "position": 0}],
        )
        for i in range(12)
    ]  # fmt: skip
    log: Log = {
        SHOWN: [envelope("impressions", bodies), watermark(10**8)],
        CLICKS: [watermark(HOUR_MS), watermark(10**8)],
    }
    whole = run(small_config(), log)
    first = SamplePipeline(small_config())
    assign(first, log)
    first.process([record_batch(SHOWN, 0, log[SHOWN][:1])], 0)
    first.process([record_batch(CLICKS, 0, log[CLICKS][:1])], 0)
    assert first.positions()[SHOWN].index > 0
    second = SamplePipeline(small_config())
    second.apply({part.name: part for part in first.export_full()})
    second.batches = first.batches
    feed(second, log, {tp: p.next_offset for tp, p in second.positions().items()})
    assert [b.settle_ms for b in second.batches] == [b.settle_ms for b in whole.batches]
    assert second.ledger == whole.ledger


def test_names_of_evicted_impressions_are_forgotten() -> None:
    rows = [impression(f"r{i}", f"u{i}", i, [f"i{i}"]) for i in range(300)]
    pipeline = run(small_config(open_max=10), {SHOWN: rows, CLICKS: [watermark(299)]})
    assert pipeline.join.scalar(k.EVICTED) > 200
    assert len(pipeline.join.names) <= 11


def test_a_malformed_first_record_does_not_start_the_stream() -> None:
    log: Log = {SHOWN: [(None, b"\xc1"), impression(1, 1, 500, [1])], CLICKS: [watermark(10**5)]}
    pipeline = SamplePipeline(small_config())
    assign(pipeline, log)
    pipeline.process([record_batch(CLICKS, 0, log[CLICKS])], 0)
    pipeline.process([record_batch(SHOWN, 0, log[SHOWN][:1])], 0)
    assert pipeline.counts["rejected"] == 1
    assert not pipeline._started


def test_ids_that_must_go_early_make_their_duplicates_too_late() -> None:
    """With room for 20 ids: the floor rises, and what is redelivered is refused, not learned."""
    shown = [impression(i, i % 5, 10 * i, [i % 9]) for i in range(200)]
    log: Log = {SHOWN: [*shown, *shown[:150], watermark(10**5)], CLICKS: [watermark(10**5)]}
    pipeline = run(small_config(ids_max=20, dedup_horizon_ms=10**6), log)
    s = pipeline.join.queues.scalars
    assert pipeline.ledger.samples == 200
    assert s[k.FORCED_FORGETS] >= 170
    assert s[k.N_SEEN] <= 20
    assert s[k.TOO_LATE_IMPRESSIONS] == 150
    assert pipeline.rejected_by_reason == {"too_late": 150}
