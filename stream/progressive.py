"""Progressive metrics of a running pipeline: sums since the start and over the last steps. Pure.

For people who watch a run; reports use the exact prediction log instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.metrics import AucHistogram, LossSums, Score, Undefined

WINDOW_STEPS = 32


class ProgressiveMetrics:
    """Log loss, NE, AUC and calibration of predictions, each made before its sample was learned."""

    def __init__(self) -> None:
        """Nothing predicted yet."""
        self.sums = LossSums()
        self.histogram = AucHistogram.empty()
        self._window: deque[tuple[LossSums, AucHistogram]] = deque(maxlen=WINDOW_STEPS)

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """Enter the predictions of one step; rows without a finite prediction are left out."""
        usable = np.isfinite(logits)
        sums = LossSums.of(logits[usable], labels[usable])
        histogram = AucHistogram.of(logits[usable], labels[usable])
        self.sums += sums
        self.histogram += histogram
        self._window.append((sums, histogram))

    def scores(self, *, recent: bool = False) -> dict[str, float | None]:
        """The metrics, since the start or over the last 32 steps; None where undefined."""
        sums, histogram = self.sums, self.histogram
        if recent:
            sums, histogram = LossSums(), AucHistogram.empty()
            for s, h in self._window:
                sums, histogram = sums + s, histogram + h
        scores: dict[str, Score] = {
            "log_loss": sums.log_loss, "ne": sums.ne, "auc": histogram.auc,
            "calibration": sums.calibration, "ctr": sums.rate,
        }  # fmt: skip
        return {name: None if isinstance(s, Undefined) else float(s) for name, s in scores.items()}

    def export_full(self) -> list[Part]:
        """Sums and histograms of the whole run and of each step in the window."""
        pairs = [(self.sums, self.histogram), *self._window]
        return [
            Part(
                name="metrics",
                part_class="train",
                arrays={
                    "positives": np.stack([h.positives for _, h in pairs]),
                    "negatives": np.stack([h.negatives for _, h in pairs]),
                },
                meta={"sums": [asdict(s) for s, _ in pairs]},
            )
        ]

    def export_since(self, mark: int) -> list[Part]:
        """The same as `export_full`: it is small."""
        del mark
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the state of the part `metrics`."""
        part = parts["metrics"]
        histograms = [
            AucHistogram(positives=p, negatives=n)
            for p, n in zip(
                part.array("positives", np.int64), part.array("negatives", np.int64), strict=True
            )
        ]
        sums: list[Any] = [LossSums(**s) for s in part.meta["sums"]]
        self.sums, self.histogram = sums[0], histograms[0]
        self._window.clear()
        self._window.extend(zip(sums[1:], histograms[1:], strict=True))
