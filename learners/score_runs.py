"""One sort of rows by group and score, which AUC by group and slate scores share; knows no events.

A value sort of packed keys is used instead of an argsort: group, score and label of a row fit into
64 bits, and sorting 10 million such keys takes a tenth of the time and a fifth of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

GROUPS_MAX = 1 << 31
_COUNTED_AT_LEAST = 1 << 16
_SIGN = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRuns:
    """Runs of rows with the same group and score, ascending by group, then by score.

    `code_R` orders the scores (see `scores_of_codes`), `start_G` is the first run of each group
    that has rows, `group_G` that group's number.
    """

    code_R: NDArray[np.uint32]
    size_R: I64
    positive_R: I64
    start_G: I64
    group_G: I64

    def by_group(self, values_R: NDArray[Any]) -> NDArray[Any]:
        """Sum of a value of each run over its group, [G]."""
        return np.add.reduceat(values_R, self.start_G) if len(self.start_G) else values_R[:0]

    def spread(self, values_G: NDArray[Any]) -> NDArray[Any]:
        """A value of each group, repeated for its runs, [R]."""
        return np.repeat(values_G, np.diff(np.append(self.start_G, len(self.size_R))))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAucs:
    """AUC of groups that have rows; `auc_G` counts only where `defined_G` (both classes)."""

    group_G: I64
    n_G: I64
    positive_G: I64
    auc_G: F64
    defined_G: NDArray[np.bool_]


def score_codes(scores: Any) -> NDArray[np.uint32]:
    """Numbers in the order of the scores, equal for equal ones: the bits of float32, else ranks."""
    s = np.asarray(scores)
    if s.dtype != np.float32:
        return np.unique(s, return_inverse=True)[1].astype(np.uint32)
    bits = (s + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def scores_of_codes(code_R: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The float32 scores that `score_codes` gave these numbers."""
    return np.where(code_R & _SIGN, code_R ^ _SIGN, ~code_R).view(np.float32)


def group_numbers(groups: Any) -> NDArray[Any]:
    """Whole numbers in [0, 2**31) that tell groups apart, in their order.

    The groups themselves where they are small whole numbers: sums by group have as many entries as
    the largest number, and ids of a thousand million would take gigabytes.
    """
    g = np.asarray(groups)
    limit = min(max(8 * len(g), _COUNTED_AT_LEAST), GROUPS_MAX)
    if g.dtype.kind in "iu" and (not len(g) or (g.min() >= 0 and g.max() < limit)):
        return g
    return np.unique(g, return_inverse=True)[1]


def score_runs(scores: Any, labels: Any, groups: Any = None) -> ScoreRuns:
    """Runs of rows [n]; labels are 0 or 1, groups as `group_numbers` gives them (none: one)."""
    key: U64 = score_codes(scores).astype(np.uint64)
    key <<= np.uint64(1)
    key |= np.asarray(labels).astype(np.uint64)
    if groups is not None:
        key |= np.asarray(groups).astype(np.uint64) << np.uint64(33)
    key.sort()
    positive = (key & np.uint64(1)).astype(np.uint8)
    key >>= np.uint64(1)
    new = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    start = np.flatnonzero(new)
    size = np.diff(np.append(start, len(key)))
    key_R = key[start]
    del key, new
    positives = (
        positive.astype(np.int64)
        if len(start) == len(positive)
        else np.add.reduceat(positive, start, dtype=np.int64)
    )
    group = (key_R >> np.uint64(32)).astype(np.int64)
    first = np.flatnonzero(
        np.concatenate((np.ones(min(len(group), 1), np.bool_), np.diff(group) > 0))
    )
    return ScoreRuns(
        code_R=(key_R & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        size_R=size,
        positive_R=positives,
        start_G=first,
        group_G=group[first],
    )


def aucs(runs: ScoreRuns) -> GroupAucs:
    """P(s+ > s-) + P(s+ = s-) / 2 within each group."""
    n_G, positive_G = runs.by_group(runs.size_R), runs.by_group(runs.positive_R)
    negative_R = runs.size_R - runs.positive_R
    negative_G = n_G - positive_G
    below_R = np.cumsum(negative_R) - negative_R
    below_R -= runs.spread(np.cumsum(negative_G) - negative_G)
    twice_won_G = runs.by_group(runs.positive_R * (2 * below_R + negative_R))
    pairs_G = positive_G.astype(np.float64) * negative_G
    defined_G = pairs_G > 0
    return GroupAucs(
        group_G=runs.group_G,
        n_G=n_G,
        positive_G=positive_G,
        auc_G=twice_won_G / 2 / np.where(defined_G, pairs_G, 1.0),
        defined_G=defined_G,
    )


def bucket_cells(buckets: Any, labels: Any) -> NDArray[np.int32]:
    """One number for (bucket of the score, label), which `bucket_aucs` counts by group."""
    cells = np.asarray(buckets).astype(np.int32)
    cells *= 2
    cells += np.asarray(labels).astype(np.int8)
    return cells


def bucket_aucs(cells_n: NDArray[np.int32], width: int, groups: Any, group_count: int) -> GroupAucs:
    """AUC within groups from counts of positives and negatives over `width` buckets of the score.

    The counts are the mergeable state; rows of one bucket count as ties. For many rows in few
    groups: the cost is one count, without a sort.
    """
    place = np.asarray(groups).astype(np.int64)
    place *= 2 * width
    place += cells_n
    counts = np.bincount(place, minlength=group_count * width * 2)
    counts = counts.reshape(group_count, width, 2)
    negative, positive = counts[:, :, 0], counts[:, :, 1]
    below = np.cumsum(negative, 1) - negative
    pairs_G = positive.sum(1).astype(np.float64) * negative.sum(1)
    n_G = counts.sum((1, 2))
    present = np.flatnonzero(n_G)
    defined_G = pairs_G > 0
    won_G = (positive * (2 * below + negative)).sum(1) / 2 / np.where(defined_G, pairs_G, 1.0)
    return GroupAucs(
        group_G=present,
        n_G=n_G[present],
        positive_G=positive.sum(1)[present],
        auc_G=won_G[present],
        defined_G=defined_G[present],
    )
