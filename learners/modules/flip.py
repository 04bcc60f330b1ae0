"""`flip`: item ids and item vectors explain each other on live batches, and share one head.

The streaming, item-side form of FLIP (Wang et al. 2023, arXiv 2310.19453): masked ids are recovered
from the others and the item's cached vector (MTM), the item's ids and its vector are contrasted
(ICL), and a gate by exposure weighs them. The language model has run before: here are vectors only.

Legend: n learned rows of a batch, F fields of the item, T states of an item, P width of a state, D
width of an output row, W of the tower, A of the shared space, H hidden units of the ranker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings.pretrain.flip_losses import (
    contrast_loss,
    distinct_items,
    draw_masks,
    nce_loss,
    nce_score,
)
from infra.state import Part
from learners.feature_spec import FeatureSpec
from learners.id_kernels import LEARN_AND_COUNT
from learners.modules.flip_vocabulary import Vocabulary
from learners.modules.module import Addition, Module, ModuleConfig, zero_start
from learners.net_inputs import NetInputs

I64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class FlipConfig(ModuleConfig):
    """The item's fields and vector, weights of the losses, sizes.

    `fields`: the item's id fields, its own id first. `block` of the item vectors, `states` token
    states side by side. `exposure`: the dense input that holds log1p of the item's impressions and
    drives the gate; empty: one free number, as in the paper. `joins` False: the losses alone.
    `contrast_weight` is less than the other by the factor 1 / temperature that a cosine's gradient
    has: more pulls id rows that clicks have barely trained.
    """

    fields: tuple[str, ...] = ()
    block: str = ""
    states: int = 1
    exposure: str = ""
    joins: bool = True
    tabular_weight: float = 0.05
    contrast_weight: float = 0.005
    mask_share: float = 0.15
    noise: int = 25
    noise_rows: int = 4_096
    temperature: float = 0.1
    width: int = 64
    shared_width: int = 64
    output_width: int = 32
    output_lr: float = 0.04
    output_rows_max: int = 200_000

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.on and len(self.fields) < 2:
            raise ValueError(
                "flip: fields: name two or more id features of the item, its own id first, got "
                f"{list(self.fields)}"
            )
        if min(self.tabular_weight, self.contrast_weight) < 0:
            raise ValueError("flip: tabular_weight and contrast_weight must be at least 0")
        if not 0 < self.mask_share < 1 or self.temperature <= 0 or self.output_lr <= 0:
            raise ValueError(
                "flip: mask_share in (0, 1), temperature and output_lr > 0, got "
                f"{self.mask_share}, {self.temperature}, {self.output_lr}"
            )
        sizes = (
            self.states, self.noise, self.noise_rows, self.width, self.shared_width,
            self.output_width, self.output_rows_max,
        )  # fmt: skip
        if min(sizes) < 1:
            raise ValueError(
                "flip: states, noise, noise_rows, widths and output_rows_max: at least 1"
            )


class Projection(nn.Module):
    """To the shared space: linear, GELU, linear, residual, LayerNorm without affine; no dropout."""

    def __init__(self, width: int, shared: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, shared), nn.Linear(shared, shared)

    def forward(self, x_BW: Tensor) -> Tensor:
        """float32 [B, A]."""
        first = self.first(x_BW)
        return functional.layer_norm(first + self.second(functional.gelu(first)), (first.shape[1],))


class Tabular(nn.Module):
    """Context of each masked field: the other ids and what of the item's states fits them."""

    def __init__(self, width: int, state: int, fields: int, output: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, state)
        self.out = nn.Linear(width + state, fields * output)
        self.fields = fields

    def forward(self, tower_nW: Tensor, states_nTP: Tensor) -> Tensor:
        """G [n, F, D]; attention is scaled by 1/sqrt(P), which the paper's is not."""
        if states_nTP.shape[1] == 1:
            context_nP = states_nTP[:, 0]
        else:
            query_nP = functional.layer_norm(self.query(tower_nW), (states_nTP.shape[2],))
            scores_nT = (states_nTP * query_nP.unsqueeze(1)).sum(2) / states_nTP.shape[2] ** 0.5
            context_nP = (scores_nT.softmax(1).unsqueeze(2) * states_nTP).sum(1)
        context: Tensor = self.out(torch.cat([tower_nW, context_nP], 1))
        return context.view(len(context), self.fields, -1)


