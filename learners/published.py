"""`published`: any learner, scored by a copy of its weights that is published every so often.

What an online ranker is worth over one that is refreshed once a day, or never again, is the
difference between the learner and its published copy on the same stream. Trains the wrapped
learner on everything; publishes by event time alone; writes no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.learner import Learner, StepReport
from learners.step_inputs import trained_rows

DAY_MS = 86_400_000
BEFORE = -1
"""Period of what was shown before `start_ms`; later periods count from 0."""


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Which learner, and when its copy is published; times are event time, UTC milliseconds.

    Publications fall on `offset_ms + k * every_ms` from `start_ms` on; `every_ms = 0` publishes
    once, at `start_ms`, and never again. What is shown before `start_ms` is scored live.
    """

    learner: str = "id_content"
    options: dict[str, Any] = field(default_factory=dict)
    every_ms: int = DAY_MS
    offset_ms: int = 0
    start_ms: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.every_ms < 0 or self.start_ms < 0:
            raise ValueError(
                f"published: every_ms and start_ms >= 0, got {self.every_ms}, {self.start_ms}"
            )
        if self.every_ms == 0 and self.start_ms == 0:
            raise ValueError(
                "published: every_ms = 0 publishes once, at start_ms: give a start_ms > 0"
            )


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(PublishedConfig):
    """A copy from `start_ms` that never changes."""

    every_ms: int = 0


class Published:
    """A live learner, and a copy of it that scores what was shown since the last publication.

    The copy of a multiple T holds what was learned before the first batch with a label of an
    impression shown at T or later. Impressions of a period whose copy is not yet made are scored
    by the live learner: until that batch comes, the two are the same. So predicting changes
    nothing, and no score knows a label of its own period. The first period of a stream has no
    copy to be scored by, and is scored live.
    """

    def __init__(
        self, spec: FeatureSpec, config: PublishedConfig, make: Callable[[], Learner]
    ) -> None:
        self.spec, self.config = spec, config
        self.live, self.copy = make(), make()
        self.device: torch.device = getattr(self.live, "device", torch.device("cpu"))
        self.period = BEFORE
        self.publications = 0
        self.started = False

    def _periods(self, batch: MiniBatch) -> Tensor:
        """Number of the publication period that each row was shown in, int64 [B]."""
        c, ts_ms_B = self.config, batch.ts_ms_B
        if c.every_ms == 0:
            return torch.where(ts_ms_B >= c.start_ms, 0, BEFORE)
        first = (c.start_ms - c.offset_ms) // c.every_ms
        period_B = (ts_ms_B - c.offset_ms).div(c.every_ms, rounding_mode="floor") - first
        return torch.where(ts_ms_B >= c.start_ms, period_B, BEFORE)

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]: the copy's where the row's period has one, else the live ones."""
        copied_B = self._periods(batch) <= self.period
        if not self.publications or not bool(copied_B.any()):
            return self.live.predict_many(batch)
        logits_B = self.copy.predict_many(batch)
        if bool(copied_B.all()):
            return logits_B
        live_B = self.live.predict_many(batch)
        return torch.where(copied_B.to(live_B.device), logits_B, live_B)

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """What `predict_many` gives; then publish if it is time, then teach the live learner."""
        logits_B = self.predict_many(batch).clone()
        labelled_B, finite_B = trained_rows(batch, self.spec)
        used_B = labelled_B & finite_B
        if bool(used_B.any()):
            self._publish(int(self._periods(batch)[used_B].max()))
        report = self.live.learn_many(batch)
        weight_B = batch.weight_B[used_B]
        losses_B = functional.binary_cross_entropy_with_logits(
            logits_B.cpu()[used_B],
            batch.labels_BK[used_B, self.spec.trained_column],
            reduction="none",
        )
        loss = (weight_B * losses_B).sum() / weight_B.sum().clamp(min=1e-12)
        return StepReport(logits_B=logits_B, loss=loss, skipped=report.skipped)

    def _publish(self, period: int) -> None:
        first, self.started = not self.started, True
        if period <= self.period:
            return
        self.period = period
        if first and self.config.every_ms:
            return  # nothing was learned in an earlier period
        self.copy.apply(_serving(self.live.export_full()))
        self.publications += 1

    def export_full(self) -> Sequence[Part]:
        """Parts of the live learner and of the copy, and what was published last."""
        return self._parts(self.live.export_full())

    def export_since(self, mark: int) -> Sequence[Part]:
        """What the live learner touched since the learn step `mark`; the copy whole."""
        return self._parts(self.live.export_since(mark))

    def _parts(self, live: Sequence[Part]) -> list[Part]:
        meta = {
            "period": self.period, "publications": self.publications, "started": self.started,
        }  # fmt: skip
        copied = _serving(self.copy.export_full()).values() if self.publications else ()
        return [
            Part(name="published", part_class="serve", meta=meta),
            *(replace(part, name=f"live.{part.name}") for part in live),
            *(replace(part, name=f"copy.{part.name}") for part in copied),
        ]

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take both learners' parts; raises KeyError where one is missing."""
        meta = parts["published"].meta
        self.live.apply(_under("live.", parts))
        if meta["publications"]:
            self.copy.apply(_under("copy.", parts))
        self.period, self.started = int(meta["period"]), bool(meta["started"])
        self.publications = int(meta["publications"])

    def counts(self) -> Mapping[str, int]:
        """Those of the live learner, and how often it was published."""
        return {**self.live.counts(), "publications": self.publications}


def _serving(parts: Sequence[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts if part.part_class == "serve"}


def _under(prefix: str, parts: Mapping[str, Part]) -> dict[str, Part]:
    return {
        name.removeprefix(prefix): replace(part, name=name.removeprefix(prefix))
        for name, part in parts.items()
        if name.startswith(prefix)
    }
