"""One history of codes pooled for its target: by attention, and over the entries that share a code.

On the CPU in two compiled loops that read each entry once; elsewhere in torch's operations, which
say the same. Knows no module and no table.

Legend: B rows, L entries, S codes of an entry, each with U distinct rows of D columns, K = S D, C
codes by which entries are matched with the target, N blocks of D columns that are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from learners.id_kernels import F32, I32, I64

OUT_OF_SIGHT = -1e9
"""Score of an entry without codes: its weight is exactly 0 beside any other."""


ATTENTION = -1
"""Form of a block: pooled by attention; from 0 on: over the entries that share that one of C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Keys of codes, 0 for none: `entries` S arrays [B, L] and `own` S arrays [B, 1] of the target.

    `matched`: places among S of the codes by which entries are matched. `blocks`: what is asked
    for, each a form and the place among S of the code whose rows are pooled; those of attention
    come first, one for each of S.
    """

    entries: tuple[I64, ...]
    own: tuple[I64, ...]
    matched: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]


def pooled_history(
    rows: tuple[Tensor, ...], index: tuple[Tensor, ...], query_BK: Tensor | None,
    bias_1C: Tensor | None, keys: Keys,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Pooled rows float32 [B, N, D], and how many entries share each code, [B, C].

    `rows`: S tensors [U, D], `index`: places among them, S tensors int32 [B, L]. By attention, if
    there is a query: softmax over coded entries of query . row / sqrt(K) plus the biases of the
    codes shared, 0 where target or history has no code. By match: means over the entries that
    share a code, 0 where none does.
    """
    if rows[0].device.type == "cpu":
        none = torch.zeros(0, 0)
        pooled_BND, counts_BC = _Pool.apply(
            keys, index, query_BK is not None, none if query_BK is None else query_BK,
            none if bias_1C is None else bias_1C, *rows,
        )  # fmt: skip
        return pooled_BND, counts_BC
    return _by_operations(rows, index, query_BK, bias_1C, keys)


