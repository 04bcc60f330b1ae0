"""Scales of what content gives to the hidden layers: the ranker's projections, MAKE's outputs."""

from __future__ import annotations

import pytest
import torch

from learners import catalog
from tests.support.batches import BatchMaker, small_spec
from tests.support.close import assert_close

BASE = {"device": "cpu", "adam": {"averaged_rows": 0}}
MAKE = {"on": True, "attention": 16, "hidden": (16,)}
CASES = {
    "projections": (
        lambda scale: {"content_scale": scale},
        lambda net: [net.target.weight, net.history[0].weight],
    ),
    "make": (
        lambda scale: {"content_projection": 0, "make": {**MAKE, "scale": scale}},
        lambda net: [net.methods["make"].to_hidden.weight],
    ),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def learner_of(options):
    return catalog.build("id_content", small_spec(content_dim=16), {**BASE, **options})


@pytest.mark.parametrize("case", CASES)
def test_a_scale_is_that_of_the_weights_behind_it(case):
    options, weights = CASES[case]
    maker = BatchMaker(small_spec(content_dim=16))
    scaled, plain = learner_of(options(0.25)), learner_of(options(1.0))
    for _ in range(3):
        batch = maker.batch(64)
        scaled.learn_many(batch)
        plain.learn_many(batch)
    for mine, theirs in zip(scaled.net.parameters(), plain.net.parameters(), strict=True):
        theirs.data.copy_(mine.data)
    batch = maker.batch(64)
    moments = plain.moments
    for name in ("mean_D", "squares_D", "n"):
        getattr(moments, name).copy_(getattr(scaled.moments, name))
    moments.refresh()
    plain.tables = scaled.tables
    plain.base_2 = scaled.base_2
    expected = scaled.predict_many(batch)
    assert not torch.allclose(plain.predict_many(batch), expected, atol=1e-5)
    with torch.no_grad():
        for weight in weights(plain.net):
            weight.mul_(0.25)
    assert_close(plain.predict_many(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    (({"content_scale": 0.0}, "content_scale"), ({"make": {**MAKE, "scale": -1.0}}, "make: scale")),
)
def test_a_scale_that_is_not_above_0_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        learner_of(options)
