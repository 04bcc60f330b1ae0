"""What linear baselines share: hashed rows, scores of a batch, then its samples one by one.

A baseline gives `score_rows` and `learn_rows`; labels, masks, moments and counts are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.baselines.hashed_rows import F32, I32, HashedRows, HashedRowsConfig
from learners.batch import MiniBatch, RowKind
from learners.feature_spec import FeatureSpec
from learners.learner import StepReport
from learners.moments import Moments
from learners.step_inputs import checked_keys, trained_rows

F64 = NDArray[np.float64]
CPU = torch.device("cpu")


class RowLearner(ABC):
    """A `Learner` that sees a row as a sparse vector; dense inputs are standardised and clipped.

    A batch is scored whole before its first row is learned, as its labels come together.
    """

    def __init__(self, spec: FeatureSpec, rows: HashedRowsConfig) -> None:
        self.spec = spec
        self.rows = HashedRows(spec, rows)
        self.moments = Moments(len(spec.dense), CPU)
        self.step = self.rows_learned = self.skipped = 0

    @abstractmethod
    def score_rows(self, index_BN: I32, value_BN: F32) -> F64:
        """Logits, float64 [B], of rows where value 0 means "no feature"; changes nothing."""

    @abstractmethod
    def learn_rows(self, index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64) -> int:
        """Learn the rows in order; the number of those left out for a number that is not finite."""

    @abstractmethod
    def weight_parts(self, mark: int | None) -> list[Part]:
        """The state of the model, or what was touched since the learn step `mark`."""

    @abstractmethod
    def apply_weights(self, parts: Mapping[str, Part]) -> None:
        """Take the state of the model; parts of class `train` may be missing."""

    def _features(self, batch: MiniBatch) -> tuple[I32, F32]:
        dense_BD = torch.where(torch.isfinite(batch.dense_BD), batch.dense_BD, 0.0)
        return self.rows(batch, self.moments.standardise(dense_BD).numpy())

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]; changes nothing."""
        checked_keys(batch, self.spec)
        return torch.from_numpy(self.score_rows(*self._features(batch)).astype(np.float32))

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Logits from before the batch; then each labelled row is learned, in order."""
        checked_keys(batch, self.spec)
        index_BN, value_BN = self._features(batch)
        logits_B = torch.from_numpy(self.score_rows(index_BN, value_BN).astype(np.float32))
        labelled_B, finite_B = trained_rows(batch, self.spec)
        used_B = labelled_B & finite_B
        skipped = int(labelled_B.sum() - used_B.sum())
        label_B = batch.labels_BK[used_B, self.spec.trained_column]
        weight_B = batch.weight_B[used_B]
        if len(label_B):
            self.step += 1
            use = used_B.numpy()
            left_out = self.learn_rows(
                index_BN[use], value_BN[use], label_B.double().numpy(), weight_B.double().numpy()
            )
            skipped += left_out
            self.rows_learned += len(label_B) - left_out
            sample_B = used_B & (batch.row_kind_B == int(RowKind.SAMPLE))
            seen_BD = batch.dense_BD[sample_B]
            self.moments.update(seen_BD, torch.ones(len(seen_BD)), torch.tensor(1.0))
        self.skipped += skipped
        losses_B = functional.binary_cross_entropy_with_logits(
            logits_B[used_B], label_B, reduction="none"
        )
        loss = (weight_B * losses_B).sum() / weight_B.sum().clamp(min=1e-12)
        return StepReport(logits_B=logits_B, loss=loss, skipped=torch.tensor(skipped))

    def export_full(self) -> Sequence[Part]:
        """The model, moments and counts."""
        return [self._counts_part(), *self.weight_parts(None)]

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same, of the model only what was touched after the learn step `mark`."""
        return [self._counts_part(), *self.weight_parts(mark)]

    def _counts_part(self) -> Part:
        m = self.moments
        arrays: dict[str, NDArray[Any]] = {
            "mean": m.mean_D.numpy().copy(),
            "squares": m.squares_D.numpy().copy(),
            "rows": m.n.numpy().copy(),
        }
        meta = {
            "step": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped,
            "dense": [d.name for d in self.spec.dense], "size": self.rows.size,
        }  # fmt: skip
        return Part(name="rows", part_class="serve", arrays=arrays, meta=meta)

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take all parts; raises ValueError where features or buckets differ."""
        part = parts["rows"]
        dense = [d.name for d in self.spec.dense]
        if (list(part.meta["dense"]), int(part.meta["size"])) != (dense, self.rows.size):
            raise ValueError(
                f"part 'rows': {part.meta['size']} indices and dense inputs {part.meta['dense']}, "
                f"but the configuration has {self.rows.size} and {dense}; use the configuration of "
                "the snapshot"
            )
        m = self.moments
        for tensor, name in ((m.mean_D, "mean"), (m.squares_D, "squares"), (m.n, "rows")):
            tensor.copy_(torch.from_numpy(part.array(name, np.float64).copy()))
        m.refresh()
        self.step = int(part.meta["step"])
        self.rows_learned = int(part.meta["rows_learned"])
        self.skipped = int(part.meta["skipped"])
        self.apply_weights(parts)

    def counts(self) -> Mapping[str, int]:
        """Steps, rows learned and rows left out for a number that is not finite."""
        return {"steps": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped}
