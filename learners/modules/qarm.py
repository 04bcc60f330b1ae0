"""`qarm`: residual and anchor codes of target and histories as trainable ids (arXiv 2411.11739).

Codes are keys like any other id; fitting and assigning them is done in `embeddings/codes`.

Legend: B rows, L entries of a history, D columns of a row, C codes of the target, S codes of a
history's entry, K = S D, P pooled forms, X columns of all that is added.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from learners.feature_spec import FeatureSpec
from learners.id_kernels import I64
from learners.modules.module import Addition, Module, zero_start
from learners.modules.qarm_codes import CodeBag, QarmConfig, code_bags
from learners.modules.qarm_pool import Keys, pooled_history
from learners.modules.small_norm import small_norm
from learners.net_inputs import NetInputs


class _Place(NamedTuple):
    """A bag in what a net reads: its table, its place there, and its place in the spec."""

    table: int
    pooled: int
    bag: int


class Qarm(Module):
    """Codes to the first hidden layer through a map that starts at 0.

    What each code gives is normalised (LayerNorm without parameters), so that rows that start near
    0 weigh as much as other inputs. Item side: the rows of the target's codes, t_1 to t_C (z_rq),
    and the mean of its anchors' rows (z_vq). Of each history, with k_i the rows of entry i side by
    side, t those of the target, and m_i which codes both share:

    - sequence: s = sum_i w_i k_i, w = softmax of (A t).k_i / sqrt(K) + b.m_i over coded entries, A
      and b learned, 1 at the start;
    - cross: for each shared code c, s_c = the mean of k_i with m_ic = 1, of the codes that c does
      not settle, and log1p of the number of such entries;
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
        # Codes of histories first: what they have in common with the target is then one slice.
        own = {bag.code: bag for bag in bags if not bag.history}
        self.target = {code: own[code] for code in dict.fromkeys((*config.history_codes, *own))}
        self.histories = [
            [bag for bag in bags if bag.history == name]
            for name in dict.fromkeys(bag.history for bag in bags if bag.history)
        ]
        k, shared = config.dim * len(config.history_codes), len(config.shared)
        self.blocks = config.blocks()
        each = 2 * config.dim * len(self.blocks) + shared * ("cross" in config.uses)
        width = len(self.histories) * each
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
        own = [self._rows(x, bag) for bag in self.target.values()]
        normal_BCD = small_norm(torch.stack(own, 1))
        parts = [normal_BCD.flatten(1)] if "item" in self.config.uses else []
        for number, bags in enumerate(self.histories):
            parts += self._history(x, number, bags, normal_BCD)
        return Addition(hidden_BH=self.out(torch.cat(parts, 1)))

    def _rows(self, x: NetInputs, bag: CodeBag) -> Tensor:
        table, pooled, _ = self.places[bag.name]
        rows = x.pooled_BD[table][pooled]
        return rows if self.config.trained else rows.detach()

    def _index(self, x: NetInputs, bag: CodeBag) -> Tensor:
        table, pooled, _ = self.places[bag.name]
        index_BL = x.index_BL[table][pooled]
        assert index_BL is not None
        return index_BL

    def _keys(self, x: NetInputs, bag: CodeBag) -> I64:
        return x.step.bags_BL[self.places[bag.name].bag]

    def _history(
        self, x: NetInputs, number: int, bags: list[CodeBag], normal_BCD: Tensor
    ) -> list[Tensor]:
        """log1p counts of one history [B, C], its blocks [B, N D], and those times the target."""
        config = self.config
        attends = "sequence" in config.uses
        keys = Keys(
            entries=tuple(self._keys(x, bag) for bag in bags),
            own=tuple(self._keys(x, self.target[bag.code]) for bag in bags),
            matched=tuple(s for s, bag in enumerate(bags) if bag.code in config.shared),
            blocks=self.blocks,
        )
        query_BK = None
        if attends:
            target = [self._rows(x, self.target[bag.code]) for bag in bags]
            query_BK = self.query[number](torch.cat(target, 1))
        pooled_BND, counts_BC = pooled_history(
            tuple(self._rows(x, bag) for bag in bags),
            tuple(self._index(x, bag) for bag in bags),
            query_BK,
            self.match[number] if attends else None,
            keys,
        )
        parts = [counts_BC.log1p()] if "cross" in config.uses else []
        if self.blocks:
            pooled_BND = small_norm(pooled_BND)
            own_BND = torch.cat([normal_BCD[:, s : s + 1] for _, s in self.blocks], 1)
            parts += [pooled_BND.flatten(1), (pooled_BND * own_BND).flatten(1)]
        return parts


def _place(spec: FeatureSpec, bag: int) -> _Place:
    name = spec.bags[bag].name
    for number, table in enumerate(spec.tables()):
        for pooled, one in enumerate(table.bags):
            if one.name == name:
                return _Place(number, pooled, bag)
    raise AssertionError(name)
