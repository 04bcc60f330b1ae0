"""FGCNN's generator: new features of ordered fields by convolution, pooling and recombination.

Liu et al. 2019, section 3 (Feature Generation by Convolutional Neural Network). Knows tensors
only: which fields there are and what becomes of the features is the caller's.

Legend: B rows, N fields with spare slots, K width of a field, h fields left at a level, C channels,
M maps, G generated features.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of the generator, and which rows it reads.

    `fields`: names of id fields in the order that the convolution sees, neighbours next to each
    other; empty: all fields of the base, in order. `spare` empty slots behind them, for fields to
    come. `source`: `own` rows of `dim` floats, learned for the generator alone, or the base's rows,
    `shared`, to which no gradient goes back.
    """

    fields: tuple[str, ...] = ()
    spare: int = 0
    source: Literal["own", "shared"] = "own"
    dim: int = 8
    channels: tuple[int, ...] = (6, 8)
    kernel: int = 7
    pool: int = 2
    maps: int = 2
    rounding: Literal["ceil", "floor"] = "ceil"
    norm: Literal["layer", "none"] = "layer"

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.source not in ("own", "shared"):
            raise ValueError(f"fgcnn: source: expected own or shared, got '{self.source}'")
        if self.rounding not in ("ceil", "floor") or self.norm not in ("layer", "none"):
            raise ValueError(
                "fgcnn: expected rounding ceil or floor and norm layer or none, got "
                f"'{self.rounding}' and '{self.norm}'"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"fgcnn: kernel: expected an odd number of fields, got {self.kernel}")
        if not self.channels or min(*self.channels, self.maps, self.dim) < 1:
            raise ValueError(f"fgcnn: channels, maps and dim: at least 1, got {self}")
        if self.pool < 2 or self.spare < 0:
            raise ValueError(f"fgcnn: pool >= 2 and spare >= 0, got {self.pool}, {self.spare}")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"fgcnn: fields: a name stands twice in {list(self.fields)}")


def heights(slots: int, config: GeneratorConfig) -> list[int]:
    """h_0 = slots, then the fields left after each level's pooling.

    Raises ValueError where a level would have no field to convolve but one: it generates nothing
    that the level before has not.
    """
    rounds_up = config.rounding == "ceil"
    found = [slots]
    for level, _ in enumerate(config.channels, 1):
        if found[-1] < 2:
            raise ValueError(
                f"fgcnn: level {level} would read {found[-1]} field; {slots} slots and pool "
                f"{config.pool} allow fewer levels than the {len(config.channels)} channels"
            )
        found.append(-(-found[-1] // config.pool) if rounds_up else found[-1] // config.pool)
    return found


def generated(slots: int, config: GeneratorConfig) -> int:
    """How many features the generator makes: the sum of h_i M over its levels."""
    return sum(h * config.maps for h in heights(slots, config)[1:])


class Level(nn.Module):
    """One level: C = tanh(norm(conv(S) + b)), S' = max-pool(C), R = tanh(W S' + b)."""

    def __init__(
        self, pooled: int, width: int, channels: tuple[int, int], c: GeneratorConfig
    ) -> None:
        super().__init__()
        self.pooled, self.width, self.features, self.config = pooled, width, pooled * c.maps, c
        self.conv = nn.Linear(channels[0] * c.kernel, channels[1])
        self.recombine = nn.Linear(pooled * width * channels[1], self.features * width)

    def convolved(self, maps_BhKC: Tensor) -> Tensor:
        """C [B, h, K, C']: along the fields alone, zeros beyond the first and the last."""
        b, h, k, _ = maps_BhKC.shape
        around = self.config.kernel // 2
        padded = functional.pad(maps_BhKC, (0, 0, 0, 0, around, around))
        windows = padded.unfold(1, self.config.kernel, 1).reshape(b * h * k, self.conv.in_features)
        # One product of rows and not conv2d: the library may choose another algorithm, and other
        # last bits, for another number of rows.
        summed = self.conv(windows).view(b, h, k, self.conv.out_features)
        if self.config.norm == "layer":
            summed = functional.layer_norm(summed, summed.shape[1:])
        return torch.tanh(summed)

    def pool(self, maps_BhKC: Tensor) -> Tensor:
        """S [B, h', K, C']: the greatest of `pool` neighbours.

        Rounding up, the first window is the one that lacks fields (for `pool` = 2 as the public
        layer of FuxiCTR has it); rounding down, the last fields that fill no window are left out.
        """
        b, h, k, c = maps_BhKC.shape
        p = self.config.pool
        if self.config.rounding == "ceil":
            maps_BhKC = functional.pad(maps_BhKC, (0, 0, 0, 0, -h % p, 0), value=-torch.inf)
        else:
            maps_BhKC = maps_BhKC[:, : self.pooled * p]
        return maps_BhKC.reshape(b, self.pooled, p, k, c).amax(2)

    def forward(self, maps_BhKC: Tensor) -> tuple[Tensor, Tensor]:
        """S' for the next level, and R [B, h' M, K]."""
        pooled_BhKC = self.pool(self.convolved(maps_BhKC))
        features = torch.tanh(self.recombine(pooled_BhKC.flatten(1)))
        return pooled_BhKC, features.view(len(features), self.features, self.width)


class Generator(nn.Module):
    """[B, N, K] fields to [B, G, K] generated features in (-1, 1), level after level."""

    def __init__(self, slots: int, width: int, config: GeneratorConfig) -> None:
        super().__init__()
        sizes = heights(slots, config)
        channels = itertools.pairwise((1, *config.channels))
        self.levels = nn.ModuleList(
            Level(pooled, width, pair, config)
            for pooled, pair in zip(sizes[1:], channels, strict=True)
        )

    def forward(self, fields_BNK: Tensor) -> Tensor:
        """The features of all levels; the pooled maps, not the features, feed the next level."""
        maps_BhKC, found = fields_BNK.unsqueeze(3), []
        for level in self.levels:
            maps_BhKC, features = level(maps_BhKC)
            found.append(features)
        return torch.cat(found, 1)
