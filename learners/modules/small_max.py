"""Maximum over windows of few places, where torch's own gradient costs more than the maximum.

Knows nothing of what it compares.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.id_kernels import F32

U8 = NDArray[np.uint8]


def window_max(x_BKHPC: Tensor) -> Tensor:
    """The maximum over the fourth of five axes, float32 [B, K, H, C]; the gradient goes to it.

    Among equal ones to the first. A number that is none spreads. P at most 256.
    """
    if not (x_BKHPC.requires_grad and torch.is_grad_enabled()):
        return functools.reduce(torch.maximum, x_BKHPC.unbind(3))
    if x_BKHPC.device.type != "cpu":
        return x_BKHPC.max(3).values
    assert x_BKHPC.shape[3] <= 256, x_BKHPC.shape
    out: Tensor = _Function.apply(x_BKHPC)
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        b, k, h, p, c = x.shape
        out_NC, place_NC = np.empty((b * k * h, c), np.float32), np.empty((b * k * h, c), np.uint8)
        _max(x.detach().contiguous().numpy().reshape(-1, p, c), out_NC, place_NC)
        ctx.place, ctx.shape = place_NC, x.shape
        return torch.from_numpy(out_NC).view(b, k, h, c)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        p, c = ctx.shape[3:]
        d_NPC = np.zeros((len(ctx.place), p, c), np.float32)
        _back(d_out.contiguous().numpy().reshape(-1, c), ctx.place, d_NPC)
        return torch.from_numpy(d_NPC).view(ctx.shape)


@numba.njit(cache=True, nogil=True)
def _max(x_NPC: F32, out_NC: F32, place_NC: U8) -> None:
    for n in range(x_NPC.shape[0]):
        for c in range(x_NPC.shape[2]):
            best, place = x_NPC[n, 0, c], 0
            for p in range(1, x_NPC.shape[1]):
                # Written so that a number that is none wins.
                if not x_NPC[n, p, c] <= best and best == best:  # noqa: PLR0124 - is it a number
                    best, place = x_NPC[n, p, c], p
            out_NC[n, c], place_NC[n, c] = best, place


@numba.njit(cache=True, nogil=True)
def _back(d_out_NC: F32, place_NC: U8, d_NPC: F32) -> None:
    for n in range(d_NPC.shape[0]):
        for c in range(d_NPC.shape[2]):
            d_NPC[n, place_NC[n, c], c] = d_out_NC[n, c]
