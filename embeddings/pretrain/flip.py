"""FLIP's pre-training on items: a language model and value embeddings that complete each other.

Wang et al. 2023 (arXiv 2310.19453), sections on masked language, masked tabular and contrastive
learning. Reads no clicks: labels are for the ranker that takes the vectors. Knows no files.

Legend: B items, F fields, T tokens, P width of a token's state, D width of the id side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings.encoders.bert import Bert
from embeddings.pretrain.adam import Adam
from embeddings.pretrain.flip_losses import contrast_loss, draw_masks, nce_loss
from embeddings.pretrain.flip_rows import FlipRows, masked_text

F32 = NDArray[np.float32]
_WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipConfig:
    """Sizes and training. `layers`: of the language model, the last so many are trained.

    The paper trains all of it for 25 to 30 epochs on GPUs, which a host has no time for.
    """

    epochs: int = 1
    batch: int = 32
    lr: float = 1e-4
    decay: float = 1e-3
    layers: int = 2
    mask_share: float = 0.15
    noise: int = 25
    temperature: float = 0.1
    value_width: int = 32
    width: int = 128
    seed: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        sizes = (self.epochs, self.noise, self.value_width, self.width)
        if min(sizes) < 1 or self.batch < 2 or self.layers < 0:
            raise ValueError(f"flip: epochs, noise, widths >= 1, batch >= 2, layers >= 0: {self}")
        if self.lr <= 0 or self.decay < 0 or self.temperature <= 0 or not 0 < self.mask_share < 1:
            raise ValueError(f"flip: lr, temperature > 0, decay >= 0, mask_share in (0, 1): {self}")


class Projection(nn.Module):
    """Linear, GELU, linear, residual, LayerNorm without weights; no dropout."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, x_BX: Tensor) -> Tensor:
        """float32 [B, out]."""
        first = self.first(x_BX)
        both = first + self.second(functional.gelu(first))
        return functional.layer_norm(both, both.shape[1:])


