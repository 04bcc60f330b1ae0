"""The forward pass of EfficientNet-Lite0 in plain torch, from its weights. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

_NORM_EPSILON: Final = 1e-3

STAGES: Final = (
    (3, 1, 1, 1),
    (3, 2, 2, 6),
    (5, 2, 2, 6),
    (3, 3, 2, 6),
    (5, 3, 1, 6),
    (5, 4, 2, 6),
    (3, 1, 1, 6),
)
"""(kernel, repeats, stride, expansion) of each stage; the stem and head surround them."""


class Lite0:
    """EfficientNet-Lite0 without its classifier: ReLU6 and no squeeze-and-excitation.

    Tan and Le 2019 (arXiv:1905.11946), table 1, in the variant for small devices. Batch norms are
    folded into the convolutions before them.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        """`weights` as the PyTorch checkpoint names them; raises KeyError where one is missing."""
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}
        self._blocks = [
            (f"_blocks.{i}.", stride, repeat > 0, expansion)
            for i, (repeat, stride, expansion) in enumerate(
                (repeat, stride if repeat == 0 else 1, expansion)
                for _, repeats, stride, expansion in STAGES
                for repeat in range(repeats)
            )
        ]
        convolutions = [("_conv_stem", "_bn0"), ("_conv_head", "_bn1")]
        for at, _, _, expansion in self._blocks:
            if expansion > 1:
                convolutions.append((f"{at}_expand_conv", f"{at}_bn0"))
            convolutions += [
                (f"{at}_depthwise_conv", f"{at}_bn1"),
                (f"{at}_project_conv", f"{at}_bn2"),
            ]
        for convolution, norm in convolutions:
            weight, bias = _fold(weights, convolution, norm)
            self._folded[convolution] = weight.to(device), bias.to(device)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The head's maps [B, 1280, H / 32, W / 32] of pixels (v - 127) / 128."""
        x = functional.relu6(self._convolve(pixels_BCHW, "_conv_stem", stride=2))
        for at, stride, residual, expansion in self._blocks:
            inner = x
            if expansion > 1:
                inner = functional.relu6(self._convolve(inner, f"{at}_expand_conv"))
            name = f"{at}_depthwise_conv"
            inner = functional.relu6(self._convolve(inner, name, stride, groups=inner.shape[1]))
            inner = self._convolve(inner, f"{at}_project_conv")
            x = x + inner if residual else inner
        return functional.relu6(self._convolve(x, "_conv_head"))

    def _convolve(self, x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        """A convolution with TensorFlow's SAME padding: the odd pixel goes right and below."""
        weight, bias = self._folded[name]
        kernel = weight.shape[-1]
        if kernel > 1:
            pads = []
            for size in (x.shape[-1], x.shape[-2]):
                total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [total // 2, total - total // 2]
            x = functional.pad(x, pads)
        return functional.conv2d(x, weight, bias, stride=stride, groups=groups)


def _fold(weights: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm that follows it, in float64 first."""
    wide = {
        part: weights[f"{norm}.{part}"].double()
        for part in ("weight", "bias", "running_mean", "running_var")
    }
    scale = wide["weight"] / torch.sqrt(wide["running_var"] + _NORM_EPSILON)
    kernel = weights[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return kernel.float(), (wide["bias"] - wide["running_mean"] * scale).float()
