"""Recorded steps: the benchmarks' trials give a replay's logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.benchmarks.tune import nested
from tests.support.batches import BatchMaker, small_spec
from tests.support.recorded import Recording, joined


def recording(steps: int = 8, rows: int = 16) -> Recording:
    """Each batch is shown before the step that learns it."""
    stream = BatchMaker(small_spec(), nominal_size=rows)
    batches = [stream.batch(rows) for _ in range(steps)]
    table = batches[0].content.table_VC
    batches = [replace(b, content=replace(b.content, table_VC=table)) for b in batches]
    return Recording(spec=small_spec(), steps=tuple(((b,), b) for b in batches))


def test_a_run_predicts_before_it_learns():
    made = recording()
    options = {"device": "cpu", "seed": 3}
    logit_n, us = made.run("id_content", options, from_ms=0)
    assert us > 0
    assert logit_n.shape == (128,)
    assert np.ptp(logit_n[:16]) == 0  # nothing is known before the first step
    assert np.ptp(logit_n[16:]) > 0
    late = int(made.ts_ms_n[80])
    again, _ = made.run("id_content", options, from_ms=late)
    shown = made.ts_ms_n >= late
    assert np.isnan(again[~shown]).all()
    np.testing.assert_array_equal(again[shown], logit_n[shown])


def test_each_step_is_timed():
    learn, predict = recording().times("id_content", {"device": "cpu"})
    assert len(learn) == len(predict) == 8
    assert min(learn + predict) > 0


def test_coarser_steps_hold_the_same_rows_in_the_same_order():
    made = recording()
    coarse = made.coarser(3)
    assert [len(learned) for _, learned in coarse.steps] == [48, 48, 32]
    assert coarse.steps[0][1].nominal_size == 48
    np.testing.assert_array_equal(coarse.sample_n, made.sample_n)
    np.testing.assert_array_equal(coarse.label_n(), made.label_n())
    content = coarse.steps[2][1].content
    assert content is not None
    last = made.steps[7][1].content
    assert last is not None
    assert torch.equal(content.bags_BL[0][16:], last.bags_BL[0])


def test_left_out_inputs_are_gone_from_batches_and_specification():
    made = recording().without({"tab", "tags", "user.*", "duration"})
    assert [f.name for f in made.spec.ids] == ["user", "item"]
    assert [b.name for b in made.spec.bags] == ["history"]
    assert made.spec.bag_fields == ()
    assert [d.name for d in made.spec.dense] == ["prior", "item.rate"]
    batch = made.steps[0][1]
    assert batch.ids_BF.shape[1] == batch.dense_BD.shape[1] == 2
    assert batch.content is not None
    assert len(batch.content.bags_BL) == 1
    bare = recording().without({"content", "history"})
    assert bare.spec.content_dim == 0
    assert bare.steps[0][1].content is None
    logits, _ = bare.run("id_content", {"device": "cpu"}, from_ms=0)
    assert np.isfinite(logits).all()


def test_batches_of_other_tables_are_not_joined():
    stream = BatchMaker(small_spec())
    with pytest.raises(AssertionError, match="tables differ"):
        joined([stream.batch(4), stream.batch(4)], 2)


def test_settings_are_nested():
    flat = {"adam.lr": 0.1, "adam.beta1": 0.5, "hidden": (8, 4)}
    assert nested(flat) == {"adam": {"lr": 0.1, "beta1": 0.5}, "hidden": [8, 4]}
