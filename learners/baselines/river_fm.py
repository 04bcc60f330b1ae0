"""`river_fm`: River's factorization machine on hashed rows, one sample after the other.

Every pair of features of a row costs a call from Python, so bags and dense inputs are off unless
asked for. The model itself is River's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from infra.state import Part
from learners.baselines.hashed_rows import F32, I32, HashedRowsConfig, rows_as_dicts
from learners.baselines.row_learner import F64, RowLearner
from learners.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from learners.baselines.river_models import FactorModel

FACTORS_MAX = 256


def _few_features() -> HashedRowsConfig:
    return HashedRowsConfig(bits=18, bags=False, dense=False)


@dataclass(frozen=True, kw_only=True)
class RiverFmConfig:
    """Number of factors; AdaGrad's step size for weights, SGD's for factors; their first noise."""

    rows: HashedRowsConfig = field(default_factory=_few_features)
    factors: int = 8
    lr: float = 0.02
    factor_lr: float = 0.02
    sigma: float = 0.05
    seed: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (1 <= self.factors <= FACTORS_MAX and min(self.lr, self.factor_lr, self.sigma) > 0):
            raise ValueError(
                f"river_fm: 1 <= factors <= {FACTORS_MAX}, lr, factor_lr and sigma > 0, got "
                f"{self.factors}, {self.lr}, {self.factor_lr}, {self.sigma}"
            )


class RiverFm(RowLearner):
    """`facto.FMClassifier`."""

    def __init__(self, spec: FeatureSpec, config: RiverFmConfig) -> None:
        super().__init__(spec, config.rows)
        self.config = config
        self.model = self._fresh()

    def _fresh(self) -> FactorModel:
        from learners.baselines.river_models import FactorModel

        c = self.config
        rng = np.random.default_rng(c.seed)
        self.factors_RK = rng.normal(0.0, c.sigma, (self.rows.size, c.factors))
        self.touched_R = np.zeros(self.rows.size, np.int32)
        return FactorModel(self.factors_RK, c.lr, c.factor_lr)

    def score_rows(self, index_BN: I32, value_BN: F32) -> F64:
        """Logits, float64 [B]."""
        return np.array([self.model.logit(row) for row in rows_as_dicts(index_BN, value_BN)], float)

    def learn_rows(self, index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64) -> int:
        """`learn_one` on each row."""
        rows, left_out = rows_as_dicts(index_BN, value_BN), 0
        for row, label, weight in zip(rows, label_B.tolist(), weight_B.tolist(), strict=True):
            if not np.isfinite(self.model.logit(row)):
                left_out += 1
                continue
            self.model.learn(row, bool(label), weight)
            self.touched_R[list(row)] = self.step
        return left_out

    def _drawn(self) -> dict[str, float]:
        return {"seed": self.config.seed, "sigma": self.config.sigma}

    def weight_parts(self, mark: int | None) -> list[Part]:
        """Factors that were touched (since `mark`); the weights whole."""
        at = np.flatnonzero(self.touched_R > (mark or 0))
        return [
            self.model.part("river_fm"),
            Part(
                name="river_fm.factors",
                part_class="serve",
                arrays={
                    "at": at, "factors": self.factors_RK[at], "touched": self.touched_R[at],
                },
                meta=self._drawn(),
                delta=mark is not None,
            ),
        ]  # fmt: skip

    def apply_weights(self, parts: Mapping[str, Part]) -> None:
        """Take both parts; raises ValueError where the untouched factors would be others."""
        part = parts["river_fm.factors"]
        if part.meta != self._drawn():
            raise ValueError(
                f"part '{part.name}': factors were drawn with {part.meta}, but the configuration "
                f"has {self._drawn()}; use the configuration of the snapshot"
            )
        if not part.delta:
            self.model = self._fresh()
        at = part.array("at", np.int64)
        self.factors_RK[at] = part.array("factors", np.float64)
        self.touched_R[at] = part.array("touched", np.int32)
        self.model.restore(parts["river_fm"])
