"""Exact answers where the click probabilities are known: floors, regret, calibration. Pure numpy.

p is the true probability of a label, s a model's logit, y a drawn label. Everything that has an
expectation over y is given as that expectation, which has no sampling noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, xlog1py, xlogy

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthScore:
    """Scores of a model against the truth; in nats and in expectation over labels but for `z`.

    `floor`: expected log loss of the truth itself; `floor_ne`: the same over the entropy of the
    mean probability. `log_loss`: the model's; `regret`: their difference, mean KL(p || model).
    `calibration`: sum of predictions over sum of probabilities. `z`: by how many standard errors
    the drawn positives differ from those expected of the truth (not of the model).
    """

    rows: int
    floor: float
    floor_ne: float
    log_loss: float
    regret: float
    calibration: float
    z: float


def entropies(p: ArrayLike) -> F64:
    """H(p) of each row: the least expected log loss that anything can have there."""
    p_n = np.asarray(p, np.float64)
    h_n: F64 = -(xlogy(p_n, p_n) + xlog1py(1 - p_n, -p_n))
    return h_n


def expected_losses(p: ArrayLike, logits: ArrayLike) -> F64:
    """Expected log loss of each row, softplus(s) - p s."""
    s_n = np.asarray(logits, np.float64)
    loss_n: F64 = np.logaddexp(0.0, s_n) - np.asarray(p, np.float64) * s_n
    return loss_n


def regrets(p: ArrayLike, logits: ArrayLike) -> F64:
    """KL(p || sigmoid(s)) of each row: expected loss above the floor, never below 0."""
    return np.maximum(expected_losses(p, logits) - entropies(p), 0.0)


def floor_ne(p: ArrayLike) -> float:
    """Normalised entropy of the truth, in expectation."""
    p_n = np.asarray(p, np.float64)
    return float(entropies(p_n).mean() / entropies(p_n.mean()))


def true_calibration(p: ArrayLike, logits: ArrayLike) -> float:
    """Sum of predictions over the expected number of positives."""
    return float(expit(np.asarray(logits, np.float64)).sum() / np.sum(p))


def calibration_z(p: ArrayLike, labels: ArrayLike) -> float:
    """Standard score of the number of positives if p is true: about N(0, 1) then."""
    p_n = np.asarray(p, np.float64)
    return float((np.sum(labels) - p_n.sum()) / np.sqrt((p_n * (1 - p_n)).sum()))


def rows_of(
    truth: Mapping[str, NDArray[Any]], request_id: NDArray[Any], item_id: NDArray[Any]
) -> I64:
    """Row of the truth for each (request, item).

    Raises ValueError where one is not in it.
    """
    # Requests count from 1 and items are far below 2^24: one number names both.
    keys = truth["request_id"] << 24 | truth["item_id"]
    order = np.argsort(keys, kind="stable")
    wanted = np.asarray(request_id, np.int64) << 24 | np.asarray(item_id, np.int64)
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    rows: I64 = order[place]
    missing = int((keys[rows] != wanted).sum())
    if missing:
        raise ValueError(
            f"{missing:,} of {len(wanted):,} predictions are not in the truth: is it another log's?"
        )
    return rows


def score(p: ArrayLike, logits: ArrayLike, labels: ArrayLike) -> TruthScore:
    """All scores of rows; at least one row, p strictly between 0 and 1."""
    p_n = np.asarray(p, np.float64)
    floor, log_loss = float(entropies(p_n).mean()), float(expected_losses(p_n, logits).mean())
    return TruthScore(
        rows=len(p_n),
        floor=floor,
        floor_ne=floor_ne(p_n),
        log_loss=log_loss,
        regret=float(regrets(p_n, logits).mean()),
        calibration=true_calibration(p_n, logits),
        z=calibration_z(p_n, labels),
    )
