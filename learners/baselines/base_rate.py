"""`base_rate`: the running rate of the trained label, the same for every row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.state import Part
from learners.batch import MiniBatch, RowKind
from learners.feature_spec import FeatureSpec
from learners.learner import StepReport
from learners.step_inputs import trained_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRateConfig:
    """Beta prior of the rate: `prior_rows` impressions with rate `prior_rate`."""

    prior_rate: float = 0.5
    prior_rows: float = 10.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (0 < self.prior_rate < 1 and self.prior_rows > 0):
            raise ValueError(f"base_rate: 0 < prior_rate < 1 and prior_rows > 0, got {self}")


class BaseRate:
    """Sums of weights and of weighted labels over the learned samples."""

    def __init__(self, spec: FeatureSpec, config: BaseRateConfig) -> None:
        self.spec, self.config = spec, config
        self.step = self.rows_learned = self.skipped = 0
        self.rows = self.positives = 0.0

    def _logit(self) -> float:
        c = self.config
        positives = self.positives + c.prior_rate * c.prior_rows
        return math.log(positives / (self.rows + c.prior_rows - positives))

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """The logit of the rate so far, float32 [B]."""
        return torch.full((len(batch),), self._logit())

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Count the labelled samples; loss is the mean over them of the old rate's loss."""
        logits_B = self.predict_many(batch)
        labelled_B, finite_B = trained_rows(batch, self.spec)
        skipped = int((labelled_B & ~finite_B).sum())
        used_B = labelled_B & finite_B & (batch.row_kind_B == int(RowKind.SAMPLE))
        weight_B = batch.weight_B.double()[used_B]
        label_B = batch.labels_BK[used_B, self.spec.trained_column].double()
        losses_B = torch.nn.functional.softplus(logits_B[used_B].double())
        losses_B = losses_B - label_B * logits_B[used_B]
        loss = (weight_B * losses_B).sum() / weight_B.sum().clamp(min=1e-12)
        learned = int(used_B.sum())
        if learned:
            self.step += 1
            self.rows_learned += learned
            self.rows += float(weight_B.sum())
            self.positives += float((weight_B * label_B).sum())
        self.skipped += skipped
        return StepReport(logits_B=logits_B, loss=loss.float(), skipped=torch.tensor(skipped))

    def export_full(self) -> Sequence[Part]:
        """The two sums and the counts."""
        return [
            Part(
                name="base_rate",
                part_class="serve",
                arrays={"sums": np.array([self.rows, self.positives])},
                meta={"step": self.step, "rows_learned": self.rows_learned,
                      "skipped": self.skipped},
            )
        ]  # fmt: skip

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same: it is small."""
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the part `base_rate`."""
        part = parts["base_rate"]
        self.rows, self.positives = (float(x) for x in part.array("sums", np.float64))
        self.step = int(part.meta["step"])
        self.rows_learned = int(part.meta["rows_learned"])
        self.skipped = int(part.meta["skipped"])

    def counts(self) -> Mapping[str, int]:
        """Steps, rows learned and rows with a number that is not finite."""
        return {"steps": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped}
