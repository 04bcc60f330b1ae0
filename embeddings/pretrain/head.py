"""The trained projection from an encoder's vectors to aligned ones. Trains nothing itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, relu

_ROWS_PER_BLOCK = 65_536


class ProjectionHead(nn.Module):
    """normalize(W x + b + V relu(U x + c)), the second part only with `hidden` units.

    It begins as the raw vectors' principal axes: W rotates and cuts, b centres, V is zero. So
    training starts from the raw encoder's similarities, centred against anisotropy.
    """

    def __init__(self, raw_ND: Tensor, dim: int, hidden: int, seed: int) -> None:
        """`raw_ND`: the vectors whose mean and axes it begins with, float32 [N, D]."""
        super().__init__()
        mean_D = raw_ND.mean(dim=0)
        axes_OD = principal_axes(raw_ND, mean_D, dim)
        self.weight = nn.Parameter(axes_OD)
        self.bias = nn.Parameter(-axes_OD @ mean_D)
        self.inner: nn.Parameter | None = None
        if hidden:
            generator = torch.Generator().manual_seed(seed)
            inner_HD = torch.randn(hidden, raw_ND.shape[1], generator=generator)
            self.inner = nn.Parameter(inner_HD / raw_ND.norm(dim=1).mean().clamp(min=1e-6))
            self.inner_bias = nn.Parameter(torch.zeros(hidden))
            self.outer = nn.Parameter(torch.zeros(dim, hidden))

    def forward(self, raw_BD: Tensor) -> Tensor:
        """Unit vectors float32 [B, dim] of raw ones."""
        out_BO = linear(raw_BD, self.weight, self.bias)
        if self.inner is not None:
            hidden_BH = relu(linear(raw_BD, self.inner, self.inner_bias))
            out_BO = out_BO + linear(hidden_BH, self.outer)
        return normalize(out_BO, dim=1)


def composed(arrays: Mapping[str, Tensor], axes_AD: Tensor, mean_D: Tensor) -> dict[str, Tensor]:
    """The weights of a head on (x − mean) Aᵀ as those of a head on x that gives the same."""
    made = dict(arrays)
    for weight, bias in (("weight", "bias"), ("inner", "inner_bias")):
        if weight in arrays:
            made[weight] = arrays[weight] @ axes_AD
            made[bias] = arrays[bias] - made[weight] @ mean_D
    return made


def principal_axes(raw_ND: Tensor, mean_D: Tensor, dim: int) -> Tensor:
    """The principal axes as rows [dim, D], zeros beyond D; each axis's largest entry is positive.

    Of the covariance, block by block in float64: it fits in memory for any number of items.
    """
    size = raw_ND.shape[1]
    covariance_DD = torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(raw_ND), _ROWS_PER_BLOCK):
        block_BD = raw_ND[start : start + _ROWS_PER_BLOCK]
        centred_BD = block_BD.double() - mean_D.double()
        covariance_DD += centred_BD.T @ centred_BD
    kept_RD = torch.linalg.eigh(covariance_DD).eigenvectors.T.flip(0)[:dim]
    largest_R1 = kept_RD.gather(1, kept_RD.abs().argmax(dim=1, keepdim=True))
    axes_OD = torch.zeros(dim, size)
    axes_OD[: len(kept_RD)] = (kept_RD * torch.where(largest_R1 < 0, -1.0, 1.0)).float()
    return axes_OD
