"""Tensors that are the same but for rounding."""

from __future__ import annotations

import numpy as np
import torch

# Those of torch.testing, whose first comparison imports sympy: a second of each process.
_TOLERANCES = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-7)}


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, *,
    rtol: float | None = None, atol: float | None = None, msg: str = "",
) -> None:  # fmt: skip
    """Of one shape and kind, and each number |a - e| <= atol + rtol |e|."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), msg
    usual = _TOLERANCES[actual.dtype]
    np.testing.assert_allclose(
        actual.detach().numpy(), expected.detach().numpy(), err_msg=msg,
        rtol=usual[0] if rtol is None else rtol, atol=usual[1] if atol is None else atol,
    )  # fmt: skip
