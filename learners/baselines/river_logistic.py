"""`river_logistic`: River's logistic regression on hashed rows, one sample after the other.

Slow: an interpreted loop over every feature of every sample. The model itself is River's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from infra.state import Part
from learners.baselines.hashed_rows import F32, I32, HashedRowsConfig, rows_as_dicts
from learners.baselines.row_learner import F64, RowLearner
from learners.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from learners.baselines.river_models import LogisticModel


@dataclass(frozen=True, kw_only=True)
class RiverLogisticConfig:
    """River's optimizer with step size `lr`, and what is done when the loss changes.

    `drift = "adwin"` watches the log loss of each sample with River's ADWIN of confidence
    `drift_delta`; when its mean has gone up, the model starts anew.
    """

    rows: HashedRowsConfig = field(default_factory=HashedRowsConfig)
    optimizer: Literal["ftrl", "adagrad", "sgd"] = "ftrl"
    lr: float = 0.02
    l1: float = 0.0
    l2: float = 0.0
    drift: Literal["none", "adwin"] = "none"
    drift_delta: float = 0.002

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and self.l1 >= 0 and self.l2 >= 0 and 0 < self.drift_delta < 1):
            raise ValueError(
                "river_logistic: lr > 0, l1 and l2 >= 0, 0 < drift_delta < 1, got "
                f"{self.lr}, {self.l1}, {self.l2}, {self.drift_delta}"
            )
        if self.optimizer != "ftrl" and self.l1 > 0 and self.l2 > 0:
            raise ValueError("river_logistic: River takes l1 and l2 together with ftrl only")


class RiverLogistic(RowLearner):
    """`linear_model.LogisticRegression`, with ADWIN on its loss where that is configured."""

    def __init__(self, spec: FeatureSpec, config: RiverLogisticConfig) -> None:
        from learners.baselines.river_models import Detector

        super().__init__(spec, config.rows)
        self.config = config
        self.model = self._fresh()
        self.detector = Detector(config.drift_delta)
        self.resets = 0

    def _fresh(self) -> LogisticModel:
        from learners.baselines.river_models import LogisticModel

        c = self.config
        return LogisticModel(c.optimizer, c.lr, c.l1, c.l2)

    def score_rows(self, index_BN: I32, value_BN: F32) -> F64:
        """Logits, float64 [B]."""
        return np.array([self.model.logit(row) for row in rows_as_dicts(index_BN, value_BN)], float)

    def learn_rows(self, index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64) -> int:
        """`learn_one` on each row."""
        rows, left_out = rows_as_dicts(index_BN, value_BN), 0
        for row, label, weight in zip(rows, label_B.tolist(), weight_B.tolist(), strict=True):
            logit = self.model.logit(row)
            if not np.isfinite(logit):
                left_out += 1
                continue
            if self.config.drift == "adwin":
                loss = float(np.logaddexp(0.0, logit)) - label * logit
                if self.detector.rises(loss):
                    self.model = self._fresh()
                    self.resets += 1
            self.model.learn_one(row, bool(label), w=weight)
        return left_out

    def weight_parts(self, mark: int | None) -> list[Part]:
        """The whole model: River does not say what was touched."""
        resets = Part(name="river.resets", part_class="train", meta={"resets": self.resets})
        return [self.model.part("river"), self.detector.part("river.adwin"), resets]

    def apply_weights(self, parts: Mapping[str, Part]) -> None:
        """Take the model; ADWIN's window where it is there."""
        self.model = self._fresh()
        self.model.restore(parts["river"])
        if "river.adwin" in parts:
            self.detector.restore(parts["river.adwin"])
            self.resets = int(parts["river.resets"].meta["resets"])

    def counts(self) -> Mapping[str, int]:
        """What all row learners count, and how often the model started anew."""
        return {**super().counts(), "resets": self.resets}
