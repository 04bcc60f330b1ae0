"""What every module must bear in a ranker: bad vectors, missing content, full tables, company."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from infra.state import Part
from learners import catalog
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.modules.catalog import BUILDERS
from learners.net_learner import NetLearner
from tests.conformance.learner_checks import (
    MODULE_OPTIONS,
    assert_same_state,
    maker,
    state_of,
    trained,
)
from tests.support.batches import keys_of

EVERY = {name: {"on": True, **MODULE_OPTIONS.get(name, {})} for name in BUILDERS}


def with_vectors(batch: MiniBatch, fill: float) -> MiniBatch:
    """The batch with another number in all vectors but the one that stands for none."""
    assert batch.content is not None
    table_VC = torch.full_like(batch.content.table_VC, fill)
    table_VC[-1] = 0
    return dataclasses.replace(batch, content=dataclasses.replace(batch.content, table_VC=table_VC))


def own_parts(learner: NetLearner) -> dict[str, Part]:
    """State that is neither the net's nor the id tables'."""
    return {
        name: part for name, part in state_of(learner).items()
        if not name.startswith(("dense", "ids."))
    }  # fmt: skip


def ranker(options: Mapping[str, object], spec: FeatureSpec | None = None) -> NetLearner:
    """A ranker with modules, on the spec that they need."""
    made = maker("id_content", **options)()
    if spec is not None:
        made = catalog.build("id_content", spec, {"device": "cpu", **options})
    assert isinstance(made, NetLearner)
    return made


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("module", BUILDERS)
def test_a_step_with_bad_vectors_leaves_no_trace(module, bad):
    """The base reads the vectors as well, so that the step as a whole is not taken."""
    learner, stream = trained(maker("id_content", **{module: EVERY[module]}))
    assert isinstance(learner, NetLearner)
    before, dense = own_parts(learner), learner.adam.w.clone()
    report = learner.learn_many(with_vectors(stream.batch(16), bad))
    assert int(report.skipped) == 16
    assert_same_state(before, own_parts(learner))
    assert torch.equal(dense, learner.adam.w)
    assert torch.isfinite(learner.predict_many(stream.batch(16))).all()


@pytest.mark.parametrize("module", BUILDERS)
def test_vectors_of_zeros_are_legal(module):
    learner, stream = trained(maker("id_content", **{module: EVERY[module]}))
    assert isinstance(learner, NetLearner)
    batch = with_vectors(stream.batch(24), 0.0)
    assert torch.isfinite(learner.predict_many(batch)).all()
    for _ in range(3):
        assert int(learner.learn_many(batch).skipped) == 0
    assert torch.isfinite(learner.adam.w).all()
    assert torch.isfinite(learner.predict_many(stream.batch(16))).all()


@pytest.mark.parametrize("module", BUILDERS)
def test_a_batch_without_content_is_one_whose_vectors_are_all_missing(module):
    learner, stream = trained(maker("id_content", **{module: EVERY[module]}))
    batch = stream.batch(24)
    assert batch.content is not None
    none = len(batch.content.table_VC) - 1
    missing = dataclasses.replace(
        batch,
        content=dataclasses.replace(
            batch.content,
            target_B=torch.full((24,), none),
            missing_B=torch.ones(24, dtype=torch.bool),
            bags_BL=tuple(torch.full_like(bag, none) for bag in batch.content.bags_BL),
            bag_inv_len_B=tuple(torch.zeros(24) for _ in batch.content.bags_BL),
        ),
    )
    bare = dataclasses.replace(batch, content=None)
    assert torch.equal(learner.predict_many(bare), learner.predict_many(missing))
    report = learner.learn_many(bare)
    assert torch.isfinite(report.loss)
    assert int(report.skipped) == 0


def full(spec: FeatureSpec) -> FeatureSpec:
    """The spec with room for three ids of each kind."""
    return dataclasses.replace(
        spec,
        ids=tuple(dataclasses.replace(f, rows_max=3) for f in spec.ids),
        bag_fields=tuple(dataclasses.replace(f, rows_max=3) for f in spec.bag_fields),
    )


@pytest.mark.parametrize("module", BUILDERS)
def test_full_id_tables_are_legal(module):
    spec = full(ranker({module: EVERY[module]})._whole)
    learner, stream = trained(lambda: ranker({module: EVERY[module]}, spec), steps=5)
    counts = learner.counts()
    for table in ranker({module: EVERY[module]}, spec).tables:
        assert counts[f"ids{table.dim}_rows"] <= 3 * len(table.fields)
    other = ranker({module: EVERY[module]}, spec)
    other.apply(state_of(learner))
    for _ in range(2):
        batch = stream.batch(30)
        a, b = learner.learn_many(batch), other.learn_many(batch)
        assert torch.isfinite(a.logits_B).all()
        assert torch.equal(a.logits_B, b.logits_B)
    assert_same_state(state_of(learner), state_of(other))


@pytest.mark.parametrize("module", BUILDERS)
def test_a_module_joins_others_that_run_and_they_go_on_as_they_were(module):
    """Growth beside modules with state of their own: a memory, a buffer, a vocabulary."""
    company = {name: EVERY[name] for name in ("em3", "make", "flip") if name != module}
    spec = ranker({**company, module: EVERY[module]})._whole
    running, stream = trained(lambda: ranker(company, spec), steps=4)
    joined = ranker({**company, module: EVERY[module]}, spec)
    joined.grows = True
    joined.apply(state_of(running))
    assert (joined.change.begun, joined.change.dropped) == ((module,), ())
    assert isinstance(running, NetLearner)
    kept, after = own_parts(running), own_parts(joined)
    assert_same_state(kept, {name: after[name] for name in kept})
    batch = stream.batch(40)
    assert torch.equal(running.predict_many(batch), joined.predict_many(batch))
    restored = ranker({**company, module: EVERY[module]}, spec)
    for learner in (running, joined):
        learner.learn_many(batch)
    restored.apply(state_of(joined))
    probe = stream.batch(24)
    assert torch.equal(joined.predict_many(probe), restored.predict_many(probe))
    assert not torch.equal(joined.predict_many(probe), running.predict_many(probe))


def test_all_modules_together_keep_predictions_apart():
    """A row's logit does not depend on its neighbours with every module on."""
    learner, stream = trained(maker("id_content", **EVERY), steps=4)
    batch = stream.batch(40)
    whole = learner.predict_many(batch)
    one = dataclasses.replace(batch, ids_BF=batch.ids_BF.clone())
    one.ids_BF[1:, 1] = torch.from_numpy(keys_of(9, np.arange(39)))
    assert torch.equal(learner.predict_many(one)[:1], whole[:1])
    assert not torch.equal(learner.predict_many(one)[1:], whole[1:])
