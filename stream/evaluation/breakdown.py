"""An arm's scores by day, hour, slice and impression index of the item; compares no arms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.metrics import GroupedSums, LossSums, Score, Undefined, entropy
from learners.score_runs import (
    GroupAucs,
    ScoreRuns,
    aucs,
    bucket_aucs,
    bucket_cells,
    score_runs,
    scores_of_codes,
)
from stream.evaluation.span import Reasons, Span

F64 = NDArray[np.float64]

EXACT_ROWS_MAX = 1_000_000
BUCKETS = 8_192
CURVE_EDGES = (0, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 150, 201)
ONE_CLASS = Undefined("only one class")


class ArmTable:
    """Losses, labels and predictions of an arm, ready to be summed or ranked by any grouping.

    Ranking is exact up to a million rows. Beyond, scores are put into 8,192 buckets of equally many
    distinct scores, which costs one count per grouping instead of a sort.
    """

    def __init__(self, span: Span, arm: str, runs: ScoreRuns) -> None:
        """`runs` are those of the arm's logits, without groups."""
        self.losses = span.losses(arm)
        self.labels = span.rows.label_n
        self.predicted = span.probabilities(arm)
        self._logits = span.rows.logits[arm]
        self._cells_n: NDArray[np.int32] | None = None
        if len(self.labels) > EXACT_ROWS_MAX:
            at = np.linspace(0, len(runs.code_R) - 1, BUCKETS + 1).astype(np.int64)[1:-1]
            edges = scores_of_codes(np.unique(runs.code_R[at]))
            bucket_n = np.searchsorted(edges, self._logits, side="right")
            self._cells_n = bucket_cells(bucket_n, self.labels)
        self.total = LossSums(
            n=len(span),
            weight=float(len(span)),
            loss=float(self.losses.sum()),
            label=float(self.labels.sum(dtype=np.int64)),
            predicted=float(self.predicted.sum()),
        )

    def sums(self, groups: NDArray[Any], count: int) -> GroupedSums:
        """Sums of groups 0 to count - 1."""
        return GroupedSums.of(self.losses, self.labels, self.predicted, groups, count)

    def rank(self, groups: NDArray[Any], count: int) -> dict[int, Score]:
        """AUC of each group that has rows."""
        found: GroupAucs = (
            aucs(score_runs(self._logits, self.labels, groups))
            if self._cells_n is None
            else bucket_aucs(self._cells_n, BUCKETS, groups, count)
        )
        scores = zip(found.group_G, found.auc_G, found.defined_G, strict=True)
        return {int(g): float(auc) if defined else ONE_CLASS for g, auc, defined in scores}


def daily(span: Span, table: ArmTable, reasons: Reasons, at: str) -> list[dict[str, Any]]:
    """Scores of each local day."""
    sums = table.sums(span.days.code_n, len(span.days))
    ranked = table.rank(span.days.code_n, len(span.days))
    unsettled = span.unsettled_by(span.days)
    found = []
    for d, date in enumerate(span.dates):
        day = sums.at(d)
        scores = {**_loss_scores(day), "auc": ranked[d], "ctr": day.rate}
        values = {n: reasons.value(s, f"{at}.daily.{date}.{n}") for n, s in scores.items()}
        counts = {"samples": day.n, "positives": int(day.label), "unsettled": unsettled[d]}
        found.append({"date": date, **counts, **values})
    return found


def hourly(span: Span, table: ArmTable, reasons: Reasons, at: str) -> list[dict[str, Any]]:
    """Scores of each hour (of several where the log is long); windows of one class are counted."""
    sums = table.sums(span.hours.code_n, len(span.hours))
    ranked = table.rank(span.hours.code_n, len(span.hours))
    unsettled = span.unsettled_by(span.hours)
    found = []
    for h, start_ms in enumerate(span.hours.start_ms_G):
        hour = sums.at(h)
        scores = {**_loss_scores(hour), "auc": ranked[h]}
        values = {n: None if isinstance(s, Undefined) else s for n, s in scores.items()}
        counts = {"samples": hour.n, "positives": int(hour.label), "unsettled": unsettled[h]}
        found.append({"ts_ms": int(start_ms), **counts, **values})
    _count_nulls(found, f"{at}.hourly", reasons)
    return found


def learning_curve(span: Span, table: ArmTable, reasons: Reasons, at: str) -> list[dict[str, Any]]:
    """Loss and calibration by how often the item had been shown before, bounds inclusive."""
    count = len(CURVE_EDGES)
    code_n = np.searchsorted(np.array(CURVE_EDGES), span.item_index_n, side="right") - 1
    sums = table.sums(code_n, count)
    found = []
    for c in range(count - 1):
        rows = sums.at(c)
        scores = {"log_loss": rows.log_loss, "calibration": rows.calibration}
        values = {n: None if isinstance(s, Undefined) else s for n, s in scores.items()}
        bounds = {"k_from": CURVE_EDGES[c], "k_to": CURVE_EDGES[c + 1] - 1}
        found.append({**bounds, "n": rows.n, **values})
    _count_nulls(found, f"{at}.learning_curve", reasons)
    return found


def slices(span: Span, table: ArmTable, reasons: Reasons, at: str) -> list[dict[str, Any]]:
    """Scores of each slice that has rows. NE is relative to the whole span, and to the slice."""
    found = []
    overall = table.total.rate
    whole = entropy(overall) if not isinstance(overall, Undefined) else 0.0
    for slicing in span.slicings:
        sums = table.sums(slicing.code_n, len(slicing.values))
        ranked = table.rank(slicing.code_n, len(slicing.values))
        for v, value in enumerate(slicing.values):
            rows = sums.at(v)
            if rows.n == 0:
                continue
            loss = rows.log_loss
            scores = {
                "log_loss": loss,
                "ne_global": loss / whole
                if whole and not isinstance(loss, Undefined)
                else ONE_CLASS,
                "ne_slice": rows.ne,
                "calibration": rows.calibration,
                "auc": ranked[v],
                "standard_error": sums.standard_error(v),
            }
            path = f"{at}.slices.{slicing.by}.{value}"
            found.append(
                {
                    "by": slicing.by,
                    "value": value,
                    "n": rows.n,
                    "positives": int(rows.label),
                    "share": rows.n / len(span),
                    **{n: reasons.value(s, f"{path}.{n}") for n, s in scores.items()},
                }
            )
    return found


def _loss_scores(rows: LossSums) -> dict[str, Score]:
    return {"log_loss": rows.log_loss, "ne": rows.ne, "calibration": rows.calibration}


def _count_nulls(entries: list[dict[str, Any]], at: str, reasons: Reasons) -> None:
    for name in entries[0] if entries else ():
        nulls = sum(entry[name] is None for entry in entries)
        if nulls:
            reasons[f"{at}.{name}"] = f"{nulls} of {len(entries)} have no rows or only one class"
