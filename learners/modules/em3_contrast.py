"""Content-ID contrast: content and id embedding of one item pulled together. Holds no item.

CIC of EM3 (arXiv 2404.06078), section 4 of its brief. Legend: N distinct items, D dimension.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

NEGATIVES = 16
IdGradient = Literal["plain", "mature", "cold"]


class ContentIdContrast(nn.Module):
    """L_CIC over normalised projections L_c c and L_i e, both linear maps with bias."""

    def __init__(self, content_dim: int, id_dim: int, *, temperature: float) -> None:
        super().__init__()
        self.content = nn.Linear(content_dim, content_dim)
        self.ids = nn.Linear(id_dim, content_dim)
        self.temperature = temperature

    def forward(self, content_ND: Tensor, ids_NE: Tensor, draws_NN: Tensor) -> Tensor:
        """The mean loss; `draws_NN` says how often each other item is an item's negative."""
        content_ND, ids_ND = self.projected(content_ND, ids_NE)
        return contrast(content_ND @ ids_ND.t() / self.temperature, draws_NN)

    def projected(self, content_ND: Tensor, ids_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections, c' and e', of unit length."""
        return (
            functional.normalize(self.content(content_ND), eps=1e-5),
            functional.normalize(self.ids(ids_NE), eps=1e-5),
        )


def contrast(similarity_NN: Tensor, draws_NN: Tensor) -> Tensor:
    """0.5 (CE(s_c2i, 0) + CE(s_i2c, 0)), the mean over the items.

    A negative that is drawn m times counts m times: its logit plus ln m stands for all of them. The
    positive is drawn never, so that the loss has no floor.
    """
    counted_NN = (draws_NN + torch.eye(len(draws_NN), device=draws_NN.device)).log()
    positive_N = similarity_NN.diagonal()
    c2i_N = torch.logsumexp(similarity_NN + counted_NN, 1) - positive_N
    i2c_N = torch.logsumexp(similarity_NN.t() + counted_NN, 1) - positive_N
    return 0.5 * (c2i_N + i2c_N).mean()


def draw_negatives(items: int, seed: tuple[int, int]) -> Tensor:
    """float32 [N, N]: how often item j is among the 16 negatives of item i; never i itself.

    Uniform with replacement over the other items, which are distinct, so that no duplicate of the
    positive is among them; one draw for both directions.
    """
    assert items > 1, items
    rng = np.random.default_rng(seed)
    own = np.arange(items)[:, None]
    drawn = (own + 1 + rng.integers(0, items - 1, (items, NEGATIVES))) % items
    counts = np.zeros((items, items), np.float32)
    np.add.at(counts, (own, drawn), 1)
    return torch.from_numpy(counts)


def scaled_gradient(x_ND: Tensor, scale_N: Tensor) -> Tensor:
    """x, with its gradient times `scale_N`."""
    scale_N1 = scale_N.unsqueeze(1)
    return x_ND * scale_N1 + x_ND.detach() * (1 - scale_N1)


def id_scale(seen_N: NDArray[np.int64], kind: IdGradient, half: int) -> NDArray[np.float32]:
    """Scale of the gradient of an id row that was a target `seen_N` times.

    `plain` 1, as in the paper. `cold` min(1, n0 / n): young rows are pulled to content, old ones
    are left in peace. `mature` min(1, n / n0): the other way round.
    """
    n = seen_N.astype(np.float32)
    if kind == "cold":
        return np.minimum(1.0, half / np.maximum(n, 1.0)).astype(np.float32)
    if kind == "mature":
        return np.minimum(1.0, n / half).astype(np.float32)
    return np.ones(len(n), np.float32)


def loss_at_start() -> float:
    """With all logits equal: ln 17."""
    return math.log(1 + NEGATIVES)
