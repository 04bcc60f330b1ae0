"""Row-wise Adagrad on the rows that a batch touched. Knows neither ids nor tables.

s += mean_j g_j^2; w -= lr g / (sqrt(s) + eps), where g is the sum over a row's occurrences: what is
repeated is summed before it is squared. (FBGEMM's exact row-wise Adagrad.) A zero gradient changes
nothing, bit for bit. One form for the host, compiled, and one of torch operations for any device.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

F32 = NDArray[np.float32]


def segment_sum(gradient_GD: Tensor, sources_O: Tensor, offsets_U: Tensor) -> Tensor:
    """Gradient of each unique row, float32 [U, D]: the sum over its occurrences, in their order.

    Occurrence o contributes row sources_O[o] of the gradient matrix; unique row u has the
    occurrences from offsets_U[u] on. `embedding_bag` gathers, adds up in sequence and uses no
    atomics, so the bits do not depend on the number of threads.
    """
    return functional.embedding_bag(sources_O, gradient_GD, offsets_U, mode="sum")


@torch.no_grad()
def rowwise_adagrad_(
    weight_RD: Tensor,
    accumulator_R: Tensor,
    rows_U: Tensor,
    gradient_UD: Tensor,
    *,
    lr: float,
    eps: float,
) -> None:
    """Update rows in place; `rows_U` int64, each once, with their summed gradients."""
    s_U = accumulator_R.index_select(0, rows_U) + gradient_UD.square().mean(1)
    accumulator_R.index_copy_(0, rows_U, s_U)
    scale_U1 = (s_U.sqrt() + eps).reciprocal().unsqueeze(1)
    row_UD = weight_RD.index_select(0, rows_U)
    weight_RD.index_copy_(0, rows_U, row_UD.addcmul_(gradient_UD, scale_U1, value=-lr))


@numba.njit(cache=True, nogil=True)
def _update(
    weight_RD: F32,
    accumulator_R: F32,
    rows_U: NDArray[np.int64],
    offsets_U: NDArray[np.int32],
    sources_O: NDArray[np.int32],
    gradient_GD: F32,
    lr: np.float32,
    eps: np.float32,
    sum_D: F32,
) -> None:
    dim = len(sum_D)
    for u in range(len(rows_U)):
        row = rows_U[u]
        end = offsets_U[u + 1] if u + 1 < len(rows_U) else len(sources_O)
        sum_D[:] = 0
        for o in range(offsets_U[u], end):
            source = sources_O[o]
            for j in range(dim):
                sum_D[j] += gradient_GD[source, j]
        square = np.float32(0)
        for j in range(dim):
            square += sum_D[j] * sum_D[j]
        s = accumulator_R[row] + square / np.float32(dim)
        accumulator_R[row] = s
        scale = lr / (np.sqrt(s) + eps)
        for j in range(dim):
            weight_RD[row, j] -= scale * sum_D[j]


def rowwise_adagrad_host_(
    weight_RD: Tensor,
    accumulator_R: Tensor,
    rows_U: NDArray[np.int64],
    offsets_U: NDArray[np.int32],
    sources_O: NDArray[np.int32],
    gradient_GD: Tensor,
    *,
    lr: float,
    eps: float,
) -> None:
    """The sums of `segment_sum` and the update of `rowwise_adagrad_`, in one pass on the host."""
    sum_D: Any = np.empty(weight_RD.shape[1], np.float32)
    _update(
        weight_RD.numpy(), accumulator_R.numpy(), rows_U, offsets_U, sources_O,
        gradient_GD.numpy(), np.float32(lr), np.float32(eps), sum_D,
    )  # fmt: skip
