"""Content-ID contrast: content and id embedding of one item pulled together. Holds no item.

CIC of EM3 (arXiv 2404.06078), section 4 of its brief.

Legend: N distinct items, M negatives of each, D dimension.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from learners.id_kernels import F32, I64

NEGATIVES = 16
IdGradient = Literal["plain", "mature", "cold"]


class ContentIdContrast(nn.Module):
    """L_CIC over normalised projections L_c c and L_i e, both linear maps with bias."""

    def __init__(self, content_dim: int, id_dim: int, *, temperature: float) -> None:
        super().__init__()
        self.content = nn.Linear(content_dim, content_dim)
        self.ids = nn.Linear(id_dim, content_dim)
        self.temperature = temperature

    def forward(self, content_ND: Tensor, ids_NE: Tensor, drawn_NM: I64) -> Tensor:
        """The mean loss; `drawn_NM`: each item's negatives, see `draw_negatives`."""
        content_ND, ids_ND = self.projected(content_ND, ids_NE)
        if content_ND.device.type == "cpu":
            loss: Tensor = _Sampled.apply(content_ND, ids_ND, drawn_NM, self.temperature)
            return loss
        draws_NN = torch.from_numpy(counted(drawn_NM)).to(content_ND.device)
        return contrast(content_ND @ ids_ND.t() / self.temperature, draws_NN)

    def projected(self, content_ND: Tensor, ids_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections, c' and e', of unit length."""
        return (
            functional.normalize(self.content(content_ND), eps=1e-5),
            functional.normalize(self.ids(ids_NE), eps=1e-5),
        )


def contrast(similarity_NN: Tensor, draws_NN: Tensor) -> Tensor:
    """0.5 (CE(s_c2i, 0) + CE(s_i2c, 0)), the mean over the items.

    `draws_NN`: how often each item is another's negative. One that is drawn m times counts m times:
    its logit plus ln m stands for all of them. The positive is drawn never, so that the loss has no
    floor.
    """
    counted_NN = (draws_NN + torch.eye(len(draws_NN), device=draws_NN.device)).log()
    positive_N = similarity_NN.diagonal()
    c2i_N = torch.logsumexp(similarity_NN + counted_NN, 1) - positive_N
    i2c_N = torch.logsumexp(similarity_NN.t() + counted_NN, 1) - positive_N
    return 0.5 * (c2i_N + i2c_N).mean()


def draw_negatives(items: int, seed: tuple[int, int]) -> I64:
    """int64 [N, 16]: the negatives of each item, with replacement; never the item itself.

    Uniform over the other items, which are distinct, so that no duplicate of the positive is among
    them; one draw for both directions.
    """
    assert items > 1, items
    rng = np.random.default_rng(seed)
    own = np.arange(items)[:, None]
    drawn: I64 = (own + 1 + rng.integers(0, items - 1, (items, NEGATIVES))) % items
    return drawn


def counted(drawn_NM: I64) -> F32:
    """float32 [N, N]: how often item j is among the negatives of item i."""
    counts = np.zeros((len(drawn_NM), len(drawn_NM)), np.float32)
    np.add.at(counts, (np.arange(len(drawn_NM))[:, None], drawn_NM), 1)
    return counts


class _Sampled(torch.autograd.Function):
    """`contrast` of the drawn pairs alone, with the gradient in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, content_ND: Tensor, ids_ND: Tensor, drawn_NM: I64, temperature: float
    ) -> Tensor:
        c, e = (x.detach().contiguous() for x in (content_ND, ids_ND))
        d_c, d_e = torch.zeros_like(c), torch.zeros_like(e)
        scale = np.float32(1 / temperature)
        loss = _sampled(c.numpy(), e.numpy(), drawn_NM, scale, d_c.numpy(), d_e.numpy())
        ctx.save_for_backward(d_c, d_e)
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_c, d_e = ctx.saved_tensors
        return d_c * d_loss, d_e * d_loss, None, None


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(a_D: F32, b_D: F32) -> np.float32:
    total = np.float32(0)
    for d in range(len(a_D)):
        total += a_D[d] * b_D[d]
    return total


@numba.njit(cache=True, nogil=True)
def _softmax(logits: F32) -> float:
    """In place; returns the logarithm of the sum."""
    top = logits.max()
    total = np.float32(0)
    for k in range(len(logits)):
        logits[k] = np.exp(logits[k] - top)
        total += logits[k]
    for k in range(len(logits)):
        logits[k] /= total
    return float(top) + math.log(float(total))


@numba.njit(cache=True, nogil=True)
def _sampled(
    c_ND: F32, e_ND: F32, drawn_NM: I64, scale: np.float32, d_c_ND: F32, d_e_ND: F32
) -> float:
    n, m = drawn_NM.shape
    c2i, i2c = np.empty(m + 1, np.float32), np.empty(m + 1, np.float32)
    share = np.float32(0.5) * scale / np.float32(n)
    loss: float = 0.0
    for i in range(n):
        positive = _dot(c_ND[i], e_ND[i]) * scale
        c2i[0] = i2c[0] = positive
        for k in range(m):
            j = drawn_NM[i, k]
            c2i[k + 1] = _dot(c_ND[i], e_ND[j]) * scale
            i2c[k + 1] = _dot(e_ND[i], c_ND[j]) * scale
        loss += 0.5 * (_softmax(c2i) + _softmax(i2c)) - float(positive)
        own = share * (c2i[0] + i2c[0] - np.float32(2))
        for d in range(c_ND.shape[1]):
            d_c_ND[i, d] += own * e_ND[i, d]
            d_e_ND[i, d] += own * c_ND[i, d]
        for k in range(m):
            j = drawn_NM[i, k]
            a, b = share * c2i[k + 1], share * i2c[k + 1]
            for d in range(c_ND.shape[1]):
                d_c_ND[i, d] += a * e_ND[j, d]
                d_e_ND[j, d] += a * c_ND[i, d]
                d_e_ND[i, d] += b * c_ND[j, d]
                d_c_ND[j, d] += b * e_ND[i, d]
    return float(loss / n)


def scaled_gradient(x_ND: Tensor, scale_N: Tensor) -> Tensor:
    """x, with its gradient times `scale_N`."""
    scale_N1 = scale_N.unsqueeze(1)
    return x_ND * scale_N1 + x_ND.detach() * (1 - scale_N1)


def id_scale(seen_N: I64, kind: IdGradient, half: int) -> NDArray[np.float32]:
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
