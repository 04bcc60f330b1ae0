"""MAKE's extractor: what a user's history of vectors says of a target vector. Reads no id.

Enhancing Taobao Display Advertising with Multimodal Representations (arXiv 2407.19467, 2024). How
it is trained and where its outputs go is not said here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.content_view import ContentView, masked_softmax, picked_dots, weighted_sum

WIDTH_MULTIPLE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorConfig:
    """`attention`: length of queries and keys; `hidden`: z_1 … z_M; `product`: t * v is an input.

    With the product a similarity is one weight away; the paper's form has [v; t] alone. Widths are
    multiples of 16: products of 2 to 8 columns have other bits at other places of a batch.
    """

    attention: int = 32
    hidden: tuple[int, ...] = (64, 32)
    product: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        widths = (self.attention, *self.hidden)
        if not self.hidden or min(widths) < 1 or any(n % WIDTH_MULTIPLE for n in widths):
            raise ValueError(
                "make: attention and one or more hidden: multiples of 16, got "
                f"{self.attention}, {self.hidden}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """`interest_BX`: v of each history, side by side; `hidden`: z_1 … z_M; `logit_B`."""

    interest_BX: Tensor
    hidden: tuple[Tensor, ...]
    logit_B: Tensor

    def to(self, device: torch.device) -> Extracted:
        """The same on a device."""
        return Extracted(
            interest_BX=self.interest_BX.to(device),
            hidden=tuple(z_BH.to(device) for z_BH in self.hidden),
            logit_B=self.logit_B.to(device),
        )


class MakeNet(nn.Module):
    """a_i = softmax((W_q t) . (W_k x_i) / sqrt(A)), v = sum_i a_i x_i, z_0 = [v; t; t * v].

    The scaled form of the attention in section 5.1 of the brief of SimTier and MAKE, masked; one v
    a history. Both maps of the attention start as the same orthogonal one, so that it begins as a
    softmax of cosines.
    """

    def __init__(self, dim: int, histories: int, config: ExtractorConfig) -> None:
        super().__init__()
        self.dim, self.histories, self.config = dim, histories, config
        self.query = nn.Linear(dim, config.attention, bias=False)
        self.key = nn.Linear(dim, config.attention, bias=False)
        nn.init.orthogonal_(self.query.weight)
        self.key.weight.data.copy_(self.query.weight.data)
        width = dim * (1 + histories * (1 + config.product))
        sizes = (width, *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(config.hidden[-1], 1)

    @property
    def width(self) -> int:
        """Columns of `interest_BX` and of all of `hidden` together."""
        return self.dim * self.histories + sum(self.config.hidden)

    def forward(self, view: ContentView) -> Extracted:
        """What it makes of each row; vectors are taken as they are in the view."""
        rows_UC = view.rows_UC
        target_BC = functional.embedding(view.target_B, rows_UC)
        query_BA = self.query(target_BC) * self.config.attention**-0.5
        # (W_q t) . (W_k x_i) as (W_k^T W_q t) . x_i: a map for each row, none for each entry.
        key_AX = functional.pad(self.key.weight, [0, -self.dim % WIDTH_MULTIPLE])
        query_BC = (query_BA @ key_AX)[:, : self.dim]
        parts, interests = [target_BC], []
        for history, bag_BL in enumerate(view.bags_BL):
            scores_BL = picked_dots(rows_UC, query_BC, bag_BL)
            weight_BL = masked_softmax(scores_BL, view.kept(history))
            interest_BC = weighted_sum(rows_UC, bag_BL, weight_BL)
            interests.append(interest_BC)
            parts.append(interest_BC)
            if self.config.product:
                parts.append(interest_BC * target_BC)
        z_BH, hidden = torch.cat(parts, 1), []
        for layer in self.layers:
            z_BH = layer(z_BH).relu()
            hidden.append(z_BH)
        logit_B = self.out(z_BH).squeeze(1)
        interest_BX = torch.cat(interests, 1) if interests else target_BC[:, :0]
        return Extracted(interest_BX=interest_BX, hidden=tuple(hidden), logit_B=logit_B)


def normalised(view: ContentView) -> ContentView:
    """Vectors less their mean, at length sqrt(C): what the net is trained on and run with."""
    rows_UC = functional.layer_norm(view.rows_UC, (view.rows_UC.shape[1],))
    return ContentView(rows_UC=rows_UC, target_B=view.target_B, bags_BL=view.bags_BL)