def _by_operations(
    rows: tuple[Tensor, ...], index: tuple[Tensor, ...], query_BK: Tensor | None,
    bias_1C: Tensor | None, keys: Keys,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows_SBLD = [functional.embedding(i, r) for i, r in zip(index, rows, strict=True)]
    rows_BLK = torch.cat(rows_SBLD, 2)

    def put(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(rows_BLK.device)

    matched_BCL = put(np.stack([
        (keys.entries[s] == keys.own[s]) & (keys.own[s] != 0) for s in keys.matched
    ], 1).astype(np.float32))  # fmt: skip
    counts_BC = matched_BCL.sum(2)
    weights_BCL = matched_BCL / counts_BC.clamp(min=1).unsqueeze(2)
    weights = {c: weights_BCL[:, c : c + 1] for c in range(len(keys.matched))}
    if query_BK is not None:
        assert bias_1C is not None
        scores_BL = torch.bmm(rows_BLK, query_BK.unsqueeze(2)).squeeze(2)
        scores_BL = scores_BL / math.sqrt(rows_BLK.shape[2])
        # By row first: a sum over all entries at once would depend on the number of threads.
        bias_B1C = bias_1C.expand(len(scores_BL), -1).unsqueeze(1)
        scores_BL = scores_BL + torch.bmm(bias_B1C, matched_BCL).squeeze(1)
        coded_BL = keys.entries[0] != 0
        has_B1 = (keys.own[0] != 0) & coded_BL.any(1, keepdims=True)
        weights_BL = scores_BL.masked_fill(put(~coded_BL), OUT_OF_SIGHT).softmax(1)
        weights[ATTENTION] = (weights_BL * put(has_B1.astype(np.float32))).unsqueeze(1)
    return torch.cat([torch.bmm(weights[f], rows_SBLD[s]) for f, s in keys.blocks], 1), counts_BC


class _Pool(torch.autograd.Function):
    """The same by compiled loops, its backward pass written out."""

    @staticmethod
    def forward(
        ctx: Any, keys: Keys, index: tuple[Tensor, ...], attends: bool, query_BK: Tensor,
        bias_1C: Tensor, *rows: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        (b, length), d = index[0].shape, rows[0].shape[1]
        matched = np.array(keys.matched, np.int64)
        blocks = np.array(keys.blocks, np.int64).reshape(-1, 2)
        pooled_BND = np.zeros((b, len(blocks), d), np.float32)
        counts_BC = np.zeros((b, len(matched)), np.float32)
        weights_BL = np.zeros((b, length) if attends else (0, 0), np.float32)
        arrays = tuple(row.detach().contiguous().numpy() for row in rows)
        places = tuple(i.numpy() for i in index)
        query, bias = query_BK.detach().contiguous().numpy(), bias_1C.detach().numpy()
        _pool(
            arrays, places, keys.entries, keys.own, matched, blocks, query, bias, attends,
            weights_BL, counts_BC, pooled_BND,
        )  # fmt: skip
        ctx.saved = (arrays, places, keys, matched, blocks, query, attends, weights_BL, counts_BC)
        counts = torch.from_numpy(counts_BC)
        ctx.mark_non_differentiable(counts)
        return torch.from_numpy(pooled_BND), counts

    @staticmethod
    def backward(ctx: Any, d_pooled_BND: Tensor, _d_counts: Tensor) -> tuple[Tensor | None, ...]:
        arrays, places, keys, matched, blocks, query, attends, weights_BL, counts_BC = ctx.saved
        d_rows = tuple(np.zeros_like(array) for array in arrays)
        d_query_BK = np.zeros_like(query)
        d_bias_BC = np.zeros((len(query), len(matched)), np.float32)
        _pool_backward(
            d_pooled_BND.contiguous().numpy(), arrays, places, keys.entries, keys.own, matched,
            blocks, query, attends, weights_BL, counts_BC, d_rows, d_query_BK, d_bias_BC,
        )  # fmt: skip
        d_attention: tuple[Tensor | None, ...] = (None, None)
        if attends:
            d_bias_1C = torch.from_numpy(d_bias_BC).sum(0, keepdim=True)
            d_attention = (torch.from_numpy(d_query_BK), d_bias_1C)
        return None, None, None, *d_attention, *(torch.from_numpy(d) for d in d_rows)


@numba.njit(cache=True, nogil=True)
def _pool(
    rows: tuple[F32, ...], index: tuple[I32, ...], entries: tuple[I64, ...], own: tuple[I64, ...],
    matched: I64, blocks: I64, query_BK: F32, bias_1C: F32, attends: bool, weights_BL: F32,
    counts_BC: F32, pooled_BND: F32,
) -> None:  # fmt: skip
    b_max, length = entries[0].shape
    s_max, d_max, c_max = len(rows), rows[0].shape[1], len(matched)
    scale = np.float32(1 / math.sqrt(s_max * d_max))
    for b in range(b_max):
        for c in range(c_max):
            key = own[matched[c]][b, 0]
            if key == 0:
                continue
            count = np.float32(0)
            for i in range(length):
                if entries[matched[c]][b, i] == key:
                    count += np.float32(1)
            counts_BC[b, c] = count
        for n in range(len(blocks)):
            c, s = blocks[n]
            if c == ATTENTION or counts_BC[b, c] == 0:
                continue
            key = own[matched[c]][b, 0]
            for i in range(length):
                if entries[matched[c]][b, i] == key:
                    u = index[s][b, i]
                    for d in range(d_max):
                        pooled_BND[b, n, d] += rows[s][u, d] / counts_BC[b, c]
        if not attends or own[0][b, 0] == 0:
            continue
        for s in range(s_max):
            for i in range(length):
                u = index[s][b, i]
                score = np.float32(0)
                for d in range(d_max):
                    score += query_BK[b, s * d_max + d] * rows[s][u, d]
                weights_BL[b, i] += score * scale
        for c in range(c_max):
            key = own[matched[c]][b, 0]
            for i in range(length):
                if entries[matched[c]][b, i] == key:
                    weights_BL[b, i] += bias_1C[0, c]
        top = np.float32(-np.inf)
        for i in range(length):
            # Written so that a number that is not one spreads instead of hiding.
            if entries[0][b, i] != 0 and not weights_BL[b, i] <= top:
                top = weights_BL[b, i]
        total = np.float32(0)
        for i in range(length):
            if entries[0][b, i] == 0:
                weights_BL[b, i] = 0
            else:
                weights_BL[b, i] = np.exp(weights_BL[b, i] - top)
                total += weights_BL[b, i]
        if total == 0:
            continue
        for i in range(length):
            weights_BL[b, i] /= total
        for s in range(s_max):
            for i in range(length):
                u, weight = index[s][b, i], weights_BL[b, i]
                for d in range(d_max):
                    pooled_BND[b, s, d] += weight * rows[s][u, d]


@numba.njit(cache=True, nogil=True)
def _pool_backward(
    d_pooled_BND: F32, rows: tuple[F32, ...], index: tuple[I32, ...], entries: tuple[I64, ...],
    own: tuple[I64, ...], matched: I64, blocks: I64, query_BK: F32, attends: bool,
    weights_BL: F32, counts_BC: F32, d_rows: tuple[F32, ...], d_query_BK: F32, d_bias_BC: F32,
) -> None:  # fmt: skip
    b_max, length = entries[0].shape
    s_max, d_max, c_max = len(rows), rows[0].shape[1], len(matched)
    scale = np.float32(1 / math.sqrt(s_max * d_max))
    d_score_L = np.zeros(length, np.float32)
    for b in range(b_max):
        for n in range(len(blocks)):
            c, s = blocks[n]
            if c == ATTENTION or counts_BC[b, c] == 0:
                continue
            key = own[matched[c]][b, 0]
            for i in range(length):
                if entries[matched[c]][b, i] == key:
                    u = index[s][b, i]
                    for d in range(d_max):
                        d_rows[s][u, d] += d_pooled_BND[b, n, d] / counts_BC[b, c]
        if not attends or own[0][b, 0] == 0:
            continue
        d_score_L[:] = 0
        for s in range(s_max):
            for i in range(length):
                u = index[s][b, i]
                d_weight = np.float32(0)
                for d in range(d_max):
                    d_weight += d_pooled_BND[b, s, d] * rows[s][u, d]
                d_score_L[i] += d_weight
        mean = np.float32(0)
        for i in range(length):
            mean += d_score_L[i] * weights_BL[b, i]
        for i in range(length):
            d_score_L[i] = weights_BL[b, i] * (d_score_L[i] - mean)
        for c in range(c_max):
            key = own[matched[c]][b, 0]
            for i in range(length):
                if entries[matched[c]][b, i] == key:
                    d_bias_BC[b, c] += d_score_L[i]
        for s in range(s_max):
            for i in range(length):
                if entries[0][b, i] == 0:
                    continue
                u, weight, d_score = index[s][b, i], weights_BL[b, i], d_score_L[i] * scale
                for d in range(d_max):
                    k = s * d_max + d
                    d_query_BK[b, k] += d_score * rows[s][u, d]
                    d_rows[s][u, d] += weight * d_pooled_BND[b, s, d] + d_score * query_BK[b, k]