class FlipNet(nn.Module):
    """The language model's last layers, the id encoder, and the heads of the three losses."""

    def __init__(
        self, weights: Mapping[str, Tensor], heads: int, rows: FlipRows, mask: int, c: FlipConfig
    ) -> None:
        """`weights` of a BERT by name, taken as copies; `mask`: its [MASK]."""
        super().__init__()
        self.config, self.mask, self.sizes = c, mask, rows.sizes_F
        used = {k: v for k, v in weights.items() if k.startswith(("embeddings.", "encoder."))}
        numbers = sorted({int(k.split(".")[2]) for k in used if k.startswith("encoder.layer.")})
        last = {
            f"encoder.layer.{n}." for n in numbers[len(numbers) - min(c.layers, len(numbers)) :]
        }
        taken = {k: v.detach().float().clone() for k, v in used.items() if v.is_floating_point()}
        self.text_layers = nn.ParameterDict(
            {k.replace(".", "/"): nn.Parameter(v) for k, v in taken.items()
             if any(k.startswith(layer) for layer in last)}
        )  # fmt: skip
        own = {k.replace("/", "."): v for k, v in self.text_layers.items()}
        self.bert = Bert({**taken, **own}, heads, torch.device("cpu"))
        self.words_VP = taken[_WORDS]
        p, d, f = self.words_VP.shape[1], c.width, len(rows.sizes_F)
        # Value 0 of each field's own table is its mask.
        self.values = nn.ModuleList(nn.Embedding(n + 1, c.value_width) for n in rows.sizes_F)
        self.ids = nn.Sequential(
            nn.Linear(f * c.value_width, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU()
        )
        self.words_head = nn.Linear(p + d, p)
        self.words_bias = nn.Parameter(torch.zeros(len(self.words_VP)))
        self.query = nn.Linear(d, p)
        self.context = nn.Linear(d + p, f * c.value_width)
        self.outputs = nn.ModuleList(
            nn.Embedding(n, c.value_width + 1, _weight=torch.zeros(n, c.value_width + 1))
            for n in rows.sizes_F
        )
        self.of_text, self.of_ids = Projection(p, d), Projection(d, d)

    def encoded(self, values_BF: Tensor) -> Tensor:
        """What the ids are, r [B, D], of value numbers from 1 on; 0 is the field's mask."""
        rows = [table(values_BF[:, f]) for f, table in enumerate(self.values)]
        r_BD: Tensor = self.ids(torch.cat(rows, 1))
        return r_BD

    def language_loss(
        self, tokens_BT: Tensor, spans_BT: Tensor, r_BD: Tensor, hidden_BF: Tensor, kept_BT: Tensor
    ) -> Tensor:
        """L_MLM: hidden values' tokens from the rest of the text and the intact ids.

        The output matrix is the model's own word embeddings, which do not change.
        """
        masked_BT, hidden_BT = masked_text(tokens_BT, spans_BT, hidden_BF, self.mask)
        if not bool(hidden_BT.any()):
            return (self.words_bias.sum() + self.words_head.weight.sum()) * 0.0
        states_BTP = self.bert.states(masked_BT, kept_BT)
        row_n, token_n = hidden_BT.nonzero(as_tuple=True)
        u_nX = torch.cat([states_BTP[row_n, token_n], r_BD[row_n]], 1)
        hidden_nP = torch.tanh(self.words_head(u_nX))
        logits_nV = torch.addmm(self.words_bias, hidden_nP, self.words_VP.t())
        return functional.cross_entropy(logits_nV, tokens_BT[row_n, token_n])

    def tabular_loss(
        self, values_BF: Tensor, states_BTP: Tensor, kept_BT: Tensor, hidden_BF: Tensor,
        noise_KF: Tensor,
    ) -> Tensor:  # fmt: skip
        """L_MTM: hidden ids from the other ids and the intact text; padding is not attended to."""
        r_BD = self.encoded(torch.where(hidden_BF, 0, values_BF + 1))
        query_BP = functional.layer_norm(self.query(r_BD), (states_BTP.shape[2],))
        scores_BT = (states_BTP @ query_BP.unsqueeze(2)).squeeze(2) / states_BTP.shape[2] ** 0.5
        share_BT = scores_BT.masked_fill(~kept_BT, -torch.inf).softmax(1)
        text_BP = (share_BT.unsqueeze(1) @ states_BTP).squeeze(1)
        g_BFE = self.context(torch.cat([r_BD, text_BP], 1)).view(len(r_BD), len(self.sizes), -1)
        losses = []
        for f, table in enumerate(self.outputs):
            target_BE, noise_KE = table(values_BF[:, f]), table(noise_KF[:, f])
            target_B = (g_BFE[:, f] * target_BE[:, :-1]).sum(1) + target_BE[:, -1]
            noise_BK = torch.addmm(noise_KE[:, -1], g_BFE[:, f], noise_KE[:, :-1].t())
            losses.append(nce_loss(target_B, noise_BK))
        kept_BF = hidden_BF.float()
        return (torch.stack(losses, 1) * kept_BF).sum() / kept_BF.sum()

    def losses(self, rows: FlipRows, at_B: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """[L_MLM, L_MTM, L_ICL] of some distinct items; the sum is what is trained."""
        c, (b, f) = self.config, (len(at_B), len(self.sizes))
        width = int(rows.lengths_N[at_B].max())
        tokens_BT = torch.from_numpy(rows.tokens_NT[at_B, :width])
        spans_BT = torch.from_numpy(rows.spans_NT[at_B, :width])
        kept_BT = torch.arange(width) < torch.from_numpy(rows.lengths_N[at_B]).unsqueeze(1)
        values_BF = torch.from_numpy(rows.values_NF[at_B])
        of_text, of_ids = (torch.from_numpy(draw_masks(rng, b, f, c.mask_share)) for _ in "tx")
        noise_KF = torch.from_numpy(
            np.take_along_axis(rows.values_NF, rng.integers(0, len(rows), (c.noise, f)), 0)
        )
        r_BD = self.encoded(values_BF + 1)
        states_BTP = self.bert.states(tokens_BT, kept_BT)
        return torch.stack(
            [
                self.language_loss(tokens_BT, spans_BT, r_BD, of_text, kept_BT),
                self.tabular_loss(values_BF, states_BTP, kept_BT, of_ids, noise_KF),
                contrast_loss(self.of_ids(r_BD), self.of_text(states_BTP[:, 0]), c.temperature),
            ]
        )

    @torch.no_grad()
    def vectors(self, rows: FlipRows) -> F32:
        """Mean of the intact text's states at unit length, float32 [N, P]: for item tables."""
        out = []
        for start in range(0, len(rows), self.config.batch):
            at = np.arange(start, min(start + self.config.batch, len(rows)))
            width = int(rows.lengths_N[at].max())
            kept_BT = torch.arange(width) < torch.from_numpy(rows.lengths_N[at]).unsqueeze(1)
            states = self.bert.states(torch.from_numpy(rows.tokens_NT[at, :width]), kept_BT)
            mean = (states * kept_BT.unsqueeze(2)).sum(1) / kept_BT.sum(1, keepdim=True)
            out.append(functional.normalize(mean, dim=1).numpy())
        return np.concatenate(out)


def pretrain(
    net: FlipNet, rows: FlipRows, on_progress: Callable[[int, int], None] = lambda _a, _b: None
) -> list[tuple[float, float, float]]:
    """Train in place; the mean of each loss, an epoch an entry. Same seed, same bits."""
    c = net.config
    rng, adam = np.random.default_rng(c.seed), Adam(net, c.lr, c.decay)
    curve, per_epoch = [], -(-len(rows) // c.batch)
    for epoch in range(c.epochs):
        order, told = rng.permutation(len(rows)), []
        for step, start in enumerate(range(0, len(rows), c.batch)):
            at = order[start : start + c.batch]
            for parameter in net.parameters():
                parameter.grad = None
            found = net.losses(rows, at, rng)
            found.sum().backward()  # type: ignore[no-untyped-call]
            for parameter in net.parameters():
                if parameter.grad is None:  # no hidden value had a token
                    parameter.grad = torch.zeros_like(parameter)
            adam.step()
            told.append(found.detach().tolist())
            on_progress(epoch * per_epoch + step + 1, c.epochs * per_epoch)
        mlm, mtm, icl = np.mean(told, 0).tolist()
        curve.append((mlm, mtm, icl))
    return curve
