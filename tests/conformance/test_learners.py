"""Runs every check on every learner of the catalog: a new learner gets its tests for free."""

from __future__ import annotations

import pytest

from learners import catalog
from tests.conformance.learner_checks import HAS_WEIGHTS, WITHOUT_WEIGHTS, maker, yield_checks

CASES = [(name, check) for name in sorted(catalog.ENTRIES) for check in yield_checks(name)]


@pytest.mark.parametrize(
    ("name", "check"), CASES, ids=[f"{name}-{check.__name__}" for name, check in CASES]
)
def test_learner(name, check):
    check(maker(name))


def test_every_learner_is_sorted_into_one_kind():
    assert set(catalog.ENTRIES) == HAS_WEIGHTS | set(WITHOUT_WEIGHTS)
