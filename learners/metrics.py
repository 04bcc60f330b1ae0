"""Scores of predictions as pure functions of logits and labels, in float64; keeps no windows.

Every streaming state is a sum: states add up over time and over workers. A score that is not
defined is an `Undefined` with a reason, never a NaN. Definitions: docs/evaluation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from learners.score_runs import aucs, group_numbers, score_runs

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

AUC_BUCKETS = 2_000
AUC_LOGIT_MIN = -12.0
AUC_LOGIT_MAX = 4.0


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


def undo_down_sampling(logits: Any, keep_rate: float) -> F64:
    """Logits of the whole stream, of a model trained on all positives and a share of negatives.

    s + ln(w) is q = p / (p + (1 - p) / w) of He et al. 2014, section 6.3.
    """
    assert 0 < keep_rate <= 1, "a keep rate lies in (0, 1]"
    return _f64(logits) + float(np.log(keep_rate))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedSums:
    """Sums of rows by group, float64 [G]; `a + b` merges two of the same groups.

    `squared_G` is sum(ll^2), for the standard error of a mean loss.
    """

    n_G: F64
    loss_G: F64
    squared_G: F64
    label_G: F64
    predicted_G: F64

    @classmethod
    def of(cls, losses: F64, labels: Any, probabilities: F64, groups: Any, count: int) -> Self:
        """Sums of rows [n] whose group lies in [0, count)."""
        place = np.asarray(groups, np.intp)  # once, not in each count

        def add(weights: Any = None) -> F64:
            return np.bincount(place, weights, minlength=count).astype(np.float64)

        return cls(
            n_G=add(),
            loss_G=add(losses),
            squared_G=add(losses * losses),
            label_G=add(labels),
            predicted_G=add(probabilities),
        )

    def __add__(self, other: GroupedSums) -> GroupedSums:
        """Sums of both."""
        return GroupedSums(
            n_G=self.n_G + other.n_G,
            loss_G=self.loss_G + other.loss_G,
            squared_G=self.squared_G + other.squared_G,
            label_G=self.label_G + other.label_G,
            predicted_G=self.predicted_G + other.predicted_G,
        )

    def at(self, group: int) -> LossSums:
        """Sums of one group, every row with weight 1."""
        return LossSums(
            n=int(self.n_G[group]),
            weight=float(self.n_G[group]),
            loss=float(self.loss_G[group]),
            label=float(self.label_G[group]),
            predicted=float(self.predicted_G[group]),
        )

    def standard_error(self, group: int) -> Score:
        """Of the group's log loss, rows taken as independent of each other."""
        n = self.n_G[group]
        if n < 2:
            return Undefined("fewer than two rows")
        mean = self.loss_G[group] / n
        return float(np.sqrt(max(self.squared_G[group] / n - mean * mean, 0.0) / (n - 1)))


def auc_exact(scores: Any, labels: Any, weights: Any = None) -> Score:
    """P(s+ > s-) + P(s+ = s-) / 2; weights act through pair weights w_i w_j."""
    if weights is None:
        all_rows = aucs(score_runs(scores, labels))
        return float(all_rows.auc_G[0]) if all_rows.defined_G.any() else Undefined("only one class")
    s, y, w = _f64(scores), _f64(labels), _f64(weights)
    _, run = np.unique(s, return_inverse=True)
    positive = np.bincount(run, w * y)
    negative = np.bincount(run, w * (1.0 - y))
    below = np.cumsum(negative) - negative
    pairs = positive.sum() * negative.sum()
    if pairs <= 0:
        return Undefined("only one class")
    return float((positive * (below + 0.5 * negative)).sum() / pairs)


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
    s, y, g = np.asarray(scores), np.asarray(labels), group_numbers(groups)
    n = len(s)
    size = np.bincount(g) if n else np.zeros(0, np.int64)
    positives = np.bincount(g, y) if n else size
    used = (positives > 0) & (positives < size)
    counts = {
        "groups_used": int(used.sum()),
        "groups_skipped": int((size > 0).sum() - used.sum()),
        "impressions_used": int(size[used].sum()),
        "impressions": n,
    }
    if not used.any():
        return Gauc(score=Undefined("no group has both classes" if n else "no rows"), **counts)
    rows = used[g]
    of = aucs(score_runs(s[rows], y[rows], g[rows]))
    return Gauc(score=float((of.n_G * of.auc_G).sum() / of.n_G.sum()), **counts)
