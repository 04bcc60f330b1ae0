"""Assemble: samples to MiniBatches, the only place where events become tensors.

Training, replay, the worker's scoring and the server all come through here, so that what is
trained on is what is served. Reads the item table as of the last learn-step boundary, by
definition of a sample's vectors (rule 18). Changes no state.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from learners.batch import ContentRows, MiniBatch
from learners.served import ServedRows
from stream.feature_plan import Column, FeaturePlan
from stream.items import ItemFeatures, ItemTable
from stream.keys import key_of_str, salted
from stream.label_policy import LabelPolicy, LabelRows, WindowPolicy
from stream.rate_kernels import LOG1P, RatePlan, fill_rates
from stream.samples import Samples

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class Assembler:
    """Builds the MiniBatches of one configuration."""

    def __init__(
        self,
        plan: FeaturePlan,
        items: ItemTable,
        policy: LabelPolicy | None = None,
        *,
        compact: bool = False,
        incoming: ItemTable | None = None,
    ) -> None:
        """`policy` turns facts into rows; the default waits for all windows.

        `compact`: batches bring a content table of their own rows, for a learner on a device.
        `incoming`: vectors of another encoder version, beside those of `items`.
        """
        self._compact = compact
        self._plan = plan
        self._items, self._incoming = items, incoming
        self._policy = policy or WindowPolicy()
        self._n_histories = len(plan.config.history)
        kinds = list(plan.config.label)
        self._label = kinds.index(plan.config.ranker.label)
        counters = [(c.config.prior_weight, c.decayed, c.config.open) for c in plan.counters]
        weights, decayed, is_open = zip((0.0, -1, False), *counters, strict=True)
        self._rates = RatePlan(
            weight=np.array(weights, np.float32), decayed=np.array(decayed, np.int64),
            is_open=np.array(is_open, np.uint8),
        )  # fmt: skip

    def batch(self, samples: Samples) -> MiniBatch:
        """The rows that the label policy makes of settled samples."""
        return self._build(samples, self._policy.rows(samples))

    def prediction_batch(self, samples: Samples) -> MiniBatch:
        """One row a sample, without labels: their mask is 0."""
        n, k = len(samples), samples.click_ts_nK.shape[1]
        nothing = np.zeros((n, k), np.float32)
        rows = LabelRows(
            row_n=np.arange(n), labels_nK=nothing, label_mask_nK=nothing,
            row_kind_n=np.zeros(n, np.uint8), age_ms_n=np.zeros(n, np.int64),
        )  # fmt: skip
        return self._build(samples, rows)

    def _build(self, samples: Samples, rows: LabelRows) -> MiniBatch:
        plan = self._plan
        attributes = self._items.attribute_columns(samples.item_n)
        request_row = np.cumsum(np.diff(samples.request_n, prepend=samples.request_n[:1]) != 0)
        batch = MiniBatch(
            ids_BF=torch.from_numpy(self._ids(samples, attributes)),
            bags_BL=tuple(torch.from_numpy(b) for b in self._bags(samples, attributes)),
            dense_BD=torch.from_numpy(self.dense(samples, attributes)),
            content=self._content(samples, self._items) if plan.spec.content_dim else None,
            incoming=self._content(samples, self._incoming) if self._incoming else None,
            labels_BK=torch.from_numpy(rows.labels_nK),
            label_mask_BK=torch.from_numpy(rows.label_mask_nK),
            weight_B=torch.from_numpy(1.0 / samples.sample_rate_n),
            row_kind_B=torch.from_numpy(rows.row_kind_n),
            age_ms_B=torch.from_numpy(rows.age_ms_n),
            request_row_B=torch.from_numpy(request_row.astype(np.int64)),
            sample_rate_B=torch.from_numpy(samples.sample_rate_n),
            ts_ms_B=torch.from_numpy(samples.ts_ms_n),
            sample_id_B=torch.from_numpy(samples.key_n),
            nominal_size=plan.config.stream.batch_size,
            served=self._served(samples),
        )
        batch.check()
        return batch

    def _ids(self, s: Samples, attributes: ItemFeatures) -> I64:
        plan = self._plan
        out = np.empty((len(s), len(plan.ids)), np.int64)
        for i, column in enumerate(plan.ids):
            if column.where == "user":
                out[:, i] = salted(s.user_n, plan.user_salt)
            elif column.where == "item":
                out[:, i] = s.item_n
            else:
                source = s.ids_nF if column.where == "event" else attributes.ids_nA
                out[:, i] = source[:, column.place]
        return out

    def _bags(self, s: Samples, attributes: ItemFeatures) -> list[I64]:
        bags = list(s.history_nL)
        places = {c: i for i, c in enumerate(c for c in self._plan.multis if _of_item(c))}
        for column in self._plan.multis:
            if _of_item(column):
                bags.append(np.ascontiguousarray(attributes.multi_nM[places[column]]))
            else:
                last = column.place + column.length
                bags.append(np.ascontiguousarray(s.multi_nM[:, column.place : last]))
        return bags + self._of_histories(s)

    def _of_histories(self, s: Samples) -> list[I64]:
        """Attributes of the histories' items, in the order of the plan; one look-up a history."""
        wanted = self._plan.of_histories
        found: dict[tuple[int, int], I64] = {}
        for history in dict.fromkeys(column.history for column in wanted):
            attributes = [c.attribute for c in wanted if c.history == history]
            values = self._items.first_of(s.history_nL[history], attributes)
            found |= {(history, a): v for a, v in zip(attributes, values, strict=True)}
        return [found[column] for column in wanted]

    def _content(self, s: Samples, items: ItemTable) -> ContentRows:
        found = items.lookup(s.item_n, s.history_nL, compact=self._compact)
        return ContentRows(
            table_VC=torch.from_numpy(found.table_VC),
            target_B=torch.from_numpy(found.target_B),
            missing_B=torch.from_numpy(found.missing_B),
            bags_BL=tuple(torch.from_numpy(b) for b in found.bags_BL),
            bag_inv_len_B=tuple(
                torch.from_numpy((1.0 / np.maximum(n, 1)).astype(np.float32) * (n > 0))
                for n in found.bag_found_B
            ),
            encoder=items.encoder_version,
        )

    def _served(self, s: Samples) -> ServedRows | None:
        layout = self._plan.served
        if layout is None:
            return None
        version_n = s.ids_nF[:, -1]
        own = key_of_str(layout.version(self._items.encoder_version))
        return ServedRows(
            layout=layout,
            values_BN=torch.from_numpy(s.dense_nX[:, s.dense_nX.shape[1] - layout.width :]),
            logged_B=torch.from_numpy(version_n != 0),
            given_B=torch.from_numpy(version_n == own),
        )

    def dense(self, s: Samples, attributes: ItemFeatures) -> F32:
        """Dense inputs [n, D] in the order of the spec: prior, counters, configured numbers."""
        out = np.empty((len(s), len(self._plan.spec.dense)), np.float32)
        fill_rates(s.counts_nJC, s.decayed_nDC, self._rates, self._label, LOG1P, out)
        d = out.shape[1] - len(self._plan.dense)
        for feature, place in self._plan.dense:
            value = _dense_column(feature.path, place, s, attributes)
            if feature.scale == "log1p":
                value = np.sign(value) * np.log1p(np.abs(value))
            out[:, d] = value
            d += 1
        return out


def _of_item(column: Column) -> bool:
    return column.where == "multi-attribute"


def _dense_column(path: str, place: int, s: Samples, attributes: ItemFeatures) -> F32:
    if path == "user.gap":
        return s.gap_ms_n.astype(np.float32) / np.float32(1_000)
    if path == "user.session_position":
        return s.session_position_n.astype(np.float32)
    if path == "user.clicked":
        return s.clicked_n.astype(np.float32)
    if path in ("user.interactions", "item.interactions"):
        return s.interactions_n2[:, int(path.startswith("item"))].astype(np.float32)
    if path.startswith("item.attributes."):
        return attributes.dense_nX[:, place]
    return s.dense_nX[:, place]
