"""FLIP's two losses and its masks as pure functions: which fields, how far from noise, which pair.

Wang et al. 2023 (FLIP, arXiv 2310.19453), equations of masked tabular modelling and of
instance-level contrast. Holds no weights and no state.

Legend: n rows, F fields, K noise ids, D width.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

I64 = NDArray[np.int64]


def masked_count(fields: int, share: float) -> int:
    """floor(share F), but one field at least: of 4 fields the paper's .15 would hide none."""
    return max(1, math.floor(share * fields))


def draw_masks(rng: np.random.Generator, rows: int, fields: int, share: float) -> NDArray[np.bool_]:
    """Which fields are hidden, bool [rows, F]: `masked_count` of a row, all sets alike likely."""
    order_nF = rng.random((rows, fields)).argsort(1, kind="stable")
    return order_nF < masked_count(fields, share)


def nce_loss(target_n: Tensor, noise_nK: Tensor) -> Tensor:
    """softplus(-D(v+)) + sum_k softplus(D(v-_k)) a row, float32 [n]; Gutmann and Hyvaerinen 2010.

    Arguments are score(v) - ln V - ln Q(v), as in `nce_score`; D is less by ln K. At scores of 0 a
    row costs ln(1 + K) + K ln(1 + 1/K): 4.239 for K = 25, whatever V and Q are.
    """
    k = noise_nK.shape[-1]
    log_k = math.log(k)
    return functional.softplus(log_k - target_n) + functional.softplus(noise_nK - log_k).sum(-1)


def nce_score(context_nD: Tensor, rows_vD: Tensor) -> Tensor:
    """Scores g . o_v + d_v, float32 [n, v]: ln P(v | context) - ln Q(v) at the optimum.

    `rows_vD` are [o_v, d_v]. The paper's score is this plus ln V + ln Q(v): writing the bias as
    ln Q(v) + ln V + d_v takes both out of D, so that noise may follow a vocabulary that grows.
    """
    return torch.addmm(rows_vD[:, -1], context_nD, rows_vD[:, :-1].t())


def contrast_loss(a_nD: Tensor, b_nD: Tensor, temperature: float) -> Tensor:
    """Mean of the two cross entropies of cos(a_i, b_j) / temperature; the pairs are (i, i).

    The rows must be distinct items: see `distinct_items`.
    """
    a_nD, b_nD = functional.normalize(a_nD, dim=1), functional.normalize(b_nD, dim=1)
    logits_nn = a_nD @ b_nD.t() / temperature
    own_n = logits_nn.diagonal()
    there, back = logits_nn.logsumexp(1) - own_n, logits_nn.logsumexp(0) - own_n
    return 0.5 * (there + back).mean()


def distinct_items(keys_n: I64, usable_n: NDArray[np.bool_]) -> I64:
    """Places of the first usable row of each item, rising.

    A popular item stands in a batch many times; each further row of it would be a negative of
    itself.
    """
    places = np.flatnonzero(usable_n)
    _, first = np.unique(keys_n[places], return_index=True)
    return np.sort(places[first])
