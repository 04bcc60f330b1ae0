"""Scores of predictions as pure functions of logits and labels, in float64; keeps no windows.

Every streaming state is a sum: states add up over time and over workers. A score that is not
defined is an `Undefined` with a reason, never a NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

AUC_BUCKETS = 2_000
AUC_LOGIT_MIN = -12.0
AUC_LOGIT_MAX = 4.0
ECE_REDRAWS = 20


@dataclass(frozen=True, slots=True)
class Undefined:
    """Why a score has no value."""

    reason: str


Score = float | Undefined


def _f64(values: Any) -> F64:
    return np.asarray(values, np.float64)


def log_losses(logits: Any, labels: Any) -> F64:
    """Loss of each row, softplus(s) - y s: exact for any logit, nothing is clipped."""
    s = _f64(logits)
    return np.logaddexp(0.0, s) - _f64(labels) * s


def entropy(p: float) -> float:
    """H(p) in nats; 0 at p = 0 and p = 1."""
    return float(-sum(q * np.log(q) for q in (p, 1.0 - p) if q > 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums behind log loss, normalised entropy and calibration; `a + b` merges two of them.

    `loss` is sum(w ll), `weight` sum(w), `label` sum(w y), `predicted` sum(w p); `n` counts rows.
    """

    n: int = 0
    weight: float = 0.0
    loss: float = 0.0
    label: float = 0.0
    predicted: float = 0.0

    @classmethod
    def of(cls, logits: Any, labels: Any, weights: Any = None) -> Self:
        """Sums of rows; weights are 1 unless given."""
        s, y = _f64(logits), _f64(labels)
        w = np.ones_like(s) if weights is None else _f64(weights)
        return cls(
            n=len(s),
            weight=float(w.sum()),
            loss=float((w * log_losses(s, y)).sum()),
            label=float((w * y).sum()),
            predicted=float((w * expit(s)).sum()),
        )

    def __add__(self, other: LossSums) -> LossSums:
        """Sums of both."""
        return LossSums(
            n=self.n + other.n,
            weight=self.weight + other.weight,
            loss=self.loss + other.loss,
            label=self.label + other.label,
            predicted=self.predicted + other.predicted,
        )

    @property
    def log_loss(self) -> Score:
        """Mean loss in nats."""
        return self.loss / self.weight if self.weight > 0 else Undefined("no rows")

    @property
    def rate(self) -> Score:
        """Weighted share of positives (the click rate)."""
        return self.label / self.weight if self.weight > 0 else Undefined("no rows")

    @property
    def ne(self) -> Score:
        """Log loss over the entropy of the evaluated rate (He et al. 2014): 1 = base rate."""
        if self.weight <= 0:
            return Undefined("no rows")
        if self.label <= 0 or self.label >= self.weight:
            return Undefined("only one class")
        return self.loss / self.weight / entropy(self.label / self.weight)

    @property
    def calibration(self) -> Score:
        """Sum of predictions over sum of labels: 1 = as many clicks as predicted."""
        return self.predicted / self.label if self.label > 0 else Undefined("no positives")


def _pairs_won(scores: F64, labels: F64, weights: F64) -> tuple[float, float, float]:
    """Weighted pairs won (ties count half), weight of positives, weight of negatives."""
    _, run = np.unique(scores, return_inverse=True)
    pos = np.bincount(run, weights * labels)
    neg = np.bincount(run, weights * (1.0 - labels))
    below = np.cumsum(neg) - neg
    return float((pos * (below + 0.5 * neg)).sum()), float(pos.sum()), float(neg.sum())


def auc_exact(scores: Any, labels: Any, weights: Any = None) -> Score:
    """P(s+ > s-) + P(s+ = s-) / 2; weights act through pair weights w_i w_j."""
    s, y = _f64(scores), _f64(labels)
    w = np.ones_like(s) if weights is None else _f64(weights)
    won, positives, negatives = _pairs_won(s, y, w)
    if positives <= 0 or negatives <= 0:
        return Undefined("only one class")
    return won / (positives * negatives)


