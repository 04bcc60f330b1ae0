"""Adam over all dense parameters as one flat vector, bad steps masked, weights averaged.

One form for the host, compiled into a single pass, and one of torch operations for any device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

F32 = NDArray[np.float32]

EARLY_SHARE = 4.0
"""A plain mean (1) keeps the first, bad weights too long: it costs .01 of log loss on the first
16,000 rows of a stream, 8 loses later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Adam's constants (Kingma and Ba 2015), and over how many rows its weights are averaged.

    Predictions use the average, learning the weights themselves; 0 averages nothing. In rows and
    not in steps, so that it means the same for any batch size. Until the horizon is reached, the
    newest weights have the share EARLY_SHARE / steps.
    """

    lr: float = 4e-3
    beta1: float = 0.5
    beta2: float = 0.999
    eps: float = 1e-8
    averaged_rows: int = 8_000

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ValueError(f"Adam: lr and eps > 0, betas in [0, 1), got {self}")
        if self.averaged_rows < 0:
            raise ValueError(f"Adam: averaged_rows must be at least 0, got {self.averaged_rows}")


class FlatAdam:
    """Owns flat weights `w`, gradients `g`, moments `m`, `v`, step count `t`, and `average`.

    The parameters become views of `w` and their gradients views of `g`; so gradients are zeroed by
    `zero_grad` here and must never be set to None. `average` decays exponentially (Polyak and
    Juditsky 1992, with a horizon, since a stream has no end); it is `w` itself where nothing is
    averaged.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: AdamConfig) -> None:
        self.config = config
        parameters = list(parameters)
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.w = flat.clone()
        self.average = flat.clone() if config.averaged_rows else self.w
        self.g, self.m, self.v = (torch.zeros_like(flat) for _ in range(3))
        self.t = torch.zeros((), device=flat.device)
        self.born: list[tuple[int, int]] = [(0, 0)]
        """Runs of parameters by age: (first place, step before their first). A parameter that
        joins later has its own count of steps, or its first ones would be many times too long."""
        at = 0
        for p in parameters:
            n = p.numel()
            p.data = self.w[at : at + n].view(p.shape)
            p.grad = self.g[at : at + n].view(p.shape)
            at += n

    def show_average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the parameters of another copy of the net views of `average`."""
        at = 0
        for p in parameters:
            n = p.numel()
            p.data = self.average[at : at + n].view(p.shape)
            at += n
        assert at == len(self.average)

    def zero_grad(self) -> None:
        """Before each backward pass."""
        self.g.zero_()

    @torch.no_grad()
    def step(self, ok: Tensor, rows: int = 1) -> None:
        """One step over `rows` where `ok` (bool, 0-dim, on the device); else nothing changes.

        A zero gradient alone would still decay the moments, so `ok` scales every change.
        """
        c = self.config
        share = rows / c.averaged_rows if c.averaged_rows else 1.0
        if self.w.device.type == "cpu":
            if ok:
                self.t += 1
                for start, stop, before in self._runs():
                    self._host_step(slice(start, stop), float(self.t) - before, share)
            return
        self.t += ok.float()
        for start, stop, before in self._runs():
            self._device_step(ok, slice(start, stop), before, share)

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """(first place, end, step before the first) of parameters of one age."""
        ends = [*(start for start, _ in self.born[1:]), len(self.w)]
        for (start, before), end in zip(self.born, ends, strict=True):
            yield start, end, before

    def _device_step(self, ok: Tensor, run: slice, before: int, share: float) -> None:
        c, kept = self.config, ok.float()
        w, m, v = self.w[run], self.m[run], self.v[run]
        g = torch.where(ok, self.g[run], 0.0)
        t = (self.t - before).clamp(min=1.0)  # a bad first step must not give 0 / 0
        m.lerp_(g, (1 - c.beta1) * kept)
        v.lerp_(g * g, (1 - c.beta2) * kept)
        scale = kept * c.lr / (1 - c.beta1**t)
        root = (v / (1 - c.beta2**t)).sqrt_().add_(c.eps)
        w.sub_(m.mul(scale).div_(root))
        if c.averaged_rows:
            rate = (EARLY_SHARE / t).clamp(min=min(share, 1.0), max=1.0) * kept
            self.average[run].lerp_(w, rate)

    def _host_step(self, run: slice, t: float, share: float) -> None:
        c = self.config
        _adam(
            self.w[run].numpy(), self.average[run].numpy(), self.g[run].numpy(),
            self.m[run].numpy(), self.v[run].numpy(),
            np.float32(1 - c.beta1), np.float32(1 - c.beta2), np.float32(c.lr / (1 - c.beta1**t)),
            np.float32((1 - c.beta2**t) ** -0.5), np.float32(c.eps),
            np.float32(min(1.0, max(share, EARLY_SHARE / t))), bool(c.averaged_rows),
        )  # fmt: skip


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _adam(
    w: F32, average: F32, g: F32, m: F32, v: F32, rate1: np.float32, rate2: np.float32,
    lr: np.float32, root_scale: np.float32, eps: np.float32, share: np.float32, averaged: bool,
) -> None:  # fmt: skip
    for i in range(len(w)):
        m[i] += rate1 * (g[i] - m[i])
        v[i] += rate2 * (g[i] * g[i] - v[i])
        w[i] -= lr * m[i] / (np.sqrt(v[i]) * root_scale + eps)
        if averaged:
            average[i] += share * (w[i] - average[i])
