"""Idle advances: none before the stream has begun, counted ones afterwards."""

from __future__ import annotations

from stream.records import TopicPartition
from tests.support.streams import (
    SamplePipeline,
    assign,
    click,
    impression,
    record_batch,
    small_config,
)

SHOWN, CLICKS = TopicPartition("impressions", 0), TopicPartition("clicks", 0)
LOG = {SHOWN: [impression(1, 1, 0, [5])], CLICKS: [click(1, 5, 100, "click", 1)]}


def test_a_stream_that_has_not_begun_is_not_idle() -> None:
    pipeline = SamplePipeline(small_config())
    assign(pipeline, LOG)
    pipeline.idle([SHOWN, CLICKS], 60_000, 0)
    assert pipeline.sequencer.idle_advances == 0
    pipeline.process([record_batch(CLICKS, 0, LOG[CLICKS])], 0)
    assert pipeline.counts["events"] == 0, "the click must wait for the impressions' partition"
    pipeline.process([record_batch(SHOWN, 0, LOG[SHOWN])], 0)
    assert pipeline.counts["events"] == 1


def test_time_goes_on_when_all_partitions_are_silent() -> None:
    pipeline = SamplePipeline(small_config())
    assign(pipeline, LOG)
    pipeline.process([record_batch(tp, 0, rows) for tp, rows in LOG.items()], 0)
    pipeline.idle([SHOWN, CLICKS], 60_000, 0)
    pipeline.idle([SHOWN, CLICKS], 60_000, 0)
    assert pipeline.sequencer.idle_advances == 2
    assert [len(batch) for batch in pipeline.batches] == [1]
    assert pipeline.batches[0].click_ts_nK[0, 0] > 0
