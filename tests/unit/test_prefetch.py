"""Hints to bring array elements near: they reach the machine code and change nothing."""

import numba
import numpy as np
import pytest

from infra.prefetch import prefetch

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="nothing is compiled, so there is no code with hints"
)


@pytest.mark.parametrize(
    "array",
    (
        np.arange(12.0).reshape(6, 2),
        np.arange(6, dtype=np.int32),
        np.zeros(6, [("key", "i8"), ("n", "i4")]),
    ),
    ids=["table", "column", "records"],
)
def test_a_hint_is_an_instruction_that_changes_nothing(array):
    @numba.njit(_nrt=False)
    def hinted(a, rows):
        for row in rows:
            prefetch(a, row, 1)
        return rows.sum()

    before = array.copy()
    # Rows before the array, in it and behind it: a hint may point anywhere.
    assert hinted(array, np.array([-1, 0, 5, 6, 1 << 40])) == 10 + (1 << 40)
    assert (array == before).all()
    (code,) = hinted.inspect_llvm().values()
    assert "call void @llvm.prefetch" in code
