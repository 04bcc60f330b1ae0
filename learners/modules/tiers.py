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


def count_fine(cosines: Cosines, out_K: I64) -> None:
    """Add all cosines of a batch to `out_K`, counts in K tiers of equal width."""
    r_n = cosines.r_BL[cosines.known_BL.astype(np.bool_)].astype(np.float64)
    places_n = np.clip(np.floor((r_n + 1) * (len(out_K) / 2)), 0, len(out_K) - 1)
    out_K += np.bincount(places_n.astype(np.int64), minlength=len(out_K))


def equal_mass(counts_K: I64, tiers: int) -> F64:
    """Inner edges of at most N tiers with equal shares of what was counted, float64.

    They lie between tiers of equal width, of which `counts_K` are the counts: with many of them
    the shares are equal, but where many cosines fall into one. No outer tier is empty. Raises
    ValueError where nothing was counted, or all of it in one place.
    """
    total, last = int(counts_K.sum()), len(counts_K)
    if not total:
        raise ValueError("no cosine to fit tiers to")
    below_K = np.cumsum(counts_K)
    wanted = np.arange(1, tiers) * (total / tiers)
    places = np.unique(np.searchsorted(below_K, wanted) + 1)
    # An edge with nothing above it tells nothing apart.
    places = places[(places < last) & (below_K[np.minimum(places, last) - 1] < total)]
    if not len(places):
        raise ValueError("all cosines are equal: no edge tells them apart")
    edges_E: F64 = places * (2.0 / last) - 1.0
    return edges_E


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
