"""`smoothed_rates`: prior plus the smoothed rates of counters, summed as logits. Has no weights.

The rates live in the counters and come in as dense inputs; this learner only adds them up, so it
tells faults of the pipeline from faults of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.learner import StepReport
from learners.step_inputs import trained_rows

DECAYED = ".decayed"
"""Ends the name of a counter's decayed copy, which counts the same impressions once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedRatesConfig:
    """Names of the counters whose rates are added up; empty: all, without their decayed copies."""

    counters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check for repeats."""
        if len(set(self.counters)) != len(self.counters):
            raise ValueError(f"smoothed_rates: a counter is named twice: {self.counters}")


class SmoothedRates:
    """Logit = prior input + sum of (smoothed logit - prior) of the configured counters."""

    def __init__(self, spec: FeatureSpec, config: SmoothedRatesConfig) -> None:
        rates = {
            d.counter: i
            for i, d in enumerate(spec.dense)
            if d.group == "rate" and d.label in ("", spec.trained_label)
        }
        unknown = [c for c in config.counters if c not in rates]
        if unknown:
            raise ValueError(
                f"smoothed_rates: no rate of '{unknown[0]}' for the label '{spec.trained_label}'; "
                f"counters with one: {', '.join(sorted(rates)) or 'none'}"
            )
        prior = [
            i
            for i, d in enumerate(spec.dense)
            if d.group == "prior" and d.label in ("", spec.trained_label)
        ]
        if not prior:
            raise ValueError("smoothed_rates: the spec has no dense input of group 'prior'")
        self.spec = spec
        plain = [c for c in rates if not c.endswith(DECAYED)]
        self._columns = [prior[0], *(rates[c] for c in (config.counters or plain))]
        self.step = self.rows_learned = self.skipped = 0

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]; numbers that are not finite count as 0."""
        logits_B = torch.zeros(len(batch))
        for column in self._columns:
            x_B = batch.dense_BD[:, column]
            logits_B = logits_B + torch.where(torch.isfinite(x_B), x_B, 0.0)
        return logits_B

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Logits and their loss; counts only, as the counters learn on their own."""
        logits_B = self.predict_many(batch)
        k = self.spec.trained_column
        labelled_B, finite_B = trained_rows(batch, self.spec)
        used_B = labelled_B & finite_B
        skipped = labelled_B.sum() - used_B.sum()
        weight_B = batch.weight_B[used_B]
        losses_B = functional.binary_cross_entropy_with_logits(
            logits_B[used_B], batch.labels_BK[used_B, k], reduction="none"
        )
        loss = (weight_B * losses_B).sum() / weight_B.sum().clamp(min=1e-12)
        self.step += int(used_B.any())
        self.rows_learned += int(used_B.sum())
        self.skipped += int(skipped)
        return StepReport(logits_B=logits_B, loss=loss, skipped=skipped)

    def export_full(self) -> Sequence[Part]:
        """Counts only."""
        meta = {"step": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped}
        return [Part(name="smoothed_rates", part_class="train", meta=meta)]

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same: it is small."""
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the counts; a snapshot for serving has none, which is fine."""
        part = parts.get("smoothed_rates")
        if part is not None:
            self.step = int(part.meta["step"])
            self.rows_learned = int(part.meta["rows_learned"])
            self.skipped = int(part.meta["skipped"])

    def counts(self) -> Mapping[str, int]:
        """Steps, rows and rows with a number that is not finite."""
        return {"steps": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped}
