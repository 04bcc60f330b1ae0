"""Published copies: when they are made, who is scored by which, and what a snapshot keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from learners import catalog
from tests.support.batches import START_MS, BatchMaker, small_spec

MINUTE_MS = 60_000
SMALL = {"learner": "id_content", "options": {"device": "cpu"}}


def build(name="published", **options):
    return catalog.build(name, small_spec(), SMALL | options)


def live():
    return catalog.build("id_content", small_spec(), {"device": "cpu"})


def at(batch, ts_ms):
    """The batch, shown at one moment."""
    return dataclasses.replace(batch, ts_ms_B=torch.full_like(batch.ts_ms_B, ts_ms))


@pytest.mark.slow
def test_a_copy_scores_until_the_next_multiple():
    every = 10 * MINUTE_MS
    offset = START_MS + 3 * MINUTE_MS
    published, online = build(every_ms=every, offset_ms=offset), live()
    stream = BatchMaker(small_spec())
    probe = stream.batch(16)
    expected = {}  # period -> logits of the probe by the copy of that period
    for i in range(40):
        shown_ms = offset + i * 4 * MINUTE_MS
        period = (shown_ms - offset) // every
        if period and period not in expected:
            expected[period] = online.predict_many(probe)
        now = published.predict_many(at(probe, shown_ms))
        assert torch.equal(now, expected.get(period, online.predict_many(probe)))
        batch = at(stream.batch(24), shown_ms)
        before = published.predict_many(batch)
        assert torch.equal(published.learn_many(batch).logits_B, before)
        online.learn_many(batch)
    assert published.counts()["publications"] == len(expected) == 15
    assert published.counts()["steps"] == 40


def test_frozen_is_live_up_to_its_start_and_then_never_changes():
    start_ms = START_MS + 5 * MINUTE_MS
    frozen, online, stream = build("frozen", start_ms=start_ms), live(), BatchMaker(small_spec())
    probe = stream.batch(16)
    late = at(probe, start_ms + 90 * MINUTE_MS)
    for i in range(12):
        if i == 5:
            expected = online.predict_many(probe)
        batch = at(stream.batch(24), START_MS + i * MINUTE_MS)
        frozen.learn_many(batch)
        online.learn_many(batch)
        before_start = frozen.predict_many(at(probe, start_ms - 1))
        if i >= 5:
            assert torch.equal(frozen.predict_many(late), expected)
            assert torch.equal(before_start, expected)
        else:
            assert torch.equal(before_start, online.predict_many(probe))
    assert not torch.equal(expected, online.predict_many(probe))
    assert frozen.counts()["publications"] == 1


def test_rows_of_one_batch_are_scored_by_their_own_period():
    published, stream = build(every_ms=10 * MINUTE_MS, offset_ms=START_MS), BatchMaker(small_spec())
    for minute in (1, 8, 12, 14):
        published.learn_many(at(stream.batch(32), START_MS + minute * MINUTE_MS))
    probe = at(stream.batch(8), START_MS + 19 * MINUTE_MS)
    copy, online = published.predict_many(probe), published.live.predict_many(probe)
    assert not torch.equal(copy, online)
    mixed = dataclasses.replace(probe, ts_ms_B=probe.ts_ms_B.clone())
    mixed.ts_ms_B[3:] += MINUTE_MS  # the next period, whose copy is not yet made
    expected = torch.cat([copy[:3], online[3:]])
    assert torch.equal(published.predict_many(mixed), expected)


def test_rows_without_the_label_do_not_publish():
    published, stream = build(every_ms=10 * MINUTE_MS, offset_ms=START_MS), BatchMaker(small_spec())
    published.learn_many(at(stream.batch(8), START_MS))
    batch = at(stream.batch(8), START_MS + 30 * MINUTE_MS)
    batch.label_mask_BK[:] = 0.0
    published.learn_many(batch)
    assert published.counts()["publications"] == 0


@pytest.mark.parametrize("learner", ("base_rate", "smoothed_rates"))
def test_any_learner_can_be_published(learner):
    published = catalog.build("published", small_spec(), {"learner": learner, "every_ms": 60_000})
    stream = BatchMaker(small_spec())
    for _ in range(4):
        published.learn_many(stream.batch(8))
    assert published.counts()["publications"] == 3
    other = catalog.build("published", small_spec(), {"learner": learner, "every_ms": 60_000})
    other.apply({part.name: part for part in published.export_full()})
    probe = stream.batch(8)
    assert torch.equal(other.predict_many(probe), published.predict_many(probe))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"every_ms": -1}, "every_ms and start_ms >= 0"),
        ({"every_ms": 0}, "give a start_ms > 0"),
        ({"learner": "id_contend"}, "did you mean 'id_content'"),
        ({"options": {"sead": 1}}, "unknown option 'sead'"),
    ),
)
def test_wrong_configuration_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
