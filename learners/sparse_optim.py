"""Row-wise Adagrad on the rows that a batch touched. Knows neither ids nor tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    """Update rows in place: s += mean_j g_j^2; w -= lr g / (sqrt(s) + eps).

    `rows_U` int64, each once: duplicates are summed before their gradient is squared. A zero
    gradient changes nothing, bit for bit. (FBGEMM's exact row-wise Adagrad.)
    """
    s_U = accumulator_R.index_select(0, rows_U) + gradient_UD.square().mean(1)
    accumulator_R.index_copy_(0, rows_U, s_U)
    scale_U1 = (s_U.sqrt() + eps).reciprocal().unsqueeze(1)
    row_UD = weight_RD.index_select(0, rows_U)
    weight_RD.index_copy_(0, rows_U, row_UD.addcmul_(gradient_UD, scale_U1, value=-lr))
