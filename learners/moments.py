"""Running mean and variance of dense inputs, for standardising them causally."""

from __future__ import annotations

import torch
from torch import Tensor

CLIP = 5.0


class Moments:
    """Mean and sum of squared deviations of D columns, float64, as of the last update.

    Before the first update every input standardises to 0. Merging is Chan's (1979), about the
    old mean, so that nothing cancels.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.n = torch.zeros((), dtype=torch.float64, device=device)
        self.mean_D = torch.zeros(columns, dtype=torch.float64, device=device)
        self.squares_D = torch.zeros(columns, dtype=torch.float64, device=device)
        self.refresh()

    def refresh(self) -> None:
        """Recompute what `standardise` reads, after the state was set."""
        variance_D = self.squares_D / self.n.clamp(min=1.0)
        self._mean_D = self.mean_D.float()
        # A column that never varied (so far) says nothing: 0.
        self._scale_D = torch.where(variance_D > 1e-12, variance_D.rsqrt(), 0.0).float()

    def standardise(self, dense_BD: Tensor) -> Tensor:
        """(x - mean) / sd clipped to ±5, float32 [B, D]."""
        return ((dense_BD - self._mean_D) * self._scale_D).clamp_(-CLIP, CLIP)

    @torch.no_grad()
    def update(self, dense_BD: Tensor, counted_B: Tensor, ok: Tensor) -> None:
        """Add the rows with counted_B = 1, where `ok`; otherwise nothing changes."""
        kept_B = (counted_B * ok).double()
        shifted_BD = dense_BD.double() - self.mean_D
        n = self.n + kept_B.sum()
        shift_D = (kept_B @ shifted_BD) / n.clamp(min=1.0)
        self.squares_D += kept_B @ shifted_BD.square_() - n * shift_D.square()
        self.mean_D += shift_D
        self.n = n
        self.refresh()
