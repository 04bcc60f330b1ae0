"""Nearest centroids and seeded k-means, in NumPy. Knows no items and no codes.

Shapes: N points, K centroids, D dimensions, T nearest ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_CELLS_PER_BLOCK = 1 << 22
"""Distances that are held at once: 32 MiB."""

_TIE = 1e-9
"""Relative margin below which rounding might decide; matrix products are exact to about 1e-15."""

_SPARE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Centroids float64 [K, D], the nearest one of each point, and the sum of squared distances.

    `reseeded`: how often a cluster that had lost its members was put elsewhere.
    """

    centroids_KD: F64
    nearest_N: I64
    inertia: float
    reseeded: int


def nearest(points_ND: F64, centroids_KD: F64) -> tuple[I64, F64]:
    """The nearest centroid of each point, and the squared distance to it; ties: the lower place.

    Same bits for a point whatever other points are with it: where a matrix product, whose rounding
    depends on the block, cannot decide, distances are summed up point by point.
    """
    nearest_NT, squared_NT = nearest_many(points_ND, centroids_KD, 1)
    return nearest_NT[:, 0], squared_NT[:, 0]


def nearest_many(points_ND: F64, centroids_KD: F64, t: int) -> tuple[I64, F64]:
    """The `t` nearest centroids of each point, nearest first, and their squared distances [N, T].

    Equally near ones are in the order of their places. Raises ValueError unless 1 <= t <= K.
    """
    n, k = len(points_ND), len(centroids_KD)
    if not 1 <= t <= k:
        raise ValueError(f"nearest: expected 1 to {k} centroids, got {t}")
    places_NT, squared_NT = np.empty((n, t), np.int64), np.empty((n, t))
    squares_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD)
    rows = max(1, _CELLS_PER_BLOCK // max(k, (t + _SPARE) * points_ND.shape[1]))
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        places_NT[block], squared_NT[block] = _nearest_block(
            points_ND[block], centroids_KD, squares_K, t
        )
    return places_NT, squared_NT


def _nearest_block(points_bD: F64, centroids_KD: F64, squares_K: F64, t: int) -> tuple[I64, F64]:
    k = len(centroids_KD)
    near = min(k, t + (1 if t == 1 else _SPARE))
    rough_bK = squares_K - 2.0 * (points_bD @ centroids_KD.T)
    candidates_bC = (
        np.argpartition(rough_bK, near - 1, axis=1)[:, :near]
        if near < k
        else np.broadcast_to(np.arange(k), rough_bK.shape)
    )
    places_bT, squared_bT = _exact(points_bD, centroids_KD, candidates_bC, t)
    if near < k:
        # The last candidate is safely farther than the last that counts, or all are looked at.
        edge_bC = np.sort(np.take_along_axis(rough_bK, candidates_bC, axis=1), axis=1)
        scale_b = np.einsum("bd,bd->b", points_bD, points_bD) + squares_K.max()
        unsure = np.flatnonzero(edge_bC[:, near - 1] - edge_bC[:, t - 1] <= _TIE * scale_b)
        everything = np.arange(k)[None]
        for row in unsure.tolist():
            places_bT[row], squared_bT[row] = _exact(
                points_bD[row : row + 1], centroids_KD, everything, t
            )
    return places_bT, squared_bT


def _exact(points_bD: F64, centroids_KD: F64, candidates_bC: I64, t: int) -> tuple[I64, F64]:
    """The `t` nearest of the candidates by (distance, place), each distance summed on its own."""
    ordered_bC = np.sort(candidates_bC, axis=1)
    rows, c = len(points_bD), ordered_bC.shape[1]
    squared_bC = np.empty((rows, c))
    step = max(1, _CELLS_PER_BLOCK // (c * points_bD.shape[1]))
    for start in range(0, rows, step):
        block = slice(start, start + step)
        apart = points_bD[block, None, :] - centroids_KD[ordered_bC[block]]
        squared_bC[block] = (apart * apart).sum(axis=2)
    order_bT = np.argsort(squared_bC, axis=1, kind="stable")[:, :t]
    return (
        np.take_along_axis(ordered_bC, order_bT, axis=1),
        np.take_along_axis(squared_bC, order_bT, axis=1),
    )


def seeds(points_ND: F64, k: int, rng: np.random.Generator) -> F64:
    """`k` starting centroids, k-means++ (Arthur and Vassilvitskii 2007, section 2.2).

    Fewer than `k` where the points have fewer places.
    """
    chosen = [int(rng.integers(len(points_ND)))]
    squared_N = _squared_to(points_ND, points_ND[chosen[0]])
    while len(chosen) < k:
        total_N = np.cumsum(squared_N)
        if not total_N[-1] > 0:
            break
        pick = int(np.searchsorted(total_N, rng.random() * total_N[-1], side="right"))
        chosen.append(min(pick, len(points_ND) - 1))
        np.minimum(squared_N, _squared_to(points_ND, points_ND[chosen[-1]]), out=squared_N)
    return points_ND[chosen].copy()


def _squared_to(points_ND: F64, one_D: F64) -> F64:
    apart = points_ND - one_D
    squared_N: F64 = np.einsum("nd,nd->n", apart, apart)
    return squared_N


def lloyd(points_ND: F64, start_KD: F64, iterations: int, *, reseed: bool) -> Clusters:
    """k-means from `start_KD`; the assignment is that to the centroids returned.

    Stops early once no point moves: centroids then equal the means of their members. A cluster
    without members goes to the point farthest from its centroid, or stays if not `reseed`. With 0
    iterations the centroids are those of the start.
    """
    centroids_KD, reseeded = start_KD.copy(), 0
    nearest_N, squared_N = nearest(points_ND, centroids_KD)
    for _ in range(iterations):
        counts_K = np.bincount(nearest_N, minlength=len(centroids_KD))
        centroids_KD = means(points_ND, nearest_N, centroids_KD)
        if reseed and (empty := np.flatnonzero(counts_K == 0)).size:
            far = np.argsort(-squared_N, kind="stable")[: len(empty)]
            centroids_KD[empty[: len(far)]] = points_ND[far]
            reseeded += len(far)
        moved_N, squared_N = nearest(points_ND, centroids_KD)
        still = np.array_equal(moved_N, nearest_N)
        nearest_N = moved_N
        if still:
            break
    return Clusters(
        centroids_KD=centroids_KD, nearest_N=nearest_N, inertia=float(squared_N.sum()),
        reseeded=reseeded,
    )  # fmt: skip


def means(points_ND: F64, nearest_N: I64, old_KD: F64) -> F64:
    """Mean of each cluster's members, float64 [K, D]; the old centroid where there are none."""
    order = np.argsort(nearest_N, kind="stable")
    places, starts = np.unique(nearest_N[order], return_index=True)
    found_KD = old_KD.copy()
    if len(places):
        sums = np.add.reduceat(points_ND[order], starts, axis=0)
        counts = np.diff(np.append(starts, len(order)))
        found_KD[places] = sums / counts[:, None]
    return found_KD
