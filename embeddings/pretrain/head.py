"""The trained projection from an encoder's vectors to aligned ones. Trains nothing itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, relu


class ProjectionHead(nn.Module):
    """normalize(W x + b + V relu(U x + c)), the second part only with `hidden` units.

    It begins as the raw vectors' principal axes: W rotates and cuts, b centres, V is zero. So
    training starts from the raw encoder's similarities, centred against anisotropy.
    """

    def __init__(self, raw_ND: Tensor, dim: int, hidden: int, seed: int) -> None:
        """`raw_ND`: the vectors whose mean and axes it begins with, float32 [N, D]."""
        super().__init__()
        mean_D = raw_ND.mean(dim=0)
        axes_OD = _axes(raw_ND - mean_D, dim)
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


def _axes(centred_ND: Tensor, dim: int) -> Tensor:
    """The principal axes as rows [dim, D], zeros beyond the rank; signs as found in float64."""
    _, _, axes_RD = torch.linalg.svd(centred_ND.double(), full_matrices=False)
    kept = axes_RD[:dim]
    largest_R = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    kept = kept * torch.where(largest_R < 0, -1.0, 1.0)
    axes_OD = torch.zeros(dim, centred_ND.shape[1])
    axes_OD[: len(kept)] = kept.float()
    return axes_OD
