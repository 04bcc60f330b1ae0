"""A record log to the labelled samples of FLIP's second stage, and its figures (shell).

Trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embeddings.pretrain.flip_clicks import ClickRows
from embeddings.pretrain.flip_tune import Tuned
from infra.errors import InputError
from learners.batch import PADDING_KEY, MiniBatch
from learners.feature_spec import FeatureSpec
from learners.metrics import LossSums, Score, Undefined, auc_exact
from learners.onlooker import Onlooker
from learners.step_inputs import trained_rows
from stream.config import Config
from stream.feature_plan import FeaturePlan, plan
from stream.pretraining_past import Tell, known_before_ms, look_through

I64 = NDArray[np.int64]
BRANCHES: Final = ("FLIP", "FLIP_ID", "FLIP_PLM")
"""The mixture, the ids alone, the language model alone: columns of `Tuned.logits_M3`."""


class ClickKeeper(Onlooker):
    """A learner that keeps the newest `rows_max` samples of known items, and predicts 0.

    A sample's own fields are those of the event and the user; the item's are the items' rows.
    """

    def __init__(
        self, of: FeaturePlan, items_N: I64, *, from_ms: int, before_ms: int, rows_max: int
    ) -> None:
        """`items_N`: sorted keys of the items that have a row, in the order of the rows."""
        self._spec: FeatureSpec = of.spec
        self._items_N, self._from_ms, self._before_ms = items_N, from_ms, before_ms
        self._item = [column.where for column in of.ids].index("item")
        self._own = [i for i, column in enumerate(of.ids) if column.where in ("event", "user")]
        self._histories = [i for i, bag in enumerate(of.spec.bags) if bag.is_history]
        self._rows_max, self._rows = rows_max, 0
        self._parts: list[ClickRows] = []
        self.without_text = 0
        """Samples left out because their item has no row."""
        super().__init__()

    def look(self, batch: MiniBatch) -> None:
        """Keep the rows within the span."""
        labelled_B, finite_B = trained_rows(batch, self._spec)
        span_B = (batch.ts_ms_B >= self._from_ms) & (batch.ts_ms_B < self._before_ms)
        own_B = (labelled_B & finite_B & span_B & (batch.weight_B > 0)).numpy()
        item_B = self._rows_of(batch.ids_BF[:, self._item].numpy())
        self.without_text += int((own_B & (item_B < 0)).sum())
        chosen = np.flatnonzero(own_B & (item_B >= 0))
        if not len(chosen):
            return
        label_BK = batch.labels_BK.numpy()
        self._parts.append(
            ClickRows(
                names=tuple(self._spec.ids[i].name for i in self._own),
                item_N=item_B[chosen],
                fields_NS=batch.ids_BF.numpy()[chosen][:, self._own],
                histories=tuple(
                    self._rows_of(batch.bags_BL[i].numpy()[chosen]) for i in self._histories
                ),
                label_N=label_BK[chosen, self._spec.trained_column].astype(np.float32),
                weight_N=batch.weight_B.numpy()[chosen].astype(np.float32),
                ts_ms_N=batch.ts_ms_B.numpy()[chosen],
            )
        )
        self._rows += len(chosen)
        while self._rows - len(self._parts[0]) >= self._rows_max:
            self._rows -= len(self._parts.pop(0))

    def _rows_of(self, keys: I64) -> I64:
        """Rows of items, -1 where there is none, as for an empty place."""
        at = np.minimum(np.searchsorted(self._items_N, keys), len(self._items_N) - 1)
        return np.where((self._items_N[at] == keys) & (keys != PADDING_KEY), at, -1)

    def rows(self) -> ClickRows | None:
        """All of it in order of time; None where there is nothing."""
        if not self._parts:
            return None
        parts = self._parts
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("item_N", "fields_NS", "label_N", "weight_N", "ts_ms_N")
        }
        histories = tuple(
            np.concatenate(of) for of in zip(*(part.histories for part in parts), strict=True)
        )
        whole = ClickRows(names=parts[0].names, histories=histories, **columns)
        return whole.at(np.argsort(whole.ts_ms_N, kind="stable"))

    def counts(self) -> Mapping[str, int]:
        """Rows kept and left out."""
        return {"rows_kept": self._rows, "rows_without_text": self.without_text}


def click_rows(
    logs: Sequence[Path],
    config: Config,
    items_N: I64,
    *,
    from_ms: int,
    until_ms: int,
    rows_max: int = 1_000_000,
    on_progress: Tell = lambda _done, _total: None,
) -> ClickRows:
    """Samples from `from_ms` on whose labels were known before `until_ms`, of items in `items_N`.

    Raises InputError where there is none or no feature is the item, and as replay does.
    """
    of = plan(config)
    if "item" not in [column.where for column in of.ids]:
        raise InputError("the configuration has no feature with path 'item', so that a sample's "
                         "item is not known; add one, or leave --fine-tune-epochs out")  # fmt: skip
    before_ms = known_before_ms(config, until_ms)
    keeper = ClickKeeper(of, items_N, from_ms=from_ms, before_ms=before_ms, rows_max=rows_max)
    look_through(logs, config, keeper, on_progress)
    found = keeper.rows()
    if found is None:
        raise InputError(
            f"no labelled impression of an item with text from {from_ms} to {before_ms} (UTC "
            f"milliseconds) in {', '.join(map(str, logs))} ({keeper.without_text} of others); set "
            "another --until, or leave --fine-tune-epochs out"
        )
    return found


def tuned_facts(tuned: Tuned) -> dict[str, Any]:
    """Figures of a fine-tuning: alpha, and each branch's scores on the held-out samples."""
    label_M = tuned.label_M
    scores = {
        name: {
            "log_loss": _value(LossSums.of(tuned.logits_M3[:, i], label_M).log_loss),
            "auc": _value(auc_exact(tuned.logits_M3[:, i], label_M)),
        }
        for i, name in enumerate(BRANCHES)
    }
    return {
        "trained_rows": tuned.trained, "judged_rows": len(label_M), "alpha": tuned.alpha,
        "epoch": tuned.epoch, "judged": scores,
        "log loss of FLIP, FLIP_ID, FLIP_PLM by epoch": [list(losses) for losses in tuned.curve],
    }  # fmt: skip


def _value(score: Score) -> float | None:
    return None if isinstance(score, Undefined) else float(score)
