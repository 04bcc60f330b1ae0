"""LayerNorm without parameters over few columns, where torch's own costs more than the work.

Knows nothing of what it normalises.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from learners.id_kernels import F32

EPS = 1e-5


def small_norm(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) over the last axis; 0 stays 0.

    Ba, Kiros and Hinton (2016), eq. 4 without gain and bias. On the CPU a compiled loop, ten times
    as fast for 8 columns; elsewhere `layer_norm`.
    """
    if x.device.type != "cpu":
        return functional.layer_norm(x, x.shape[-1:])
    out: Tensor = _Function.apply(x)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x_ND = x.detach().contiguous().numpy().reshape(-1, x.shape[-1])
        out_ND, factor_N = np.empty_like(x_ND), np.empty(len(x_ND), np.float32)
        _normalise(x_ND, np.float32(EPS), out_ND, factor_N)
        ctx.saved = (out_ND, factor_N)
        return torch.from_numpy(out_ND).view(x.shape)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        out_ND, factor_N = ctx.saved
        d_out_ND = d_out.contiguous().numpy().reshape(out_ND.shape)
        d_x_ND = np.empty_like(out_ND)
        _backward(d_out_ND, out_ND, factor_N, d_x_ND)
        return torch.from_numpy(d_x_ND).view(d_out.shape)


@numba.njit(cache=True, nogil=True)
def _normalise(x_ND: F32, eps: np.float32, out_ND: F32, factor_N: F32) -> None:
    d_max = x_ND.shape[1]
    for n in range(len(x_ND)):
        mean = np.float32(0)
        for d in range(d_max):
            mean += x_ND[n, d]
        mean /= np.float32(d_max)
        variance = np.float32(0)
        for d in range(d_max):
            out_ND[n, d] = x_ND[n, d] - mean
            variance += out_ND[n, d] * out_ND[n, d]
        factor_N[n] = np.float32(1) / np.sqrt(variance / np.float32(d_max) + eps)
        for d in range(d_max):
            out_ND[n, d] *= factor_N[n]


@numba.njit(cache=True, nogil=True)
def _backward(d_out_ND: F32, out_ND: F32, factor_N: F32, d_x_ND: F32) -> None:
    d_max = out_ND.shape[1]
    for n in range(len(out_ND)):
        mean, along = np.float32(0), np.float32(0)
        for d in range(d_max):
            mean += d_out_ND[n, d]
            along += d_out_ND[n, d] * out_ND[n, d]
        mean /= np.float32(d_max)
        along /= np.float32(d_max)
        for d in range(d_max):
            d_x_ND[n, d] = factor_N[n] * (d_out_ND[n, d] - mean - out_ND[n, d] * along)
