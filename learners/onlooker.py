"""Onlooker: what stands in for a learner where a log is only read. Learns and keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from infra.state import Part
from learners.batch import MiniBatch
from learners.learner import StepReport


class Onlooker:
    """A `Learner` that looks at each batch it is taught and predicts 0; without a state."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def look(self, batch: MiniBatch) -> None:
        """Take what is wanted of a batch with its labels."""
        raise NotImplementedError

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Zeros, once the batch was looked at."""
        self.look(batch)
        zero = torch.zeros(())
        return StepReport(logits_B=torch.zeros(len(batch)), loss=zero, skipped=zero)

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Zeros, float32 [B]."""
        return torch.zeros(len(batch))

    def export_full(self) -> Sequence[Part]:
        """Nothing: a log that is only read has no snapshots."""
        return []

    def export_since(self, mark: int) -> Sequence[Part]:
        """Nothing."""
        del mark
        return []

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Nothing to take."""

    def counts(self) -> Mapping[str, int]:
        """Nothing; an onlooker may tell what it took."""
        return {}
