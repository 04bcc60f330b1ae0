"""What the training step promises beyond every learner's contract."""

from __future__ import annotations

import numpy as np
import torch

from learners.net_learner import NetLearner
from learners.rankers.id_content import IdContent, IdContentConfig
from stream.composition import compose
from tests.support.batches import BatchMaker, small_spec
from tests.support.bench import kuairand_config


def ranker() -> IdContent:
    """A small ranker."""
    return IdContent(small_spec(), IdContentConfig(device="cpu"))


def test_predictions_come_from_averaged_weights():
    learner, stream = ranker(), BatchMaker(small_spec())
    for _ in range(12):
        learner.learn_many(stream.batch(40))
    probe = stream.batch(16)
    before = learner.predict_many(probe)
    learner.adam.w.zero_()  # what is trained has no part in predictions
    assert torch.equal(learner.predict_many(probe), before)
    learner.adam.average.zero_()
    assert not torch.equal(learner.predict_many(probe), before)


def test_steps_that_report_no_logits_learn_the_same():
    told, silent = ranker(), ranker()
    silent.reports_logits = False
    one, other = BatchMaker(small_spec()), BatchMaker(small_spec())
    for _ in range(6):
        a, b = told.learn_many(one.batch(40)), silent.learn_many(other.batch(40))
    assert not torch.equal(a.logits_B, b.logits_B)
    for x, y in zip(told.export_full(), silent.export_full(), strict=True):
        for key, array in x.arrays.items():
            np.testing.assert_array_equal(array, y.arrays[key], err_msg=f"{x.name}.{key}")


def test_logits_of_a_step_are_made_where_they_are_read():
    for when, expected in (("impression", False), ("settle", True)):
        composition = compose(kuairand_config(f"stream.predict_at={when}"), None)
        learner = composition.pipeline.learner
        composition.close()
        assert isinstance(learner, NetLearner)
        assert learner.reports_logits is expected
