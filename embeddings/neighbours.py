"""Looking at vectors: nearest neighbours by cosine, and a plane to draw them on. Learns nothing.

Shapes: N items, D dimensions, K neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


def nearest_by_cosine(
    vectors_ND: NDArray[np.float32], place: int, k: int
) -> tuple[I64, NDArray[np.float32]]:
    """Places of the `k` items most like the one at `place`, most alike first, and the cosines.

    Fewer where there are fewer; equals in the order of their places. Vectors of zeros are like
    nothing: they are left out, and an item that has one gets none.
    """
    norms_N = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND))
    others = np.flatnonzero((norms_N > 0) & (np.arange(len(vectors_ND)) != place))
    if not norms_N[place] > 0 or k < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    cosine_n = (vectors_ND[others] @ vectors_ND[place]) / (norms_N[others] * norms_N[place])
    order = np.argsort(-cosine_n, kind="stable")[:k]
    return others[order], cosine_n[order]


def plane(vectors_ND: NDArray[np.float32]) -> tuple[F64, list[float]]:
    """Coordinates [N, 2] along the two directions of most variance, and their shares of it.

    Principal components of centred vectors (Pearson 1901). A direction's sign is arbitrary: its
    largest entry is made positive. Shares are empty where all vectors are equal.
    """
    centred_ND = vectors_ND.astype(np.float64)
    if not len(centred_ND):
        return np.zeros((0, 2)), []
    centred_ND -= centred_ND.mean(axis=0)
    values_D, directions_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    chosen_D2 = np.zeros((centred_ND.shape[1], 2))
    count = min(2, centred_ND.shape[1])
    chosen_D2[:, :count] = directions_DD[:, ::-1][:, :count]
    largest = np.abs(chosen_D2).argmax(axis=0)
    chosen_D2 *= np.where(chosen_D2[largest, [0, 1]] < 0, -1.0, 1.0)
    total = float(values_D.sum())
    shares = [float(v) / total for v in values_D[::-1][:count]] if total > 1e-12 else []
    return centred_ND @ chosen_D2, shares
