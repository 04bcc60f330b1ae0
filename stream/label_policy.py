"""Label policies: facts of the join to rows that a learner trains on (rule 9). Pure.

The join emits, by impression, when it was shown, when each kind of click came, and that its
longest window is over. A policy decides from these facts alone which rows there are, with which
labels. `window` is the default: one row a sample, when every window has closed. Policies that
emit earlier need corrections; their rows are marked as such.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learners.batch import RowKind
from stream.samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """A kind of click that is a label. `window_ms`: clicks later than this are not counted."""

    window_ms: int

    def __post_init__(self) -> None:
        """Check what types cannot."""
        if self.window_ms <= 0:
            raise ValueError(f"label: window_ms must be positive, got {self.window_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRows:
    """Rows for a learner: `row_n` points into the samples."""

    row_n: NDArray[np.int64]
    labels_nK: NDArray[np.float32]
    label_mask_nK: NDArray[np.float32]
    row_kind_n: NDArray[np.uint8]
    age_ms_n: NDArray[np.int64]


class LabelPolicy(Protocol):
    """Facts to rows."""

    def rows(self, samples: Samples) -> LabelRows:
        """Rows of settled samples, in their order."""
        ...


class WindowPolicy:
    """One row a sample with all labels known: the windows of all kinds are over (rule 3)."""

    def rows(self, samples: Samples) -> LabelRows:
        """Rows of settled samples, in their order."""
        labels = (samples.click_ts_nK > 0).astype(np.float32)
        return LabelRows(
            row_n=np.arange(len(samples)),
            labels_nK=labels,
            label_mask_nK=np.ones_like(labels),
            row_kind_n=np.full(len(samples), RowKind.SAMPLE, np.uint8),
            age_ms_n=samples.settle_ms - samples.ts_ms_n,
        )