@dataclass(frozen=True, slots=True, kw_only=True)
class AucHistogram:
    """Counts of positives and negatives over 2,000 equal steps of the logit on [-12, 4].

    Mergeable and bounded; its AUC is within 5e-4 of the exact one for 100,000 rows. Logits beyond
    the ends count in the outermost buckets.
    """

    positives: I64
    negatives: I64

    @classmethod
    def empty(cls) -> Self:
        """No rows."""
        return cls(
            positives=np.zeros(AUC_BUCKETS, np.int64), negatives=np.zeros(AUC_BUCKETS, np.int64)
        )

    @classmethod
    def of(cls, logits: Any, labels: Any) -> Self:
        """Counts of rows; a logit that is not finite is our own mistake."""
        s, positive = _f64(logits), _f64(labels) > 0.5
        assert np.isfinite(s).all(), "a logit is not finite"
        width = (AUC_LOGIT_MAX - AUC_LOGIT_MIN) / AUC_BUCKETS
        bucket = np.clip((s - AUC_LOGIT_MIN) / width, 0, AUC_BUCKETS - 1).astype(np.int64)
        return cls(
            positives=np.bincount(bucket[positive], minlength=AUC_BUCKETS).astype(np.int64),
            negatives=np.bincount(bucket[~positive], minlength=AUC_BUCKETS).astype(np.int64),
        )

    def __add__(self, other: AucHistogram) -> AucHistogram:
        """Counts of both."""
        return AucHistogram(
            positives=self.positives + other.positives, negatives=self.negatives + other.negatives
        )

    @property
    def auc(self) -> Score:
        """Sum over buckets of pos (neg below + neg / 2), over all pairs."""
        pos, neg = _f64(self.positives), _f64(self.negatives)
        if pos.sum() == 0 or neg.sum() == 0:
            return Undefined("only one class")
        below = np.cumsum(neg) - neg
        return float((pos * (below + 0.5 * neg)).sum() / (pos.sum() * neg.sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauc:
    """AUC within groups, averaged with the groups' numbers of impressions (DIN, 1706.06978)."""

    score: Score
    groups_used: int
    groups_skipped: int
    """Groups with one class only, which have no AUC."""
    impressions_used: int
    impressions: int


def gauc(scores: Any, labels: Any, groups: Any) -> Gauc:
    """Impression-weighted mean of the AUC of each group that has both classes; ties count half."""
    s, y, g = _f64(scores), _f64(labels), np.asarray(groups)
    n = len(s)
    if n == 0:
        return Gauc(
            score=Undefined("no rows"),
            groups_used=0,
            groups_skipped=0,
            impressions_used=0,
            impressions=0,
        )
    order = np.lexsort((s, g))
    s, y, g = s[order], y[order], g[order]
    new_group = np.concatenate(([True], g[1:] != g[:-1]))
    new_run = new_group | np.concatenate(([True], s[1:] != s[:-1]))
    group = np.cumsum(new_group) - 1
    group_start = np.flatnonzero(new_group)
    run = np.cumsum(new_run) - 1
    run_start = np.flatnonzero(new_run)
    run_last = np.append(run_start[1:], n) - 1
    # Midrank of a tied run within its group, counted from 1.
    midrank = ((run_start + run_last) / 2 + 1)[run] - group_start[group]
    size = np.bincount(group).astype(np.float64)
    pos = np.bincount(group, y)
    neg = size - pos
    used = (pos > 0) & (neg > 0)
    counts = {
        "groups_used": int(used.sum()),
        "groups_skipped": int((~used).sum()),
        "impressions_used": int(size[used].sum()),
        "impressions": n,
    }
    if not used.any():
        return Gauc(score=Undefined("no group has both classes"), **counts)
    won = np.bincount(group, midrank * y)[used] - pos[used] * (pos[used] + 1) / 2
    auc = won / (pos[used] * neg[used])
    return Gauc(score=float((size[used] * auc).sum() / size[used].sum()), **counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ece:
    """Expected calibration error with the error that a perfect model would show by chance.

    `table` has a row per bin: n, mean prediction, mean label. `floor` is the mean error of redraws
    y' ~ Bernoulli(p), `excess` = score - floor, `z` = excess over the redraws' spread; z below 3 is
    no evidence of miscalibration.
    """

    score: Score
    floor: float
    excess: float
    z: float
    table: tuple[tuple[int, float, float], ...]


def _binned_error(p: F64, y: F64, starts: I64) -> float:
    return float(np.abs(np.add.reduceat(p - y, starts)).sum() / len(p))


def ece(probabilities: Any, labels: Any, *, bins: int = 20, seed: int = 0) -> Ece:
    """Error over `bins` bins of equal mass, with its noise floor."""
    p, y = _f64(probabilities), _f64(labels)
    if len(p) == 0:
        return Ece(score=Undefined("no rows"), floor=0.0, excess=0.0, z=0.0, table=())
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    starts = np.unique(np.linspace(0, len(p), bins, endpoint=False).astype(np.int64))
    ends = np.append(starts[1:], len(p))
    score = _binned_error(p, y, starts)
    rng = np.random.default_rng(seed)
    redraws = [_binned_error(p, _f64(rng.random(len(p)) < p), starts) for _ in range(ECE_REDRAWS)]
    floor, spread = float(np.mean(redraws)), float(np.std(redraws, ddof=1))
    table = tuple(
        (int(b - a), float(p[a:b].mean()), float(y[a:b].mean()))
        for a, b in zip(starts, ends, strict=True)
    )
    return Ece(
        score=score,
        floor=floor,
        excess=score - floor,
        z=(score - floor) / spread if spread > 0 else 0.0,
        table=table,
    )
