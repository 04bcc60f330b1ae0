"""A snapshot of a ranker taken by the same ranker with other modules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners import catalog
from learners.feature_spec import DenseInput, IdField
from learners.growth import runs_of
from learners.modules.catalog import BUILDERS
from tests.conformance.learner_checks import MODULE_OPTIONS, assert_same_state, maker, state_of
from tests.support.batches import BatchMaker, keys_of, small_spec

MORE = DenseInput(name="n", group="value")
ON = {"linear_content": {"on": True}}


def ranker(spec=None, *, grows=False, **options):
    made = catalog.build("id_content", spec or small_spec(), {"device": "cpu", **options})
    made.grows = grows
    return made


def trained(spec=None, steps=12, **options):
    learner, stream = ranker(spec, **options), BatchMaker(spec or small_spec())
    for _ in range(steps):
        learner.learn_many(stream.batch(40))
    return learner, stream


@pytest.mark.parametrize("module", BUILDERS)
def test_a_module_joins_without_a_change_of_any_score(module):
    options = {module: {"on": True, **MODULE_OPTIONS.get(module, {})}}
    grown = maker("id_content", **options)()
    grown.grows = True
    base, stream = trained(grown._whole)
    grown.apply(state_of(base))
    batch = stream.batch(50)
    assert torch.equal(base.predict_many(batch), grown.predict_many(batch))
    assert (grown.change.begun, grown.change.dropped) == ((module,), ())
    grown.learn_many(batch)
    base.learn_many(batch)
    assert grown.step == base.step == 13


def test_what_both_have_stays_bit_for_bit_and_the_rest_begins_at_zero():
    base, _ = trained()
    grown = ranker(grows=True, **ON)
    grown.apply(state_of(base))
    old, new = runs_of(base._layout()), runs_of(grown._layout())
    added = new.keys() - old.keys()
    assert added == {"methods.linear_content.head.weight"}
    for name in ("w", "average", "m", "v"):
        was, now = getattr(base.adam, name), getattr(grown.adam, name)
        for parameter, run in old.items():
            there = new[parameter].start
            assert torch.equal(was[run.start : run.start + run.size], now[there : there + run.size])
        for parameter in added:
            run = new[parameter]
            assert not now[run.start : run.start + run.size].any()
    for a, b in zip(base.tables, grown.tables, strict=True):
        assert torch.equal(a.weight_RD, b.weight_RD)
        assert torch.equal(a.accumulator_R, b.accumulator_R)
    assert torch.equal(base.moments.mean_D, grown.moments.mean_D)


def test_a_parameter_that_joins_late_takes_steps_of_the_usual_length():
    """By the ranker's own count of steps its first ones would be 16 times as long."""
    base, stream = trained(steps=40)
    grown = ranker(grows=True, **ON)
    grown.apply(state_of(base))
    head = dict(grown.net.named_parameters())["methods.linear_content.head.weight"]
    lr = grown.config.adam.lr
    grown.learn_many(stream.batch(40))
    assert float(head.detach().abs().max()) == pytest.approx(lr, rel=1e-3)
    assert grown.adam.born[-1] == (runs_of(grown._layout())[
        "methods.linear_content.head.weight"].start, 40)  # fmt: skip


def test_a_grown_ranker_is_restored_with_its_ages_and_goes_on_bit_for_bit():
    base, stream = trained()
    grown, other = ranker(grows=True, **ON), ranker(**ON)
    grown.apply(state_of(base))
    for _ in range(3):
        grown.learn_many(stream.batch(40))
    other.apply(state_of(grown))
    for _ in range(3):
        batch = stream.batch(40)
        assert torch.equal(grown.learn_many(batch).logits_B, other.learn_many(batch).logits_B)
    assert_same_state(state_of(grown), state_of(other))


@pytest.mark.slow
def test_a_module_that_joined_learns():
    """A content vector decides the click, and the base does not read it."""
    spec = small_spec()
    base, stream = trained(spec, content_projection=0)
    grown = ranker(spec, grows=True, content_projection=0, **ON)
    grown.apply(state_of(base))
    stream.item_bias = stream.item_vectors @ np.ones(6)
    stream.user_bias[:] = 0

    def losses(learner):
        return sum(float(learner.learn_many(batch).loss) for batch in batches[100:])

    made = [stream.batch(40) for _ in range(200)]
    batches = [replace(b, ids_BF=torch.ones_like(b.ids_BF)) for b in made]
    for learner in (base, grown):
        for batch in batches[:100]:
            learner.learn_many(batch)
    assert losses(grown) < losses(base) - 1.5


