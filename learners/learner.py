"""The learner contract: River's verbs on MiniBatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from infra.state import Part
from learners.batch import MiniBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one `learn_many` gives; tensors stay on the learner's device until they are read.

    `logits_B` are those from before the update (test-then-train in one forward pass).
    `loss` is the weighted mean over the rows that have the trained label.
    `skipped` counts rows whose step was masked because a loss or gradient was not finite.
    """

    logits_B: Tensor
    loss: Tensor
    skipped: Tensor


class Learner(Protocol):
    """Learns from every batch once; a `StateContainer` besides.

    Unseen ids and missing vectors are legal. A non-finite loss or gradient never reaches the
    weights. Predictions depend on a row alone, not on its neighbours in the batch.
    """

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Logits from before the update, then one update by the trained label."""
        ...

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]; changes nothing."""
        ...

    def export_full(self) -> Sequence[Part]:
        """Weights, optimizer state, id tables, moments, counts, as parts."""
        ...

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same, only what was touched since learn step `mark`."""
        ...

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the state of parts; continues bit for bit after a full export."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Steps, rows learned, rows skipped as non-finite, table rows used, and the like."""
        ...
