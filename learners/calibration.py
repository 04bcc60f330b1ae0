"""Calibration over bins of equal mass, with the error that chance alone would show; no plots.

Rows of equal prediction stay in one bin, so that a constant prediction is one bin, whatever the
order of its labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learners.metrics import Score, Undefined
from learners.score_runs import ScoreRuns, scores_of_codes

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

REDRAWS = 20
EXACT_ROWS_MAX = 200_000
VARIANCE_MIN = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Rows of one bin: mean prediction, mean label.

    A calibrated model's `observed` lies between `low` and `high` in 95 of 100 bins.
    """

    n: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ece:
    """Expected calibration error with the error that a perfect model would show by chance.

    `floor` is the mean error of redraws y' ~ Bernoulli(p), `excess` = score - floor, `z` = excess
    over the redraws' spread; z below 3 is no evidence of miscalibration.
    """

    score: Score
    floor: float
    excess: float
    z: Score
    bins: tuple[CalibrationBin, ...]


def ece(probabilities: Any, labels: Any, *, bins: int = 20, seed: int = 0) -> Ece:
    """Error of rows [n]: sum over bins of their share times |mean p - mean y|."""
    p, run = np.unique(np.asarray(probabilities, np.float64), return_inverse=True)
    size = np.bincount(run, minlength=len(p))
    positives = np.bincount(run, np.asarray(labels, np.float64), minlength=len(p))
    return _ece(p, size, positives.astype(np.int64), bins=bins, seed=seed)


def ece_of_runs(runs: ScoreRuns, *, bins: int = 20, seed: int = 0) -> Ece:
    """The same from the runs of float32 logits without groups."""
    p = expit(scores_of_codes(runs.code_R).astype(np.float64))
    return _ece(p, runs.size_R, runs.positive_R, bins=bins, seed=seed)


def _ece(p_R: F64, size_R: I64, positive_R: I64, *, bins: int, seed: int) -> Ece:
    n = int(size_R.sum())
    if n == 0:
        none = Undefined("no rows")
        return Ece(score=none, floor=0.0, excess=0.0, z=none, bins=())
    before_R = np.cumsum(size_R) - size_R
    first = np.flatnonzero(np.diff(before_R * bins // n, prepend=-1))

    def by_bin(values_R: NDArray[Any]) -> F64:
        return np.add.reduceat(values_R, first).astype(np.float64)

    expected, variance = by_bin(size_R * p_R), by_bin(size_R * p_R * (1 - p_R))
    size, positives = by_bin(size_R), by_bin(positive_R)
    redraw = _redraws(p_R, size_R, first, (size, expected, variance), np.random.default_rng(seed))
    errors = np.abs(redraw - expected).sum(1) / n
    score = float(np.abs(positives - expected).sum() / n)
    floor, spread = float(errors.mean()), float(errors.std(ddof=1))
    half = 1.96 * np.sqrt(variance) / size
    table = tuple(
        CalibrationBin(
            n=int(size[b]),
            predicted=float(expected[b] / size[b]),
            observed=float(positives[b] / size[b]),
            low=float(max(0.0, expected[b] / size[b] - half[b])),
            high=float(min(1.0, expected[b] / size[b] + half[b])),
        )
        for b in range(len(first))
    )
    return Ece(
        score=score,
        floor=floor,
        excess=score - floor,
        z=(score - floor) / spread if spread > 0 else Undefined("predictions of 0 and 1 only"),
        bins=table,
    )


def _redraws(
    p_R: F64, size_R: I64, first: I64, of_bins: tuple[F64, F64, F64], rng: np.random.Generator
) -> F64:
    """Positives of each bin if every label were drawn anew from its prediction, [redraw, bin].

    Row by row for few rows. For many, by what the sum of a bin tends to: normal, or Poisson where
    positives (or negatives) are rare.
    """
    size, expected, variance = of_bins
    if size.sum() <= EXACT_ROWS_MAX:
        draws = [np.add.reduceat(rng.binomial(size_R, p_R), first) for _ in range(REDRAWS)]
        return np.array(draws, np.float64)
    normal = rng.normal(expected, np.sqrt(variance), (REDRAWS, len(size)))
    rare = expected < size / 2
    counts = rng.poisson(
        np.where(rare, expected, np.maximum(size - expected, 0.0)), (REDRAWS, len(size))
    )
    return np.where(variance >= VARIANCE_MIN, normal, np.where(rare, counts, size - counts))
