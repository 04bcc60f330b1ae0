"""Scores of ranked slates, NDCG, MRR and hit@1, over requests that show several items.

Ties count by their expectation over all orders of the tied items, so that a constant score earns
what chance does, whatever the order of the log. Scores favour what the shown order favoured
(position bias): compare models on the same log only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.metrics import Score, Undefined
from learners.score_runs import ScoreRuns, group_numbers, score_runs

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlateScores:
    """Means over the requests used; those with one item or one class only are skipped."""

    ndcg: Score
    mrr: Score
    hit1: Score
    used: int
    skipped: int
    impressions_used: int
    impressions: int


def slate_scores(scores: Any, labels: Any, requests: Any, *, k: int = 10) -> SlateScores:
    """NDCG@k with gain = label, reciprocal rank of the first positive, share with it on top."""
    s, y, g = np.asarray(scores), np.asarray(labels), group_numbers(requests)
    size = np.bincount(g) if len(g) else np.zeros(0, np.int64)
    positives = np.bincount(g, y)[: len(size)] if len(g) else size
    both = (positives > 0) & (positives < size)
    counts = {
        "used": int(both.sum()),
        "skipped": int((size > 0).sum() - both.sum()),
        "impressions_used": int(size[both].sum()),
        "impressions": len(s),
    }
    if not both.any():
        none = Undefined("no request has several items and both classes")
        return SlateScores(ndcg=none, mrr=none, hit1=none, **counts)
    rows = both[g]
    runs = score_runs(s[rows], y[rows], g[rows])
    last_R = np.cumsum(runs.size_R)
    ends_G = np.cumsum(runs.by_group(runs.size_R))
    above_R = runs.spread(ends_G) - last_R
    return SlateScores(
        ndcg=float(_ndcg(runs, above_R, k).mean()),
        mrr=float(_reciprocal_rank(runs, above_R).mean()),
        hit1=float(
            runs.by_group(np.where(above_R == 0, runs.positive_R / runs.size_R, 0.0)).mean()
        ),
        **counts,
    )


def _ndcg(runs: ScoreRuns, above_R: NDArray[np.int64], k: int) -> F64:
    discount = np.concatenate(([0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2))))
    reach = discount[np.minimum(above_R + runs.size_R, k)] - discount[np.minimum(above_R, k)]
    gained = runs.by_group(runs.positive_R / runs.size_R * reach)
    ideal: F64 = discount[np.minimum(runs.by_group(runs.positive_R), k)]
    return np.asarray(gained / ideal)


def _reciprocal_rank(runs: ScoreRuns, above_R: NDArray[np.int64]) -> F64:
    """Expected 1 / rank of the first positive, which lies in the best run that has any."""
    place_R = np.where(runs.positive_R > 0, np.arange(len(above_R)), -1)
    best_G = np.maximum.reduceat(place_R, runs.start_G)
    above, size, positives = above_R[best_G], runs.size_R[best_G], runs.positive_R[best_G]
    total = np.zeros(len(best_G))
    none_yet = np.ones(len(best_G))
    # P(first positive of a run at place j) when all orders of the run are equally likely.
    for j in range(int((size - positives).max()) + 1):
        left = np.maximum(size - j, 1)
        here = np.where(size > j, np.minimum(positives / left, 1.0), 0.0)
        total += none_yet * here / (above + j + 1)
        none_yet *= 1.0 - here
    return total