class Flip(Module):
    """alpha z_id + (1 - alpha) z_text, through heads that start at 0, and the two losses."""

    def __init__(self, spec: FeatureSpec, config: FlipConfig, hidden: int) -> None:
        super().__init__()
        self.config = c = config
        self.columns = [_column(spec, name) for name in c.fields]
        places = {
            f.name: (t, i) for t, table in enumerate(spec.tables()) for i, f in enumerate(table.ids)
        }
        self.places = [places[name] for name in c.fields]
        block = spec.block(c.block)
        if block.dim % c.states:
            raise ValueError(
                f"flip: states: {c.states} do not share the {block.dim} columns of an item vector"
            )
        self.text = block.columns
        self.exposure = _dense(spec, c.exposure) if c.exposure else -1
        dims = [spec.ids[i].dim for i in self.columns]
        self.tower = nn.Linear(sum(dims), c.width)
        if c.tabular_weight:
            self.masks = nn.ParameterList(nn.Parameter(torch.randn(d) * 0.02) for d in dims)
            state = block.dim // c.states
            self.tabular = Tabular(c.width, state, len(dims), c.output_width)
            if c.states == 1:
                del self.tabular.query
        if c.contrast_weight:
            self.of_ids = Projection(c.width, c.shared_width)
            self.of_text = Projection(block.dim, c.shared_width)
        if c.joins:
            # They read r and the vector, not the projections of these: LayerNorm would make an id
            # that nothing is known of as loud as one that is.
            self.id_head = zero_start(c.width, hidden + 1)
            self.text_head = zero_start(block.dim, hidden + 1)
            # With exposure sigmoid(b + a log1p n): .12 for a new item, .5 at 6 impressions.
            gate = [-2.0, 1.0] if c.exposure else [0.0]
            self.gate = nn.Parameter(torch.tensor(gate))
        self.vocabulary = Vocabulary(
            c.fields, c.output_width + 1, rows_max=c.output_rows_max, size=c.noise_rows,
            lr=c.output_lr, seed=int(torch.randint(2**31, ())),
        )  # fmt: skip

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The gated addition and, where the batch is learned from, the weighted losses."""
        if not (self.config.joins or learning):
            return Addition()
        width = self.text.stop - self.text.start
        text_BP = functional.layer_norm(x.target_BC[:, self.text], (width,))
        rows = [x.embedded_BFD[t][:, i] for t, i in self.places]
        tower_BW = self._tower(rows)
        hidden = logit = None
        if self.config.joins:
            both = self.mixed(x, tower_BW, text_BP)
            hidden, logit = both[:, :-1], both[:, -1]
        loss = self._losses(x, rows, tower_BW, text_BP) if learning else None
        return Addition(hidden_BH=hidden, logit_B=logit, loss=loss)

    def mixed(self, x: NetInputs, tower_BW: Tensor, text_BP: Tensor) -> Tensor:
        """Sum alpha z_id + (1 - alpha) z_text [B, H + 1]; alpha = 1 where there is no vector."""
        text_share_B1 = (1 - self.alpha(x)) * x.present_B1
        own, text = self.id_head(tower_BW), self.text_head(text_BP)
        both: Tensor = (1 - text_share_B1) * own + text_share_B1 * text
        return both

    def alpha(self, x: NetInputs) -> Tensor:
        """Share of the ids, [B, 1] by the item's impressions, or one free number."""
        if self.exposure < 0:
            return self.gate
        seen_B1 = x.raw_BD[:, self.exposure : self.exposure + 1].clamp(0.0, 20.0)
        return torch.sigmoid(self.gate[0] + self.gate[1] * seen_B1)

    def _tower(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.relu(self.tower(torch.cat(list(rows), 1)))

    def _losses(
        self, x: NetInputs, rows: Sequence[Tensor], tower_BW: Tensor, text_BP: Tensor
    ) -> Tensor | None:
        """w_m L_MTM + w_c L_ICL, means times the number of learned rows; None without any row."""
        places, present_n = self._learned_rows(x)
        if not len(places):
            return None
        at = torch.from_numpy(places).to(text_BP.device)
        c, parts = self.config, []
        if c.contrast_weight:
            keys_n = x.step.ids_BF[places, self.columns[0]]
            distinct = distinct_items(keys_n, present_n)
            if len(distinct) > 1:
                chosen = at[torch.from_numpy(distinct).to(at.device)]
                ids_nA = self.of_ids(tower_BW.index_select(0, chosen))
                text_nA = self.of_text(text_BP.index_select(0, chosen))
                pair = contrast_loss(ids_nA, text_nA, c.temperature)
                parts.append(pair * (c.contrast_weight * len(places)))
        if c.tabular_weight and self.vocabulary.filled:
            own = [row.index_select(0, at) for row in rows]
            keys_nF = np.ascontiguousarray(x.step.ids_BF[places][:, self.columns])
            mean = self.tabular_loss(own, text_BP.index_select(0, at), keys_nF)
            parts.append(mean * (c.tabular_weight * len(places)))
        return sum(parts[1:], parts[0]) if parts else None

    def tabular_loss(self, rows: Sequence[Tensor], text_nP: Tensor, keys_nF: I64) -> Tensor:
        """Mean NCE over the masked fields; each masked field is read as its own mask row."""
        c, vocabulary = self.config, self.vocabulary
        rng, (n, f) = vocabulary.rng(0), keys_nF.shape
        hidden_nF = torch.from_numpy(draw_masks(rng, n, f, c.mask_share)).to(text_nP.device)
        read = [
            torch.where(hidden_nF[:, i : i + 1], mask, row)
            for i, (mask, row) in enumerate(zip(self.masks, rows, strict=True))
        ]
        states_nTP = text_nP.view(n, c.states, -1)
        context_nFD = self.tabular(self._tower(read), states_nTP)
        outputs = vocabulary.rows(np.concatenate([keys_nF, vocabulary.noise(rng, c.noise)]))
        outputs = outputs.to(text_nP.device)
        losses = []
        for i in range(f):
            target_nD, noise_KD = outputs[:n, i], outputs[n:, i]
            context_nD = context_nFD[:, i]
            target_n = (context_nD * target_nD[:, :-1]).sum(1) + target_nD[:, -1]
            losses.append(nce_loss(target_n, nce_score(context_nD, noise_KD)))
        kept_nF = hidden_nF.float()
        return (torch.stack(losses, 1) * kept_nF).sum() / kept_nF.sum()

    def _learned_rows(self, x: NetInputs) -> tuple[I64, NDArray[np.bool_]]:
        """Places of the samples that are learned, and which of them have a vector."""
        step = x.step
        places = np.flatnonzero(step.flag_B[: step.rows] == LEARN_AND_COUNT)
        if step.content is None:
            return places, np.zeros(len(places), bool)
        return places, ~step.content.missing_B.numpy()[places]

    def learned(self, x: NetInputs, *, ok: bool) -> None:
        """Output rows and noise follow the step."""
        places, _ = self._learned_rows(x)
        keys_nF = x.step.ids_BF[places][:, self.columns]
        self.vocabulary.learned(keys_nF, clock_ms=x.step.clock_ms, ok=ok)

    def parts(self, mark: int | None) -> Sequence[Part]:
        """Output rows and the sample of noise, both for learning only."""
        return self.vocabulary.parts(mark) if self.config.tabular_weight else ()

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as Module does
        """Take them back."""
        self.vocabulary.apply(parts, step=int(parts["dense"].meta["step"]))

    def counts(self) -> Mapping[str, int]:
        """Ids with an output row."""
        return {"vocabulary": self.vocabulary.table.ids.counts()["rows"]}


def _column(spec: FeatureSpec, name: str) -> int:
    names = [f.name for f in spec.ids]
    if name not in names:
        raise ValueError(f"flip: fields: no id feature is named '{name}'; there are {names}")
    return names.index(name)


def _dense(spec: FeatureSpec, name: str) -> int:
    names = [d.name for d in spec.dense]
    if name not in names:
        raise ValueError(f"flip: exposure: no dense input is named '{name}'; there are {names}")
    return names.index(name)
