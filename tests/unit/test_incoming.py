"""Vectors of a new encoder version come in beside the present ones, which fade and go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners import catalog
from learners.batch import ContentRows
from learners.feature_spec import ContentBlock
from learners.growth import adopted, runs_of
from learners.incoming import Fading
from learners.modules.catalog import BUILDERS
from tests.conformance.learner_checks import MODULE_OPTIONS, assert_same_state, maker, state_of
from tests.support.batches import BatchMaker, small_spec

DIM = 10
BLOCKS = (ContentBlock(name="", start=0, dim=DIM),)
ON = {"linear_content": {"on": True}}
FADING = Fading(beside_samples=120, fade_samples=400)


def both(spec):
    """The spec of the time in which both versions are there."""
    return replace(spec, incoming_blocks=BLOCKS)


class Both(BatchMaker):
    """The stream with vectors of another version for the same items; item 5 has no new one yet."""

    def batch(self, b):
        made = super().batch(b)
        old = made.content
        turned = self.item_vectors @ np.random.default_rng(9).normal(size=(6, DIM))
        table = np.vstack([turned, np.zeros((1, DIM))]).astype(np.float32)
        table[5] = 0
        none = self.items

        def places(rows):
            return torch.where(rows == 5, none, rows)

        target, bags = places(old.target_B), tuple(places(bag) for bag in old.bags_BL)
        found = [(bag != none).sum(1) for bag in bags]
        new = ContentRows(
            table_VC=torch.from_numpy(table), target_B=target, missing_B=target == none,
            bags_BL=bags, bag_inv_len_B=tuple(1 / n.clamp(min=1) * (n > 0) for n in found),
            encoder="new",
        )  # fmt: skip
        return replace(made, incoming=new)


def only_new(batch):
    """The batch as it is once the version before is gone."""
    return replace(batch, content=batch.incoming, incoming=None)


def ranker(spec, *, grows=False, **options):
    made = catalog.build("id_content", spec, {"device": "cpu", **options})
    made.grows, made.fading = grows, FADING
    return made


def migrating(steps=8, spec=None, **options):
    """A ranker of the present version, one of both versions with its state, and the stream."""
    spec = spec or small_spec()
    stream, before = Both(spec), ranker(spec, **options)
    for _ in range(steps):
        before.learn_many(stream.batch(40))
    after = ranker(both(spec), **options)
    after.apply(state_of(before))
    return before, after, stream


@pytest.mark.parametrize("options", ({}, ON, {"content_projection": 0, **ON}))
def test_no_score_changes_when_a_version_comes_in(options):
    before, after, stream = migrating(**options)
    batch = stream.batch(60)
    assert torch.equal(before.predict_many(batch), after.predict_many(batch))
    logits = after.learn_many(batch).logits_B
    assert torch.equal(before.learn_many(batch).logits_B, logits)
    assert not torch.equal(before.predict_many(batch), after.predict_many(batch))


@pytest.mark.parametrize("module", BUILDERS)
def test_every_module_comes_in_without_a_change_of_any_score(module):
    options = {module: {"on": True, **MODULE_OPTIONS.get(module, {})}}
    spec = maker("id_content", **options)()._whole
    before, after, stream = migrating(spec=spec, **options)
    batch = stream.batch(60)
    assert torch.equal(before.predict_many(batch), after.predict_many(batch))
    twice = [name for name, _ in after.net.incoming_on]
    assert twice == ([module] if BUILDERS[module].reads_vectors else [])


def test_the_present_version_fades_in_step_with_learned_samples():
    _, after, stream = migrating()
    shares = []
    for _ in range(15):
        shares.append(after.present_share)
        after.learn_many(stream.batch(40))
    assert shares[:4] == [1.0] * 4  # 120 samples beside
    assert shares[4:13] == pytest.approx([1 - i / 10 for i in range(1, 10)])
    assert shares[13:] == [0.0, 0.0]


READERS = [name for name, module in BUILDERS.items() if module.reads_vectors]


@pytest.mark.slow
@pytest.mark.parametrize("module", (None, *READERS))
@pytest.mark.parametrize("projection", (0, 16))
def test_a_faded_version_is_dropped_without_a_change_of_any_score(module, projection):
    on = {module: {"on": True, **MODULE_OPTIONS.get(module, {})}} if module else {}
    options = {"content_projection": projection, **on}
    _, after, stream = migrating(**options)
    for _ in range(14):
        after.learn_many(stream.batch(40))
    batch = stream.batch(60)
    garbled = replace(batch.content, table_VC=batch.content.table_VC.flip(1))
    both_logits = after.predict_many(batch)
    assert torch.equal(both_logits, after.predict_many(replace(batch, content=garbled)))
    alone = ranker(both(small_spec()).of_incoming, **options)
    alone.apply(adopted(state_of(after)))
    difference = (both_logits - alone.predict_many(only_new(batch))).abs().max()
    assert float(difference) <= 1e-6
    for _ in range(3):
        batch = only_new(stream.batch(40))
        assert torch.isfinite(alone.learn_many(batch).loss)
    assert alone.net.incoming is None


def test_a_version_that_still_counts_is_not_dropped():
    _, after, stream = migrating()
    for _ in range(9):
        after.learn_many(stream.batch(40))
    with pytest.raises(ValueError, match=r"still counts 40\.0% in this snapshot"):
        adopted(state_of(after))


def test_a_run_is_resumed_in_the_middle_of_the_fade_bit_for_bit():
    _, after, stream = migrating(**ON)
    for _ in range(7):
        after.learn_many(stream.batch(40))
    resumed = ranker(both(small_spec()), **ON)
    resumed.apply(state_of(after))
    assert 0 < resumed.present_share < 1
    for _ in range(4):
        batch = stream.batch(40)
        assert torch.equal(after.learn_many(batch).logits_B, resumed.learn_many(batch).logits_B)
    assert_same_state(state_of(after), state_of(resumed))


def test_a_version_that_came_in_is_given_up_by_permission_alone():
    before, after, stream = migrating()
    back = ranker(small_spec())
    with pytest.raises(ValueError, match="another net"):
        back.apply(state_of(after))
    back.grows = True
    back.apply(state_of(after))
    batch = stream.batch(30)
    assert torch.equal(back.predict_many(batch), before.predict_many(batch))


def test_other_modules_do_not_join_under_cover_of_a_version():
    before, _, _ = migrating()
    with pytest.raises(ValueError, match="another net"):
        ranker(both(small_spec()), **ON).apply(state_of(before))


@pytest.mark.slow
def test_the_new_version_learns_what_the_present_one_knew():
    """Clicks follow the vectors alone: after the change of versions they still do."""
    spec = small_spec()
    stream = Both(spec)
    stream.item_bias = stream.item_vectors @ np.full(6, 0.8)
    stream.user_bias[:] = 0

    def batch():
        made = stream.batch(40)
        return replace(made, ids_BF=torch.ones_like(made.ids_BF))

    options = {"adam": {"averaged_rows": 400}}  # else the average lags behind so fast a change
    before = ranker(spec, **options)
    for _ in range(150):
        before.learn_many(batch())
    after = ranker(both(spec), **options)
    after.apply(state_of(before))
    after.fading = Fading(beside_samples=1_000, fade_samples=4_000)
    for _ in range(126):
        after.learn_many(batch())
    assert after.present_share == 0
    test = [batch() for _ in range(30)]

    def loss(learner):
        losses = [
            torch.nn.functional.binary_cross_entropy_with_logits(
                learner.predict_many(b), b.labels_BK[:, 1]
            )
            for b in test
        ]
        return float(sum(losses)) / len(losses)

    nothing = ranker(replace(spec, content_dim=0))
    for _ in range(250):
        nothing.learn_many(replace(batch(), content=None, incoming=None))
    assert loss(after) < loss(before) + 0.03
    assert loss(after) < loss(nothing) - 0.03


def test_new_weights_begin_with_the_scale_of_those_that_they_stand_for():
    """With moments of zero, Adam would take steps of full length on the noise that is left."""
    before, after, stream = migrating(steps=20)
    runs = runs_of(after._layout())
    new, old = runs["incoming.target.weight"], runs["target.weight"]
    v = after.adam.v[new.start : new.start + new.size]
    was = before.adam.v[runs_of(before._layout())["target.weight"].start :][: old.size]
    assert float(v.min()) == float(v.max()) == pytest.approx(float(was.mean()), rel=1e-5)
    assert float(v.min()) > 0
    assert after.adam.born == [(0, 0)]
    after.learn_many(stream.batch(40))
    step = dict(after.net.named_parameters())["incoming.target.weight"].detach().abs().mean()
    assert 0 < float(step) < 0.95 * after.config.adam.lr
