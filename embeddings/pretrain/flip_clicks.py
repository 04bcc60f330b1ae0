"""FLIP's second stage on labelled samples: one logit of ids, one of text, and what weighs them.

Wang et al. 2023 (arXiv 2310.19453), section on fine-tuning: both branches start from pre-training
and are trained with clicks, each alone and mixed. Knows no log, and not when to stop.

Legend: B samples, S fields of a sample beside the item, H histories, L length of a history, N
items, U distinct items of a step, T tokens, P width of a token's state, D width of the id side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings.pretrain.flip import FlipNet
from embeddings.pretrain.flip_rows import FlipRows

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_STATES_KEPT_MAX = 1 << 28
"""Numbers of token states that are kept, 1 GiB; without room they are computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickRows:
    """N labelled samples in order of time.

    `item_N` rows of `FlipRows`; `fields_NS` keys of the sample's own fields, by `names`;
    `histories` int64 [N, L] each, rows of `FlipRows` or -1; `weight_N` of the loss.
    """

    names: tuple[str, ...]
    item_N: I64
    fields_NS: I64
    histories: tuple[I64, ...]
    label_N: F32
    weight_N: F32
    ts_ms_N: I64

    def __len__(self) -> int:
        """N."""
        return len(self.item_N)

    def at(self, chosen: I64) -> ClickRows:
        """The rows at these places, in their order."""
        return ClickRows(
            names=self.names, item_N=self.item_N[chosen], fields_NS=self.fields_NS[chosen],
            histories=tuple(history[chosen] for history in self.histories),
            label_N=self.label_N[chosen], weight_N=self.weight_N[chosen],
            ts_ms_N=self.ts_ms_N[chosen],
        )  # fmt: skip


