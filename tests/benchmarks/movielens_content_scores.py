"""AUC and GAUC of arms, and their differences with intervals by a paired bootstrap of users.

Of logits alone; runs nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners import metrics as m
from learners.metrics import LossSums
from learners.score_runs import aucs, score_runs
from stream.evaluation.paired import paired_bootstrap

RESAMPLES = 1_000
DAY_MS = 86_400_000
_ROWS_AT_ONCE = 4_096
F64 = NDArray[np.float64]
Logits = Mapping[str, Sequence[NDArray[np.float32]]]
"""Logits of all rows by arm, one array a seed."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What rows are, whatever is predicted of them; codes of users, and of users' days."""

    label_n: NDArray[np.int8]
    user_n: NDArray[np.int64]
    day_n: NDArray[np.int64]

    @classmethod
    def of(cls, label_n: NDArray[Any], user_n: NDArray[Any], ts_ms_n: NDArray[Any]) -> Rows:
        """Rows of labels, user keys and times in milliseconds."""
        user = np.unique(user_n, return_inverse=True)[1]
        day = ts_ms_n // DAY_MS
        day = user * (day.max() - day.min() + 1) + day - day.min()
        return cls(label_n=label_n, user_n=user, day_n=np.unique(day, return_inverse=True)[1])


def figures(rows: Rows, own: NDArray[np.bool_], logits: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Means over the seeds, in points but for log loss and calibration; and AUC of each seed."""
    y, day = rows.label_n[own], rows.day_n[own]
    found = []
    for logit_n in logits:
        z = logit_n[own]
        assert np.isfinite(z).all()
        sums = LossSums.of(z, y)
        scores = (m.auc_exact(z, y), m.gauc(z, y, day).score, sums.log_loss, sums.calibration)
        auc, gauc, loss, calibration = map(_number, scores)
        found.append([100 * auc, 100 * gauc, loss, calibration])
    auc, gauc, loss, calibration = np.mean(found, 0).tolist()
    return {
        "rows": int(own.sum()), "positives": int(y.sum()), "auc": auc, "gauc_user_day": gauc,
        "log_loss": loss, "calibration": calibration, "auc_seeds": [f[0] for f in found],
    }  # fmt: skip


def _number(score: m.Score) -> float:
    assert not isinstance(score, m.Undefined), score
    return float(score)


def differences(
    rows: Rows,
    own: NDArray[np.bool_],
    logits: Logits,
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
) -> list[dict[str, Any]]:
    """For each pair of groups of arms, the first less the second, in points, with 95 % intervals.

    A group's score is the mean over its arms and their seeds. Users are drawn, all rows of one
    together, and the same ones for all arms. GAUC is by user and day, as everywhere here.
    """
    block, day = rows.user_n[own], rows.day_n[own]
    y = rows.label_n[own]
    users = np.unique(block, return_inverse=True)[1]
    times_RU = drawn(int(users.max()) + 1)
    names = sorted({name for pair in pairs for group in pair for name in group})
    resampled = {
        n: np.mean([auc_resampled(z[own], y, users, times_RU) for z in logits[n]], 0) for n in names
    }
    grouped = {n: np.mean([auc_of_groups(z[own], y, day) for z in logits[n]], 0) for n in names}
    out = []
    for first, second in pairs:
        auc_R = _mean(resampled, first) - _mean(resampled, second)
        d_n = _mean(grouped, first) - _mean(grouped, second)
        used = np.isfinite(d_n)
        gauc = paired_bootstrap(d_n[used], users[used], resamples=RESAMPLES)
        low, high = np.quantile(auc_R[1:], (0.025, 0.975))
        out.append({
            "a": list(first), "b": list(second), "rows": len(y), "users": int(times_RU.shape[1]),
            "auc": {"mean": 100 * float(auc_R[0]), "low": 100 * float(low),
                    "high": 100 * float(high)},
            "gauc_user_day": {"mean": 100 * gauc.mean, "low": _points(gauc.low),
                              "high": _points(gauc.high)},
        })  # fmt: skip
    return out


def _mean(of: Mapping[str, F64], names: Sequence[str]) -> F64:
    mean: F64 = np.mean([of[name] for name in names], 0)
    return mean


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def drawn(users: int, seed: int = 0) -> F64:
    """How often each user is drawn [R + 1, U]; the first row is every user once."""
    rng = np.random.default_rng(seed)
    times = rng.multinomial(users, np.full(users, 1 / users), RESAMPLES)
    return np.concatenate([np.ones((1, users)), times]).astype(np.float64)


def auc_resampled(
    z_n: NDArray[Any], y_n: NDArray[Any], users_n: NDArray[Any], times_RU: F64
) -> F64:
    """The AUC of rows that count as often as their user was drawn, ties half, for each draw."""
    users = times_RU.shape[1]
    # Sorting ties with the negatives first wins all of them, with the positives first none.
    won_UU = (
        _won(np.lexsort((y_n, z_n)), y_n, users_n, users)
        + _won(np.lexsort((-y_n.astype(np.int8), z_n)), y_n, users_n, users)
    ) / 2
    up_U = np.bincount(users_n, y_n, minlength=users)
    down_U = np.bincount(users_n, minlength=users) - up_U
    won_R = ((times_RU @ won_UU) * times_RU).sum(1)
    auc_R: F64 = won_R / ((times_RU @ up_U) * (times_RU @ down_U))
    return auc_R


def _won(order_n: NDArray[Any], y_n: NDArray[Any], users_n: NDArray[Any], users: int) -> F64:
    """For each two users, how often a positive of the first stands above a negative of the other.

    With these counts [U, U] an AUC of drawn users is a quadratic form of how often they were drawn.
    """
    won_UU, below_U = np.zeros((users, users)), np.zeros(users)
    for first in range(0, len(order_n), _ROWS_AT_ONCE):
        rows = order_n[first : first + _ROWS_AT_ONCE]
        user, down = users_n[rows], y_n[rows] == 0
        counts = np.zeros((len(rows), users))
        counts[np.flatnonzero(down), user[down]] = 1.0
        np.cumsum(counts, axis=0, out=counts)
        counts += below_U
        below_U = counts[-1].copy()
        ups = np.flatnonzero(~down)
        ups = ups[np.argsort(user[ups], kind="stable")]
        if len(ups):
            own, starts = np.unique(user[ups], return_index=True)
            won_UU[own] += np.add.reduceat(counts[ups], starts, axis=0)
    return won_UU


def auc_of_groups(z_n: NDArray[Any], y_n: NDArray[Any], group_n: NDArray[Any]) -> F64:
    """For each row the AUC of its group, NaN where the group has one class.

    The mean of the finite ones is the GAUC by impressions, so that a mean difference of rows is
    the difference of two arms' GAUCs.
    """
    codes = np.unique(group_n, return_inverse=True)[1]
    size, ups = np.bincount(codes), np.bincount(codes, y_n)
    used = (ups > 0) & (ups < size)
    rows = used[codes]
    of = aucs(score_runs(z_n[rows], y_n[rows], np.cumsum(used)[codes[rows]] - 1))
    out = np.full(len(z_n), np.nan)
    out[rows] = of.auc_G[np.cumsum(used)[codes[rows]] - 1]
    return out
