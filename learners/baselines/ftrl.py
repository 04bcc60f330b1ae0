"""`ftrl`: logistic regression over hashed ids by FTRL-proximal, a step for each sample.

Learns no embeddings and reads no content vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from infra.state import Part
from learners.baselines.hashed_rows import F32, I32, HashedRowsConfig, kernel
from learners.baselines.row_learner import F64, RowLearner
from learners.feature_spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class FtrlConfig:
    """Step size `alpha` / (`beta` + sqrt(sum of squared gradients)); penalties `l1` and `l2`."""

    rows: HashedRowsConfig = field(default_factory=HashedRowsConfig)
    alpha: float = 0.02
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.alpha > 0 and self.beta >= 0 and self.l1 >= 0 and self.l2 >= 0):
            raise ValueError(
                "ftrl: alpha > 0, beta, l1 and l2 >= 0, got "
                f"{self.alpha}, {self.beta}, {self.l1}, {self.l2}"
            )


class Penalty(NamedTuple):
    """The constants of the update."""

    alpha: float
    beta: float
    l1: float
    l2: float


@kernel
def weight(z: float, n: float, c: Penalty) -> float:
    """The weight of one coordinate (McMahan et al. 2013, Algorithm 1)."""
    if abs(z) <= c.l1:
        return 0.0
    return float(-(z - np.sign(z) * c.l1) / ((c.beta + np.sqrt(n)) / c.alpha + c.l2))


@kernel
def score(index_BN: I32, value_BN: F32, z_R: F64, n_R: F64, c: Penalty, logit_B: F64) -> None:
    """Fill `logit_B`."""
    for b in range(len(index_BN)):
        logit = 0.0
        for j in range(index_BN.shape[1]):
            if value_BN[b, j] != 0:
                i = index_BN[b, j]
                logit += value_BN[b, j] * weight(z_R[i], n_R[i], c)
        logit_B[b] = logit


@kernel
def learn(
    index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64, z_R: F64, n_R: F64,
    touched_R: I32, step: int, c: Penalty,
) -> int:  # fmt: skip
    """Learn the rows in order; the number of rows without a finite gradient, left out."""
    left_out = 0
    w_N = np.empty(index_BN.shape[1])
    for b in range(len(index_BN)):
        logit = 0.0
        for j in range(index_BN.shape[1]):
            if value_BN[b, j] != 0:
                i = index_BN[b, j]
                w_N[j] = weight(z_R[i], n_R[i], c)
                logit += value_BN[b, j] * w_N[j]
        error = (1.0 / (1.0 + np.exp(-logit)) - label_B[b]) * weight_B[b]
        if not np.isfinite(error):
            left_out += 1
            continue
        for j in range(index_BN.shape[1]):
            if value_BN[b, j] != 0:
                i, g = index_BN[b, j], error * value_BN[b, j]
                sigma = (np.sqrt(n_R[i] + g * g) - np.sqrt(n_R[i])) / c.alpha
                z_R[i] += g - sigma * w_N[j]
                n_R[i] += g * g
                touched_R[i] = step
    return left_out


class Ftrl(RowLearner):
    """z and n of McMahan et al. 2013 for each bucket; weights are computed as they are read."""

    def __init__(self, spec: FeatureSpec, config: FtrlConfig) -> None:
        super().__init__(spec, config.rows)
        self.penalty = Penalty(config.alpha, config.beta, config.l1, config.l2)
        self._clear()

    def _clear(self) -> None:
        self.z_R, self.n_R = np.zeros(self.rows.size), np.zeros(self.rows.size)
        self.touched_R = np.zeros(self.rows.size, np.int32)

    def score_rows(self, index_BN: I32, value_BN: F32) -> F64:
        """Logits, float64 [B]."""
        logit_B = np.empty(len(index_BN))
        score(index_BN, value_BN, self.z_R, self.n_R, self.penalty, logit_B)
        return logit_B

    def learn_rows(self, index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64) -> int:
        """One FTRL step for each row."""
        return learn(
            index_BN, value_BN, label_B, weight_B, self.z_R, self.n_R, self.touched_R, self.step,
            self.penalty,
        )  # fmt: skip

    def weight_parts(self, mark: int | None) -> list[Part]:
        """z, n and the last learn step of the buckets that were touched (since `mark`)."""
        at = np.flatnonzero(self.touched_R > (mark or 0))
        return [
            Part(
                name="ftrl",
                part_class="serve",
                arrays={
                    "at": at, "z": self.z_R[at], "n": self.n_R[at], "touched": self.touched_R[at],
                },
                delta=mark is not None,
            )
        ]  # fmt: skip

    def apply_weights(self, parts: Mapping[str, Part]) -> None:
        """Take the part `ftrl`: a full one replaces everything."""
        part = parts["ftrl"]
        if not part.delta:
            self._clear()
        at = part.array("at", np.int64)
        self.z_R[at], self.n_R[at] = part.array("z", np.float64), part.array("n", np.float64)
        self.touched_R[at] = part.array("touched", np.int32)
