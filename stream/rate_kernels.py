"""Rates and counts of counters as dense inputs: one compiled loop over rows and counters.

Reads frozen counts and writes columns; knows no configuration (`stream/assemble` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True, error_model="numpy"))

COUNTS: Final = 4_096
LOG1P: Final[F32] = np.log1p(np.arange(COUNTS, dtype=np.float32))
"""Logarithms of whole numbers, which most counts are: a look-up instead of a call."""


class RatePlan(NamedTuple):
    """By counter, the prior first: prior weight, place of its decayed copy (-1: none), `open`."""

    weight: F32
    decayed: I64
    is_open: NDArray[np.uint8]


@_compiled
def log1p_of(count: np.float32, table: F32) -> Any:
    """log(1 + count) of a whole number >= 0."""
    return table[int(count)] if count < table.shape[0] else np.log1p(count)


@_compiled
def fill_rates(
    counts: NDArray[np.int32], decayed: F32, plan: RatePlan, label: int, table: F32, out: F32
) -> None:
    """Fill the leading columns of `out` [n, D] from counts [n, J, C] and decayed copies [n, K, C].

    The prior's logit of the smoothed overall rate p = (c + 1/2) / (n + 1); then for each counter,
    and for its decayed copy, logit((c + w p) / (n + w)) - logit(p) and log(1 + n); with `open`,
    log(1 + impressions whose outcome is not known yet).
    """
    one, half = np.float32(1.0), np.float32(0.5)
    for i in range(counts.shape[0]):
        clicks = np.float32(counts[i, 0, 2 + label])
        prior = (clicks + half) / (np.float32(counts[i, 0, 0]) + one)
        prior_logit = np.log(prior / (one - prior))
        out[i, 0] = prior_logit
        d = 1
        for j in range(1, counts.shape[1]):
            weight = plan.weight[j]
            n = np.float32(counts[i, j, 0])
            hits = np.float32(counts[i, j, 2 + label]) + weight * prior
            out[i, d] = np.log(hits / (n + weight - hits)) - prior_logit
            out[i, d + 1] = log1p_of(n, table)
            d += 2
            k = plan.decayed[j]
            if k >= 0:
                n = decayed[i, k, 0]
                hits = decayed[i, k, 1 + label] + weight * prior
                out[i, d] = np.log(hits / (n + weight - hits)) - prior_logit
                out[i, d + 1] = np.log1p(n)
                d += 2
            if plan.is_open[j]:
                waiting = max(counts[i, j, 1] - counts[i, j, 0], 0)
                out[i, d] = log1p_of(np.float32(waiting), table)
                d += 1
