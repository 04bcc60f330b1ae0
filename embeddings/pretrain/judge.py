"""How well vectors find the next item: recall, alignment, uniformity. Trains nothing.

Shapes: N items, P pairs of rows, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
_PAIRS_PER_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval by bootstrap over users."""

    mean: float
    low: float
    high: float


def hits(
    vectors_ND: F32,
    left_P: I64,
    right_P: I64,
    k: int,
    competes_N: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Share of a hit each pair is worth: whether `right` is among the `k` items nearest to `left`.

    float64 [P]. All rows, or those of `competes_N`, but `left` itself compete. Of items that tie
    with `right` at the k-th place each is equally likely to be in, so that equal vectors gain
    nothing by their order.
    """
    worth_P = np.zeros(len(left_P))
    for start in range(0, len(left_P), _PAIRS_PER_BLOCK):
        left_b, right_b = left_P[start:][:_PAIRS_PER_BLOCK], right_P[start:][:_PAIRS_PER_BLOCK]
        row_b = np.arange(len(left_b))
        cosine_bN = vectors_ND[left_b] @ vectors_ND.T
        own_b1 = cosine_bN[row_b, right_b][:, None]
        cosine_bN[row_b, left_b] = -np.inf
        if competes_N is not None:
            cosine_bN[:, ~competes_N] = -np.inf
        above_b = (cosine_bN > own_b1).sum(axis=1)
        level_b = (cosine_bN == own_b1).sum(axis=1)
        worth_P[start : start + len(left_b)] = np.clip((k - above_b) / np.maximum(level_b, 1), 0, 1)
    return worth_P


def by_users(value_P: NDArray[np.float64], user_P: I64, *, resamples: int, seed: int) -> Interval:
    """The mean of `value_P`, resampled by whole users."""
    users, user_P = np.unique(user_P, return_inverse=True)
    sum_U = np.bincount(user_P, weights=value_P, minlength=len(users))
    n_U = np.bincount(user_P, minlength=len(users))
    draws_RU = np.random.default_rng(seed).multinomial(
        len(users), np.full(len(users), 1 / len(users)), size=resamples
    )
    means_R = (draws_RU @ sum_U) / np.maximum(draws_RU @ n_U, 1)
    low, high = np.quantile(means_R, (0.025, 0.975)).tolist()
    return Interval(mean=float(value_P.mean()), low=low, high=high)


def alignment(vectors_ND: F32, left_P: I64, right_P: I64) -> float:
    """Mean squared distance within pairs (Wang and Isola 2020, section 4.1, alpha 2)."""
    total = 0.0
    for start in range(0, len(left_P), 1 << 16):
        left_BD = vectors_ND[left_P[start : start + (1 << 16)]]
        right_BD = vectors_ND[right_P[start : start + (1 << 16)]]
        total += float(((left_BD - right_BD) ** 2).sum(dtype=np.float64))
    return total / len(left_P)


def uniformity(vectors_ND: F32, *, items_max: int = 2_000, seed: int = 0) -> float:
    """The logarithm of the mean of exp(-2 squared distance) between items (same section, t 2).

    Lower is more even. Of more than `items_max` items a random sample.
    """
    chosen = np.random.default_rng(seed).permutation(len(vectors_ND))[:items_max]
    sample_ND = vectors_ND[chosen].astype(np.float64)
    squared_NN = np.maximum(2 - 2 * sample_ND @ sample_ND.T, 0)
    upper = squared_NN[np.triu_indices(len(sample_ND), 1)]
    return float(np.log(np.exp(-2 * upper).mean()))
