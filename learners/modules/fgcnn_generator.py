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

from learners.modules.small_max import window_max
from learners.row_products import Weights, check_product


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
    """One level: C = tanh(norm(conv(S) + b)), S' = max-pool(C), R = tanh(W S' + b).

    As tanh never falls, S' is the tanh of what is pooled: the same numbers for half the work.

    Maps are [B, K, h C]: coordinate, field, channel. The convolution is a product with the banded
    matrix of its weights, the same for each coordinate: for tens of fields that costs less than
    windows, and its bits do not depend on how many rows there are, as an algorithm of conv2d may.
    """

    def __init__(
        self, sizes: tuple[int, int], width: int, channels: tuple[int, int], c: GeneratorConfig
    ) -> None:
        super().__init__()
        self.height, self.pooled = sizes
        self.width, self.features, self.channels = width, self.pooled * c.maps, channels
        self.config = c
        self.conv = Weights(channels[0] * c.kernel, channels[1])
        height, (before, after) = self.height, channels
        check_product("conv", height * before, height * after, as_stored=True)
        self.recombine = nn.Linear(self.pooled * width * channels[1], self.features * width)
        taps = [
            torch.diag_embed(torch.ones(max(0, self.height - abs(d))), offset=d)
            for d in range(c.kernel // 2, -(c.kernel // 2) - 1, -1)
        ]
        fit = [t if len(t) == self.height else torch.zeros(self.height, self.height) for t in taps]
        bands = torch.stack(fit, 2).flatten(0, 1)  # from field, to field; then tap
        self.register_buffer("bands", bands, persistent=False)

    def convolved(self, maps_BKX: Tensor) -> Tensor:
        """C before its tanh, [B, K, h C']: along the fields alone, zeros beyond the ends."""
        h, (before, after) = self.height, self.channels
        weight = self.conv.weight.view(after, before, self.config.kernel).permute(2, 1, 0)
        banded = (self.get_buffer("bands") @ weight.flatten(1)).view(h, h, before, after)
        matrix_XY = banded.permute(0, 2, 1, 3).reshape(h * before, h * after)
        summed = maps_BKX.flatten(0, 1) @ matrix_XY + self.conv.bias.repeat(h)
        summed = summed.view(len(maps_BKX), self.width, h * after)
        if self.config.norm == "layer":
            summed = functional.layer_norm(summed, summed.shape[1:])
        return summed

    def pool(self, maps_BKX: Tensor) -> Tensor:
        """The greatest of `pool` neighbours, [B, K, h' C].

        Rounding up, the first window is the one that lacks fields (for `pool` = 2 as the public
        layer of FuxiCTR has it); rounding down, the last fields that fill no window are left out.
        """
        p, c = self.config.pool, self.channels[1]
        if self.config.rounding == "ceil":
            maps_BKX = functional.pad(maps_BKX, (-self.height % p * c, 0), value=-torch.inf)
        else:
            maps_BKX = maps_BKX[:, :, : self.pooled * p * c]
        shape = (len(maps_BKX), self.width, self.pooled, p, c)
        return window_max(maps_BKX.reshape(shape)).flatten(2)

    def forward(self, maps_BKX: Tensor) -> tuple[Tensor, Tensor]:
        """S' for the next level, and R [B, h' M, K]."""
        pooled_BKX = torch.tanh(self.pool(self.convolved(maps_BKX)))
        features = torch.tanh(self.recombine(pooled_BKX.flatten(1)))
        return pooled_BKX, features.view(len(features), self.features, self.width)


class Generator(nn.Module):
    """[B, N, K] fields to [B, G, K] generated features in (-1, 1), level after level."""

    def __init__(self, slots: int, width: int, config: GeneratorConfig) -> None:
        super().__init__()
        sizes = heights(slots, config)
        channels = itertools.pairwise((1, *config.channels))
        self.levels = nn.ModuleList(
            Level(pair, width, of, config)
            for pair, of in zip(itertools.pairwise(sizes), channels, strict=True)
        )

    def forward(self, fields_BNK: Tensor) -> Tensor:
        """The features of all levels; the pooled maps, not the features, feed the next level."""
        maps_BKX, found = fields_BNK.transpose(1, 2), []
        for level in self.levels:
            maps_BKX, features = level(maps_BKX)
            found.append(features)
        return torch.cat(found, 1)