def test_a_module_is_dropped_and_the_base_goes_on():
    with_module, stream = trained(**ON)
    base = ranker(grows=True)
    base.apply(state_of(with_module))
    assert base.change.dropped == ("linear_content",)
    head = dict(with_module._scorer.named_parameters())["methods.linear_content.head.weight"]
    head.data.zero_()
    batch = stream.batch(50)
    assert torch.equal(base.predict_many(batch), with_module.predict_many(batch))


def test_nothing_grows_without_permission():
    base, _ = trained()
    with pytest.raises(ValueError, match=r"or ranker\.grow where only modules differ"):
        ranker(**ON).apply(state_of(base))


@pytest.mark.parametrize(
    ("spec", "options"),
    (
        (small_spec(), {"hidden": (32, 16)}),
        (small_spec(content_dim=8), {}),
        (replace(small_spec(), dense=(*small_spec().dense, MORE)), {}),
        (small_spec(), {"content_projection": 0}),
    ),
)  # fmt: skip
def test_another_base_net_is_refused(spec, options):
    base, _ = trained()
    with pytest.raises(ValueError, match="only whole modules can be begun or dropped"):
        ranker(spec, grows=True, **options).apply(state_of(base))


OWN = IdField(name="own", dim=8, reader="linear_content")


class WithOwn(BatchMaker):
    """The stream with a column of ids that a module alone reads."""

    def batch(self, b):
        made = super().batch(b)
        own = torch.from_numpy(keys_of(7, self.rng.integers(0, 30, b)))
        return replace(made, ids_BF=torch.cat([made.ids_BF, own[:, None]], 1))


def with_own():
    return replace(small_spec(), ids=(*small_spec().ids, OWN))


def rows_of(learner):
    """Weights of each id by its key, as bytes."""
    table = learner.tables[-1]
    keys = table.ids.key_R[: table.ids.high]
    return {int(k): table.weight_RD[i].numpy().tobytes() for i, k in enumerate(keys) if k}


def test_id_tables_take_fields_of_modules_and_lose_them():
    spec = with_own()
    base, stream = ranker(spec), WithOwn(spec)
    for _ in range(6):
        base.learn_many(stream.batch(40))
    grown = ranker(spec, grows=True, **ON)
    grown.apply(state_of(base))
    assert [len(t.fields) for t in grown.tables] == [2, 3]
    assert rows_of(grown) == rows_of(base)
    batch = stream.batch(50)
    assert torch.equal(base.predict_many(batch), grown.predict_many(batch))
    for _ in range(4):
        grown.learn_many(stream.batch(40))
    more = len(rows_of(grown)) - len(rows_of(base))
    assert more >= 30
    again = ranker(spec, grows=True)
    again.apply(state_of(grown))
    own_keys = set(keys_of(7, np.arange(30)).tolist())
    assert rows_of(again) == {k: w for k, w in rows_of(grown).items() if k not in own_keys}
    free = again.tables[-1].ids.n[1]
    assert free >= 30
    for _ in range(4):
        again.learn_many(stream.batch(40))  # freed rows are given out again
    assert again.tables[-1].ids.n[1] <= free


def test_a_field_of_the_base_neither_comes_nor_goes():
    spec = small_spec()
    base, _ = trained(spec)
    more = replace(spec, ids=(*spec.ids, IdField(name="new", dim=8)))
    state = state_of(base)
    other = ranker(more, grows=True)
    state["dense"] = replace(
        state["dense"], meta=dict(state["dense"].meta, layout=other._layout()),
        arrays=dict(state["dense"].arrays, weights=other.adam.w.numpy().copy()),
    )  # fmt: skip
    with pytest.raises(ValueError, match="only fields of modules can be begun or dropped"):
        other.apply({**state, "dense.train": state_of(other)["dense.train"]})
