"""A logged bandit whose policies' values are known exactly: slates of one item, with propensities.

A user is drawn from a finite population of types; a type fixes the context, hence every action's
click probability and every policy's choice. The value of a policy is a finite sum over the types.
Rows of one user share a context, so intervals must be taken over users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditLog:
    """n rows logged by one policy; A actions, D context columns.

    `reward_n` is 0 or 1, drawn with probability `true_nA[i, action_n[i]]`. `logging_nA` and each of
    `policies_nA` hold a policy's probabilities of all actions in the row's context, so
    `propensity_n` is `logging_nA[i, action_n[i]]`.
    """

    user_n: I64
    context_nD: F64
    action_n: I64
    propensity_n: F64
    reward_n: F64
    true_nA: F64
    logging_nA: F64
    policies_nA: Mapping[str, F64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditWorld:
    """T types with weights that add up to 1; `values` are the exact values of the policies.

    Policies: `logging` (softmax, each action at least `floor`), `uniform`, `softmax` (sharper, by
    noisy scores), `greedy` (the truly best action) and `worst`.
    """

    weight_T: F64
    context_TD: F64
    true_TA: F64
    policies_TA: Mapping[str, F64]

    @property
    def values(self) -> dict[str, float]:
        """Expected reward of one impression under each policy."""
        return {
            name: float(self.weight_T @ (p_TA * self.true_TA).sum(axis=1))
            for name, p_TA in self.policies_TA.items()
        }

    def draw(
        self, *, users: int, seed: int, rows_per_user: int = 5, logging: str = "logging"
    ) -> BanditLog:
        """A log of the policy `logging`: users of random types, each with 1 + Poisson rows."""
        rng = np.random.default_rng(seed)
        type_U = rng.choice(len(self.weight_T), size=users, p=self.weight_T)
        rows_U = 1 + rng.poisson(rows_per_user - 1, size=users)
        user_n = np.repeat(np.arange(users), rows_U)
        type_n = type_U[user_n]
        logging_nA = self.policies_TA[logging][type_n]
        draw_n1 = rng.random((len(user_n), 1))
        # The last boundary may round to just below 1.
        action_n = np.minimum(
            (draw_n1 > np.cumsum(logging_nA, axis=1)).sum(axis=1), logging_nA.shape[1] - 1
        )
        row_n = np.arange(len(user_n))
        true_nA = self.true_TA[type_n]
        reward_n = (rng.random(len(user_n)) < true_nA[row_n, action_n]).astype(np.float64)
        return BanditLog(
            user_n=user_n,
            context_nD=self.context_TD[type_n],
            action_n=action_n,
            propensity_n=logging_nA[row_n, action_n],
            reward_n=reward_n,
            true_nA=true_nA,
            logging_nA=logging_nA,
            policies_nA={name: p_TA[type_n] for name, p_TA in self.policies_TA.items()},
        )


def bandit_world(
    *, seed: int = 0, types: int = 50, actions: int = 8, dims: int = 4, floor: float = 0.02
) -> BanditWorld:
    """A world with click probabilities of about .05 to .6; `floor` bounds logged propensities."""
    rng = np.random.default_rng(seed)
    context_TD = rng.normal(size=(types, dims))
    score_TA = context_TD @ rng.normal(size=(dims, actions)) / np.sqrt(dims)
    score_TA += rng.normal(scale=0.3, size=actions)
    true_TA = 1 / (1 + np.exp(1.4 - 0.9 * score_TA))
    noisy_TA = score_TA + rng.normal(scale=0.7, size=score_TA.shape)
    weight_T = rng.dirichlet(np.full(types, 3.0))
    best_T, worst_T = true_TA.argmax(axis=1), true_TA.argmin(axis=1)
    return BanditWorld(
        weight_T=weight_T,
        context_TD=context_TD,
        true_TA=true_TA,
        policies_TA={
            "logging": floor + (1 - actions * floor) * _softmax(0.8 * noisy_TA),
            "uniform": np.full((types, actions), 1 / actions),
            "softmax": _softmax(2.0 * noisy_TA),
            "greedy": np.eye(actions)[best_T],
            "worst": np.eye(actions)[worst_T],
        },
    )


def _softmax(x_TA: F64) -> F64:
    e_TA = np.exp(x_TA - x_TA.max(axis=1, keepdims=True))
    p_TA: F64 = e_TA / e_TA.sum(axis=1, keepdims=True)
    return p_TA
