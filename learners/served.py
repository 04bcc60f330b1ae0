"""Features that a server computed, scored with, and logged with the impression. Computes none.

They are trained on where they were made as this model would make them: same layout, same version
of the item vectors. How often they differ from our own is told, and nothing is decided by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedLayout:
    """`width` numbers an item under the name `name`; `digest` of all that gives them meaning."""

    name: str
    width: int
    digest: str

    def version(self, encoder: str) -> str:
        """`feature_version` of what is computed from vectors of this encoder version."""
        return f"{self.name}-{self.digest}/{encoder}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRows:
    """Logged features of B rows of a batch, on the host.

    `values_BN` float32, 0 where nothing was logged; `logged_B` bool: something was; `given_B`
    bool: of the version that the batch's own vectors have.
    """

    layout: ServedLayout
    values_BN: Tensor
    logged_B: Tensor
    given_B: Tensor

    def instead_of(self, own_BN: NDArray[np.float32]) -> NDArray[np.float32]:
        """`own_BN` [>= B, N] with the logged numbers in the rows that have them, a copy."""
        out_BN = own_BN.copy()
        given_B = self.given_B.numpy()
        out_BN[: len(given_B)][given_B] = self.values_BN.numpy()[given_B]
        return out_BN
