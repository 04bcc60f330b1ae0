"""Adam with decoupled weight decay, of a module's few parameters. Knows no schedule.

Not torch.optim: its first step imports torch's compiler, 7 s of processor time, which is more than
many a training here takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Adam:
    """Steps on all parameters of a module (Loshchilov and Hutter 2019, algorithm 2)."""

    def __init__(self, module: nn.Module, lr: float, weight_decay: float) -> None:
        self._named = dict(module.named_parameters())
        self._lr, self._decay = lr, weight_decay
        self._mean = {name: torch.zeros_like(p) for name, p in self._named.items()}
        self._square = {name: torch.zeros_like(p) for name, p in self._named.items()}
        self._steps = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients."""
        self._steps += 1
        t = int(self._steps)
        for name, parameter in self._named.items():
            assert parameter.grad is not None, name
            mean = self._mean[name].lerp_(parameter.grad, 1 - _BETA1)
            square = self._square[name].lerp_(parameter.grad**2, 1 - _BETA2)
            root = (square / (1 - _BETA2**t)).sqrt_().add_(_EPS)
            parameter.mul_(1 - self._lr * self._decay)
            parameter.addcdiv_(mean, root, value=-self._lr / (1 - _BETA1**t))

    def state(self) -> dict[str, Tensor]:
        """All that it remembers, by name; the tensors themselves, to read or to overwrite."""
        moments = {f"mean.{name}": tensor for name, tensor in self._mean.items()}
        moments |= {f"square.{name}": tensor for name, tensor in self._square.items()}
        return moments | {"steps": self._steps}
