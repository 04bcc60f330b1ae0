"""Runs every check on every learner of the catalog: a new learner gets its tests for free."""

from __future__ import annotations

import pytest

from learners import catalog
from tests.conformance.learner_checks import (
    NEEDS,
    NETS,
    OPTIONS,
    SLOW,
    WITHOUT_WEIGHTS,
    maker,
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


def test_checks_name_learners_that_exist():
    assert set(catalog.ENTRIES) >= {*WITHOUT_WEIGHTS, *NEEDS, *NETS, *SLOW, *OPTIONS}
