"""Adam over all dense parameters as one flat vector, with bad steps masked on the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Adam's constants (Kingma and Ba 2015)."""

    lr: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ValueError(f"Adam: lr and eps > 0, betas in [0, 1), got {self}")


class FlatAdam:
    """Owns the flat weights `w`, gradients `g`, moments `m`, `v` and step count `t`.

    The parameters become views of `w` and their gradients views of `g`; so gradients are zeroed by
    `zero_grad` here and must never be set to None.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: AdamConfig) -> None:
        self.config = config
        parameters = list(parameters)
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.w = flat.clone()
        self.g, self.m, self.v = (torch.zeros_like(flat) for _ in range(3))
        self.t = torch.zeros((), device=flat.device)
        at = 0
        for p in parameters:
            n = p.numel()
            p.data = self.w[at : at + n].view(p.shape)
            p.grad = self.g[at : at + n].view(p.shape)
            at += n

    def zero_grad(self) -> None:
        """Before each backward pass."""
        self.g.zero_()

    @torch.no_grad()
    def step(self, ok: Tensor) -> None:
        """One step where `ok` (bool, 0-dim, on the device) holds; else nothing changes at all.

        A zero gradient alone would still decay the moments, so `ok` scales every change.
        """
        c, kept = self.config, ok.float()
        g = torch.where(ok, self.g, 0.0)
        self.t += kept
        t = self.t.clamp(min=1.0)  # a bad first step must not give 0 / 0
        self.m.lerp_(g, (1 - c.beta1) * kept)
        self.v.lerp_(g * g, (1 - c.beta2) * kept)
        scale = kept * c.lr / (1 - c.beta1**t)
        root = (self.v / (1 - c.beta2**t)).sqrt_().add_(c.eps)
        self.w.sub_(self.m.mul(scale).div_(root))
