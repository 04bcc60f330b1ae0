"""Fusion-Q-Former: learned queries and an item's tokens to one vector. Knows no item and no memory.

End-to-end training of Multimodal Model and ranking Model (arXiv 2404.06078), sections 3 and 9 of
its brief. Legend: N items, T tokens, Q queries, S = Q + T, D model dimension, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH_MULTIPLE = 16
"""Products of 2 to 8 columns have other bits at other places of a batch."""
SCALE_EPS = 1e-5
_NOT_KEPT = -(2.0**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerConfig:
    """Model dimension, number of queries, layers and heads: the public configuration."""

    dim: int = 64
    queries: int = 1
    layers: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.dim < 1 or self.dim % WIDTH_MULTIPLE or self.heads < 1 or self.dim % self.heads:
            raise ValueError(
                "em3: dim: a multiple of 16 that the heads divide, got "
                f"{self.dim} and {self.heads} heads"
            )
        if self.queries < 1 or self.layers < 1:
            raise ValueError(
                f"em3: queries and layers at least 1, got {self.queries}, {self.layers}"
            )


class Attention(nn.Module):
    """Self-attention over queries and tokens together, post-norm, without a feed-forward layer.

    A = softmax(X W_q (X W_k)^T / sqrt(d_h + 1e-5)), X' = LN(X + (A X W_v) W_o).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x_NSD: Tensor, kept_NS: Tensor) -> Tensor:
        """X'; nothing attends to what is not kept. Sums are by row, so that rows do not mix."""
        n, s, d = x_NSD.shape
        shape = (n, s, self.heads, d // self.heads)
        q_NSHE = self.query(x_NSD).view(shape) * (shape[3] + SCALE_EPS) ** -0.5
        k_NSHE, v_NSHE = self.key(x_NSD).view(shape), self.value(x_NSD).view(shape)
        scores_NSSH = (q_NSHE.unsqueeze(2) * k_NSHE.unsqueeze(1)).sum(4)
        scores_NSSH = scores_NSSH.masked_fill(~kept_NS[:, None, :, None], _NOT_KEPT)
        weights_NSSH = scores_NSSH.softmax(2)
        mixed_NSHE = (weights_NSSH.unsqueeze(4) * v_NSHE.unsqueeze(1)).sum(2)
        y_NSD = x_NSD + self.out(mixed_NSHE.reshape(n, s, d))
        # By hand: the gradients of LayerNorm's own affine parameters depend on the threads.
        return functional.layer_norm(y_NSD, (d,)) * self.scale + self.shift


class FqFormer(nn.Module):
    """c = W_p flatten(X_n[:, :Q]) + b_p with X_0 = [P; tokens], one linear map a kind of token.

    A kind of token has its own map and no place: tokens of one kind may be exchanged. With all
    tokens masked c is a function of the queries alone.
    """

    def __init__(self, widths: Sequence[int], config: FormerConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = nn.ModuleList(nn.Linear(width, config.dim) for width in widths)
        self.queries = nn.Parameter(torch.empty(config.queries, config.dim))
        nn.init.xavier_uniform_(self.queries)
        self.layers = nn.ModuleList(
            Attention(config.dim, config.heads) for _ in range(config.layers)
        )
        self.project = nn.Linear(config.queries * config.dim, config.dim)

    def forward(self, tokens: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
        """Vectors c [N, D] of tokens [N, T_k, width_k]; bool [N, T_k] says which there are."""
        c = self.config
        n = len(tokens[0])
        parts = [self.queries.expand(n, c.queries, c.dim)]
        parts += [project(x) for project, x in zip(self.inputs, tokens, strict=True)]
        x_NSD = torch.cat(parts, 1)
        kept_NS = torch.cat([kept[0].new_ones(n, c.queries), *kept], 1)
        for layer in self.layers:
            x_NSD = layer(x_NSD, kept_NS)
        out: Tensor = self.project(x_NSD[:, : c.queries].flatten(1))
        return out
