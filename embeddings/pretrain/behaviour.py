"""Behavioural vectors: items that the same users take lie close. Knows no content and no log.

Positive pointwise mutual information of pairs, and its truncated singular value decomposition
(Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization", section 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from embeddings.pretrain.pairs import (
    I64,
    Interactions,
    PairConfig,
    Pairs,
    in_order,
    pair_blocks,
)
from infra.errors import InputError

_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourConfig:
    """`dim` of the vectors; `users_min`: an item taken by fewer users gets none.

    `smoothing`: exponent of the context's frequency (Levy, Goldberg and Dagan 2015, section 3.1);
    `shift`: what is taken from every mutual information (ln k of k negative samples); `power`: of
    the singular values, 0 for none to 1 for all (section 3.3).
    """

    dim: int = 64
    users_min: int = 5
    smoothing: float = 0.75
    shift: float = 0.0
    power: float = 0.5

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.dim <= 4096 or self.users_min < 1:
            raise ValueError("behaviour: dim must be 1 to 4096 and users_min at least 1")
        if not (0 < self.smoothing <= 1 and self.shift >= 0 and 0 <= self.power <= 1):
            raise ValueError(
                "behaviour: smoothing must be in (0, 1], power in [0, 1], shift not negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviourVectors:
    """Unit vectors float32 [N, dim] of the items with keys `items_N`; `pairs` were counted."""

    items_N: I64
    vectors_ND: NDArray[np.float32]
    pairs: int


def behaviour_vectors(
    interactions: Interactions, pair_config: PairConfig, config: BehaviourConfig
) -> BehaviourVectors:
    """Vectors of all items that enough users took.

    Raises InputError where these are not more than `dim`.
    """
    kept = _frequent(interactions, config.users_min)
    items_N = np.unique(kept.item_n)
    if len(items_N) <= config.dim:
        raise InputError(
            f"behaviour: {len(items_N)} items were taken by {config.users_min} or more users, "
            f"expected more than dim = {config.dim}; lower dim or users_min, or give a longer log"
        )
    counts_NN, pairs = co_counts(pair_blocks(kept, pair_config), items_N)
    information_NN = positive_information(counts_NN, config)
    vectors_ND = _factors(information_NN, config)
    present = np.linalg.norm(vectors_ND, axis=1) > 0
    return BehaviourVectors(items_N=items_N[present], vectors_ND=vectors_ND[present], pairs=pairs)


def co_counts(blocks: Iterable[Pairs], items_N: I64) -> tuple[sparse.csr_array, int]:
    """How many users took both, symmetric float64 [N, N] by place in the sorted `items_N`.

    The second value is the number of pairs.
    """
    n = len(items_N)
    counts_NN = sparse.csr_array((n, n), dtype=np.float64)
    pairs, held = 0, 0
    waiting: list[I64] = []
    for block in blocks:
        left, right = (np.searchsorted(items_N, side) for side in (block.left_P, block.right_P))
        waiting.append(left * n + right)
        held += len(block)
        pairs += len(block)
        if held >= _PAIRS_AT_ONCE:
            counts_NN += _counted(waiting, n)
            waiting, held = [], 0
    if waiting:
        counts_NN += _counted(waiting, n)
    return sparse.csr_array(counts_NN + counts_NN.T), pairs


def _counted(places: list[I64], n: int) -> sparse.csr_array:
    """How often each place row * n + column occurs, float64 [n, n]."""
    place, count = np.unique(np.concatenate(places), return_counts=True)
    return sparse.csr_array((count.astype(np.float64), (place // n, place % n)), shape=(n, n))


def positive_information(counts_NN: sparse.csr_array, config: BehaviourConfig) -> sparse.csr_array:
    """max(0, ln(p(i, j) / (p(i) p_smoothed(j))) - shift), sparse float64 [N, N]."""
    total_N = np.asarray(counts_NN.sum(axis=1)).ravel()
    context_N = total_N**config.smoothing
    pairs = counts_NN.tocoo()
    expected = total_N[pairs.row] * context_N[pairs.col] / max(context_N.sum(), 1e-300)
    information = np.log(pairs.data / expected) - config.shift
    positive = information > 0
    return sparse.csr_array(
        (information[positive], (pairs.row[positive], pairs.col[positive])), shape=counts_NN.shape
    )


def _factors(matrix_NN: sparse.csr_array, config: BehaviourConfig) -> NDArray[np.float32]:
    """Left factors times the singular values to the power, of unit length; zeros stay zeros."""
    start_N = np.random.default_rng(0).standard_normal(matrix_NN.shape[0])
    left_ND, values_D, _ = svds(matrix_NN, k=config.dim, v0=start_N)
    order = np.argsort(-values_D, kind="stable")
    left_ND, values_D = left_ND[:, order], values_D[order]
    # A factor's sign is arbitrary: its largest entry is made positive.
    largest_D = left_ND[np.abs(left_ND).argmax(axis=0), np.arange(config.dim)]
    vectors_ND = left_ND * np.where(largest_D < 0, -1.0, 1.0) * values_D**config.power
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    some = norms_N1 > 1e-9 * norms_N1.max(initial=0.0)
    unit_ND: NDArray[np.float32] = np.where(
        some, vectors_ND / np.where(some, norms_N1, 1.0), 0.0
    ).astype(np.float32)
    return unit_ND


def _frequent(interactions: Interactions, users_min: int) -> Interactions:
    """The first interaction of each user with each item that at least `users_min` users took."""
    rows = in_order(interactions)
    _, item_n, users_N = np.unique(rows.item_n, return_inverse=True, return_counts=True)
    return rows.where(users_N[item_n] >= users_min)
