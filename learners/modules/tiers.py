"""Tiers of a cosine: edges of equal width or of equal mass, and counting. Reads no file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from learners.content_cosines import Cosines

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F = TypeVar("F", bound=Callable[..., Any])


def equal_width(tiers: int) -> F64:
    """Inner edges of N tiers over [-1, 1], float64 [N - 1]."""
    edges_E: F64 = np.arange(1, tiers, dtype=np.float64) * (2.0 / tiers) - 1.0
    return edges_E


def equal_mass(cosines_n: F32, tiers: int) -> F64:
    """Inner edges at the quantiles of a sample, equal ones once: at most N - 1 of them.

    Raises ValueError for an empty sample or one without two different values.
    """
    if not len(cosines_n):
        raise ValueError("no cosine to fit tiers to")
    quantiles = np.quantile(cosines_n.astype(np.float64), np.arange(1, tiers) / tiers)
    edges: F64 = np.unique(quantiles)
    edges = edges[edges > cosines_n.min()]
    if not len(edges):
        raise ValueError("all cosines are equal: no edge tells them apart")
    return edges


def count_tiers(cosines: Cosines, recent: int, edges_E: F64, out_BN: F32) -> None:
    """Add to `out_BN` [>= B, N] the number of entries in each of N = E + 1 tiers.

    `recent`: only the last so many entries of the history count; 0: all of them. With the edges
    of `equal_width` the tier is clamp(floor((r + 1) N / 2), 0, N - 1), else the number of edges
    at or below r.
    """
    even = bool(np.array_equal(edges_E, equal_width(len(edges_E) + 1)))
    _count(*cosines, recent, edges_E, even, out_BN)


def _compiled(f: F) -> F:
    return cast("F", numba.njit(cache=True)(f))


@_compiled
def _count(
    r_BL: F32,
    known_BL: U8,
    length_B: I64,
    recent: int,
    edges_E: F64,
    even: bool,
    out_BN: F32,
) -> None:
    last = len(edges_E)
    half = (last + 1) / 2.0
    for b in range(len(length_B)):
        first = max(0, length_B[b] - recent) if recent else 0
        for place in range(first, length_B[b]):
            if not known_BL[b, place]:
                continue
            r = np.float64(r_BL[b, place])
            if even:
                tier = min(max(int(np.floor((r + 1.0) * half)), 0), last)
            else:
                low, high = 0, last
                while low < high:
                    middle = (low + high) // 2
                    if r >= edges_E[middle]:
                        low = middle + 1
                    else:
                        high = middle
                tier = low
            out_BN[b, tier] += 1
