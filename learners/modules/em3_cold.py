"""Id rows of new items from their content: a ridge regression from vectors to trained id rows.

Section 8.4 of EM3's brief, e_0 = M c. Knows no table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.modules.module import Kept

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
DECAY = 0.999
"""Of the sums after each step: vectors and rows drift while they are trained."""
RIDGE = 10.0
STEPS = 32
"""Steps from one fit to the next."""


class ContentToId(Kept):
    """M with e ~ M [c; 1], fitted to sums over mature items, the older ones fading.

    Until the first fit M is 0. State: the sums, M, and the number of steps.
    """

    def __init__(self, content_dim: int, id_dim: int) -> None:
        self.gram_DD = np.zeros((content_dim + 1, content_dim + 1))
        self.cross_DE = np.zeros((content_dim + 1, id_dim))
        self.map_DE = np.zeros((content_dim + 1, id_dim), np.float32)
        self.steps = 0

    def observe(self, content_ND: F32, rows_NE: F32) -> None:
        """Add pairs of vectors and id rows (less the field's shared row); fit when it is time."""
        x_ND = _with_one(content_ND).astype(np.float64)
        self.gram_DD = DECAY * self.gram_DD + x_ND.T @ x_ND
        self.cross_DE = DECAY * self.cross_DE + x_ND.T @ rows_NE.astype(np.float64)
        self.steps += 1
        if self.steps % STEPS == 0:
            ridged = self.gram_DD + RIDGE * np.eye(len(self.gram_DD))
            self.map_DE = np.linalg.solve(ridged, self.cross_DE).astype(np.float32)

    def rows(self, content_ND: F32) -> F32:
        """What a new item's row is to begin with, to be added to the shared row."""
        out: F32 = _with_one(content_ND) @ self.map_DE
        return out

    def part(self, name: str) -> Part:
        """All of it."""
        arrays: dict[str, NDArray[Any]] = {
            "gram": self.gram_DD,
            "cross": self.cross_DE,
            "map": self.map_DE,
        }
        return Part(
            name=name,
            part_class="train",
            arrays={key: array.copy() for key, array in arrays.items()},
            meta={"steps": self.steps},
        )

    def apply(self, parts: Mapping[str, Part], name: str) -> None:
        """Take it back, if it is there."""
        if name not in parts:
            return
        part = parts[name]
        self.gram_DD[:] = part.array("gram", np.float64)
        self.cross_DE[:] = part.array("cross", np.float64)
        self.map_DE[:] = part.array("map", np.float32)
        self.steps = int(part.meta["steps"])


def _with_one(content_ND: F32) -> F32:
    return np.concatenate([content_ND, np.ones((len(content_ND), 1), np.float32)], 1)
