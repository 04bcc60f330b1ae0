"""Policies and reward models over few contexts and actions, from counts in logs.

A cell is one combination of the context fields that a policy is taken to depend on. Estimates
nothing: `ope` does. Shapes: C cells, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPolicy:
    """`share_CA` probability of each action in each cell; rows of cells never seen are 0."""

    share_CA: F64

    def known(self) -> NDArray[np.bool_]:
        """Whether the policy is known, by cell."""
        known: NDArray[np.bool_] = self.share_CA.sum(1) > 0
        return known


def empirical_policy(cell_n: I64, action_n: I64, *, cells: int, actions: int) -> CellPolicy:
    """How often each action was taken in each cell: what a policy did on average in these rows."""
    counts_CA = _table(cell_n, action_n, np.ones(len(cell_n)), cells, actions)
    totals_C1 = np.maximum(counts_CA.sum(1, keepdims=True), 1)
    return CellPolicy(share_CA=counts_CA / totals_C1)


def uniform_policy(cell_n: I64, action_n: I64, *, cells: int, actions: int) -> CellPolicy:
    """Every action that any row took in the cell, equally often."""
    taken_CA = _table(cell_n, action_n, np.ones(len(cell_n)), cells, actions) > 0
    return CellPolicy(share_CA=taken_CA / np.maximum(taken_CA.sum(1, keepdims=True), 1))


def cross_fitted_rates(
    cell_n: I64,
    action_n: I64,
    reward_n: F64,
    block_n: I64,
    target: CellPolicy,
    *,
    folds: int = 5,
    prior_weight: float = 100.0,
) -> tuple[F64, F64]:
    """Reward of the logged action, and expected reward under `target`, both [n]; a model for DR.

    Mean reward of a cell's action, pulled by `prior_weight` rows to the action's mean over all
    cells, and that one equally to the mean of all rows. Rows are judged by counts of other folds of
    blocks only, so that a reward never is in its own prediction (Chernozhukov et al. 2018,
    section 3).
    """
    _, code_n = np.unique(block_n, return_inverse=True)
    # Blocks are numbered by id: a fixed shuffle keeps folds apart from any order in the ids.
    order = np.random.default_rng(0).permutation(int(code_n.max(initial=0)) + 1)
    fold_n = order[code_n] % folds
    logged_n, target_n = np.zeros(len(cell_n)), np.zeros(len(cell_n))
    for fold in range(folds):
        inside = fold_n == fold
        rate_CA = _rates(
            cell_n[~inside], action_n[~inside], reward_n[~inside], target.share_CA.shape,
            prior_weight,
        )  # fmt: skip
        logged_n[inside] = rate_CA[cell_n[inside], action_n[inside]]
        target_n[inside] = (target.share_CA * rate_CA).sum(1)[cell_n[inside]]
    return logged_n, target_n


def _rates(cell_n: I64, action_n: I64, reward_n: F64, shape: tuple[int, ...], prior: float) -> F64:
    cells, actions = shape
    count_CA = _table(cell_n, action_n, np.ones(len(cell_n)), cells, actions)
    reward_CA = _table(cell_n, action_n, reward_n, cells, actions)
    overall = reward_n.mean() if len(reward_n) else 0.0
    mean_A = (reward_CA.sum(0) + prior * overall) / (count_CA.sum(0) + prior)
    rate_CA: F64 = (reward_CA + prior * mean_A) / (count_CA + prior)
    return rate_CA


def _table(cell_n: I64, action_n: I64, value_n: F64, cells: int, actions: int) -> F64:
    flat = np.bincount(cell_n * actions + action_n, value_n, minlength=cells * actions)
    table: F64 = flat.astype(np.float64).reshape(cells, actions)
    return table
