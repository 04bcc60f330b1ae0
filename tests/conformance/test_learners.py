"""Runs every check on every learner of the catalog: a new learner gets its tests for free."""

from __future__ import annotations

import pytest
import torch

from learners import catalog
from learners.modules.catalog import BUILDERS
from learners.rankers.id_content import IdContent
from tests.conformance.learner_checks import (
    EVERY_LEARNER,
    MODULE_OPTIONS,
    NEEDS,
    NETS,
    OPTIONS,
    SLOW,
    WITHOUT_WEIGHTS,
    maker,
    trained,
    yield_checks,
)

CASES = [(name, check) for name in sorted(catalog.ENTRIES) for check in yield_checks(name)]


@pytest.mark.parametrize(
    ("name", "check"), CASES, ids=[f"{name}-{check.__name__}" for name, check in CASES]
)
def test_learner(name, check):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"the extra for {name} is not installed")
    check(maker(name))


@pytest.mark.parametrize("check", EVERY_LEARNER, ids=lambda check: check.__name__)
@pytest.mark.parametrize("module", BUILDERS)
def test_ranker_with_module(module, check):
    options = {"on": True, **MODULE_OPTIONS.get(module, {})}
    check(maker("id_content", **{module: options}))


@pytest.mark.parametrize("module", BUILDERS)
def test_module_that_is_turned_on_changes_no_score(module):
    """Before its first step a module adds exactly 0, whatever the ranker has learned."""
    options = {"on": True, **MODULE_OPTIONS.get(module, {})}
    base, stream = trained(maker("id_content", **{module: {**options, "on": False}}))
    with_module = maker("id_content", **{module: options})()
    assert isinstance(base, IdContent)
    assert isinstance(with_module, IdContent)
    of_dim = {table.dim: table for table in base.tables}
    with_module.tables = [of_dim.get(table.dim, table) for table in with_module.tables]
    with_module.moments = base.moments
    with_module.base_2 = base.base_2
    of_base = dict(base._scorer.named_parameters())
    for name, parameter in with_module._scorer.named_parameters():
        if name in of_base:
            parameter.data.copy_(of_base[name])
    batch = stream.batch(50)
    assert torch.equal(base.predict_many(batch), with_module.predict_many(batch))


def test_checks_name_learners_that_exist():
    assert set(catalog.ENTRIES) >= {*WITHOUT_WEIGHTS, *NEEDS, *NETS, *SLOW, *OPTIONS}
    assert set(BUILDERS) >= {*MODULE_OPTIONS}
