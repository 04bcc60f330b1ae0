"""`qarm`: residual and anchor codes of target and histories as trainable ids (arXiv 2411.11739).

Codes are keys like any other id; fitting and assigning them is done in `embeddings/codes`.

Legend: B rows, L entries of a history, D columns of a row, C codes of the target, S codes of a
history's entry, K = S D, P pooled forms, X columns of all that is added.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from learners.feature_spec import FeatureSpec
from learners.id_kernels import I64
from learners.modules.module import Addition, Module, zero_start
from learners.modules.qarm_codes import CodeBag, QarmConfig, code_bags
from learners.net_inputs import NetInputs

OUT_OF_SIGHT = -1e9
"""Score of an entry without codes: its weight is exactly 0 beside any other."""


class _Place(NamedTuple):
    """A bag in what a net reads: its table, its place there, and its place in the spec."""

    table: int
    pooled: int
    bag: int


class Qarm(Module):
    """Codes to the first hidden layer through a map that starts at 0.

    Every vector is normalised (LayerNorm without parameters), so that rows that start near 0 weigh
    as much as other inputs. Item side: the rows of the target's codes, t_1 to t_C (z_rq), and the
    mean of its anchors' rows (z_vq). Of each history, with k_i the rows of entry i side by side, t
    those of the target, and m_i which codes both share:

    - sequence: s = sum_i w_i k_i, w = softmax of (A t).k_i / sqrt(K) + b.m_i over coded entries, A
      and b learned, 1 at the start;
    - cross: for each shared code c, s_c = the mean of k_i with m_ic = 1, and log1p of their number;
    - each of these s as it is and times t, entry by entry: what both have in common.

    What has no code adds exactly 0: an item without codes, a history without any, no match.
    """

    reads_vectors = False

    def __init__(self, spec: FeatureSpec, config: QarmConfig, hidden: int) -> None:
        super().__init__()
        histories = [(b.name, b.length) for b in spec.bags if b.is_history]
        bags = code_bags(config, histories)
        names = {bag.name: i for i, bag in enumerate(spec.bags)}
        if missing := [bag.name for bag in bags if bag.name not in names]:
            raise ValueError(
                f"qarm: there are no codes of items ('{missing[0]}'); set items.codebook to a "
                "release of `millrace codes fit`"
            )
        if unknown := set(config.histories) - {name for name, _ in histories}:
            raise ValueError(
                f"qarm: histories: {sorted(unknown)} are not among {[n for n, _ in histories]}"
            )
        self.config = config
        self.reads = frozenset(bag.name for bag in bags)
        self.places = {bag.name: _place(spec, names[bag.name]) for bag in bags}
        self.target = {bag.code: bag for bag in bags if not bag.history}
        self.histories = [
            [bag for bag in bags if bag.history == name]
            for name in dict.fromkeys(bag.history for bag in bags if bag.history)
        ]
        k, shared = config.dim * len(config.history_codes), len(config.shared)
        cross = shared * ("cross" in config.uses)
        width = len(self.histories) * (2 * k * (("sequence" in config.uses) + cross) + cross)
        if "item" in config.uses:
            width += config.dim * len(self.target)
        if "sequence" in config.uses:
            self.query = nn.ModuleList(nn.Linear(k, k, bias=False) for _ in self.histories)
            for query in self.query:
                nn.init.eye_(query.weight)  # type: ignore[arg-type]  # a layer's own parameter
            self.match = nn.ParameterList(torch.ones(1, shared) for _ in self.histories)
        self.out = zero_start(width, hidden)

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """What the codes add to the first hidden layer."""
        del learning
        parts: list[Tensor] = []
        if "item" in self.config.uses:
            parts += [_normalised(self._rows(x, bag)) for bag in self.target.values()]
        for number, bags in enumerate(self.histories):
            parts += self._history(x, number, bags)
        return Addition(hidden_BH=self.out(torch.cat(parts, 1)))

    def _rows(self, x: NetInputs, bag: CodeBag) -> Tensor:
        table, pooled, _ = self.places[bag.name]
        rows = x.pooled_BD[table][pooled]
        return rows if self.config.trained else rows.detach()

    def _keys(self, x: NetInputs, bag: CodeBag) -> I64:
        return x.step.bags_BL[self.places[bag.name].bag]

    def _history(self, x: NetInputs, number: int, bags: list[CodeBag]) -> list[Tensor]:
        """The pooled forms of one history [B, P K], those times the target, and log1p counts."""
        uses = self.config.uses
        rows_BLK = torch.cat([self._rows(x, bag) for bag in bags], 2)
        target_BK = torch.cat([self._rows(x, self.target[bag.code]) for bag in bags], 1)
        matched_BSL = torch.from_numpy(self._matches(x, bags)).to(rows_BLK.device)
        counts_BS = matched_BSL.sum(2)
        weights = []
        if "sequence" in uses:
            weights.append(self._attention(x, number, bags, rows_BLK, target_BK, matched_BSL))
        if "cross" in uses:
            weights.append(matched_BSL / counts_BS.clamp(min=1).unsqueeze(2))
        # One product pools all forms: the entries are read once.
        pooled_BPK = _normalised(torch.bmm(torch.cat(weights, 1), rows_BLK))
        common_BPK = pooled_BPK * _normalised(target_BK).unsqueeze(1)
        parts = [pooled_BPK.flatten(1), common_BPK.flatten(1)]
        return [*parts, counts_BS.log1p()] if "cross" in uses else parts

    def _matches(self, x: NetInputs, bags: list[CodeBag]) -> NDArray[np.float32]:
        """1 where an entry has the target's code, float32 [B, S', L]; never for a missing code."""
        found = []
        for bag in bags:
            if bag.code in self.config.shared:
                key_B1 = self._keys(x, self.target[bag.code])
                found.append((self._keys(x, bag) == key_B1) & (key_B1 != 0))
        if not found:
            return np.zeros((len(x.dense_BD), 0, bags[0].length), np.float32)
        return np.stack(found, 1).astype(np.float32)

    def _attention(
        self, x: NetInputs, number: int, bags: list[CodeBag], rows_BLK: Tensor, target_BK: Tensor,
        matched_BSL: Tensor,
    ) -> Tensor:  # fmt: skip
        """Weights [B, 1, L] of the entries; all 0 where target or history have no code."""
        keys_BL = self._keys(x, bags[0])
        has_B1 = (self._keys(x, self.target[bags[0].code]) != 0) & (keys_BL != 0).any(
            1, keepdims=True
        )
        query_BK1 = self.query[number](target_BK).unsqueeze(2)
        scores_BL = torch.bmm(rows_BLK, query_BK1).squeeze(2) / math.sqrt(rows_BLK.shape[2])
        # By row first: a sum over all entries at once would depend on the number of threads.
        bias_B1S = self.match[number].expand(len(scores_BL), -1).unsqueeze(1)
        scores_BL = scores_BL + torch.bmm(bias_B1S, matched_BSL).squeeze(1)
        uncoded_BL = torch.from_numpy(keys_BL == 0).to(scores_BL.device)
        weights_BL = scores_BL.masked_fill(uncoded_BL, OUT_OF_SIGHT).softmax(1)
        has = torch.from_numpy(has_B1.astype(np.float32)).to(scores_BL.device)
        return (weights_BL * has).unsqueeze(1)


def _normalised(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without parameters; 0 stays 0."""
    return functional.layer_norm(x, x.shape[-1:])


def _place(spec: FeatureSpec, bag: int) -> _Place:
    name = spec.bags[bag].name
    for number, table in enumerate(spec.tables()):
        for pooled, one in enumerate(table.bags):
            if one.name == name:
                return _Place(number, pooled, bag)
    raise AssertionError(name)