class TextStates:
    """Vectors of items by the language model: what does not change in training is kept."""

    def __init__(self, net: FlipNet, rows: FlipRows) -> None:
        self._net, self._rows = net, rows
        bert = net.bert
        first = bert.layers - min(net.config.layers, bert.layers)
        self._below, self._above = range(first), range(first, bert.layers)
        tokens = int(rows.lengths_N.sum())
        self._kept: list[Tensor] | None = None
        if tokens * net.words_VP.shape[1] <= _STATES_KEPT_MAX:
            self._kept = [self._frozen(np.array([n]))[0] for n in range(len(rows))]

    def _mask(self, at_U: I64) -> Tensor:
        lengths_U = torch.from_numpy(self._rows.lengths_N[at_U])
        return torch.arange(int(lengths_U.max())) < lengths_U.unsqueeze(1)

    @torch.no_grad()
    def _frozen(self, at_U: I64) -> Tensor:
        kept_UT = self._mask(at_U)
        tokens_UT = torch.from_numpy(self._rows.tokens_NT[at_U, : kept_UT.shape[1]])
        bert = self._net.bert
        return bert.through(bert.embedded(tokens_UT), kept_UT, self._below)

    def vectors(self, at_U: I64) -> Tensor:
        """Mean states of some items' texts under LayerNorm without weights, [U, P]."""
        kept_UT = self._mask(at_U)
        if self._kept is None:
            below_UTP = self._frozen(at_U)
        else:
            below_UTP = nn.utils.rnn.pad_sequence([self._kept[n] for n in at_U], batch_first=True)
        states_UTP = self._net.bert.through(below_UTP, kept_UT, self._above)
        sum_UP = (states_UTP * kept_UT.unsqueeze(2)).sum(1)
        return functional.layer_norm(sum_UP / kept_UT.sum(1, keepdim=True), sum_UP.shape[1:])

    @torch.no_grad()
    def all(self) -> Tensor:
        """Vectors of all items, [N, P]."""
        n, size = len(self._rows), self._net.config.batch
        parts = [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
        return torch.cat([self.vectors(at) for at in parts])


class FlipClicks(nn.Module):
    """z = alpha z_ID + (1 - alpha) z_PLM, alpha one free number that begins at 0.

    The ids' branch reads the pre-trained values of the item and of the items in the histories, and
    the sample's fields. The text's branch reads the vectors of the same items alone.
    """

    def __init__(
        self, net: FlipNet, rows: FlipRows, sizes_S: Sequence[int], histories: int
    ) -> None:
        """`sizes_S`: values of each field of a sample, from 1 on; 0 stands for all others."""
        super().__init__()
        c, p = net.config, net.words_VP.shape[1]
        self.values, self.ids = net.values, net.ids
        self.item_values_NF = torch.from_numpy(rows.values_NF) + 1
        self.fields = nn.ModuleList(
            nn.Embedding(n + 1, c.value_width, _weight=_first_values(n, c.value_width))
            for n in sizes_S
        )
        width = (1 + histories) * c.width + len(sizes_S) * c.value_width
        rank = min(32, width)
        self.cross = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(2)
        )
        self.deep = nn.Sequential(nn.Linear(width, c.width), nn.ReLU())
        self.id_logit = nn.Linear(width + c.width, 1)
        self.text_logit = nn.Linear(p * (1 + histories), 1)
        for head in (self.id_logit, self.text_logit):
            nn.init.zeros_(head.weight)
        self.alpha = nn.Parameter(torch.zeros(()))

    def begin_at(self, rate: float) -> None:
        """Let both branches say this click rate of every sample."""
        for head in (self.id_logit, self.text_logit):
            nn.init.constant_(head.bias, float(np.log(rate / (1 - rate))))

    def of_ids(self, item_B: Tensor, fields_BS: Tensor, histories: Sequence[Tensor]) -> Tensor:
        """z_ID [B], FLIP_ID: no text and no language model."""
        named = [item_B, *(history_BL[history_BL >= 0] for history_BL in histories)]
        item_U, place_n = torch.unique(torch.cat(named), return_inverse=True)
        values_UF = self.item_values_NF[item_U]
        rows = [table(values_UF[:, f]) for f, table in enumerate(self.values)]
        r_UD = self.ids(torch.cat(rows, 1))
        own, *taken = place_n.split([len(keys) for keys in named])
        parts = [r_UD[own]]
        for history_BL, place_m in zip(histories, taken, strict=True):
            places_BL = torch.full_like(history_BL, -1)
            places_BL[history_BL >= 0] = place_m
            parts.append(mean_of(r_UD, places_BL))
        parts += [table(fields_BS[:, s]) for s, table in enumerate(self.fields)]
        x = x0 = torch.cat(parts, 1)
        for layer in self.cross:
            x = x + x0 * layer(x)
        z_B1: Tensor = self.id_logit(torch.cat([x, self.deep(x0)], 1))
        return z_B1.squeeze(1)

    def of_text(self, text_BP: Tensor, histories_BP: Sequence[Tensor]) -> Tensor:
        """z_PLM [B], FLIP_PLM: linear in the item's vector and its products with the histories'.

        Vectors are less the mean of all, so that an empty history adds what an average one does.
        """
        read = torch.cat([text_BP, *(text_BP * history_BP for history_BP in histories_BP)], 1)
        z_B1: Tensor = self.text_logit(read)
        return z_B1.squeeze(1)

    def mixed(self, ids_B: Tensor, text_B: Tensor) -> Tensor:
        """The logit z, [B]."""
        return self.alpha * ids_B + (1 - self.alpha) * text_B


def mean_of(rows_NX: Tensor, history_BL: Tensor) -> Tensor:
    """Means of the rows that histories name, [B, X]; zeros for an empty one."""
    known_BL = history_BL >= 0
    row_n, at_n = known_BL.nonzero(as_tuple=True)
    total_BX = rows_NX.new_zeros(len(history_BL), rows_NX.shape[1])
    total_BX = total_BX.index_add(0, row_n, rows_NX[history_BL[row_n, at_n]])
    return total_BX / known_BL.sum(1, keepdim=True).clamp(min=1)


def _first_values(n: int, width: int) -> Tensor:
    """Small ones for n values, and 0 for all others."""
    values_NE = torch.randn(n + 1, width) * 0.1
    values_NE[0] = 0.0
    return values_NE
