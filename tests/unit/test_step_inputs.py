"""Inputs that a step adds to a MiniBatch."""

from __future__ import annotations

import dataclasses

import torch

from learners.step_inputs import repeat_columns, step_inputs
from tests.support.batches import BatchMaker, small_spec
from tests.support.close import assert_close

CPU = torch.device("cpu")


def test_repeats_count_the_rows_own_item_in_its_history():
    spec = small_spec()
    assert repeat_columns(spec) == [(0, 1)]  # the history of items, the column of items; no tags
    batch = BatchMaker(spec).batch(11)
    items_B, history_BL = batch.ids_BF[:, 1], batch.bags_BL[0]
    history_BL[:] = 0
    history_BL[2, :3] = items_B[2]
    history_BL[3, 4] = items_B[2]  # another row's item
    x = step_inputs(batch, spec, CPU)
    assert x.repeats_BH.shape == (16, 1)
    expected_B = torch.zeros(16)
    expected_B[2] = torch.log(torch.tensor(4.0))
    assert_close(x.repeats_BH[:, 0], expected_B)


def test_no_repeats_where_a_history_has_rows_of_its_own():
    spec = small_spec()
    bags = (dataclasses.replace(spec.bags[0], field="tag"), *spec.bags[1:])
    own = dataclasses.replace(spec, bags=bags)
    assert repeat_columns(own) == []
    assert step_inputs(BatchMaker(spec).batch(8), own, CPU).repeats_BH.shape == (8, 0)
