"""Fusion: the vectors of an item's modalities to one unit vector. Encodes nothing itself.

A modality that an item lacks is left out and the others share its weight; it is never taken as a
vector of zeros, which would look like a small but real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.encoders.hashed_text import mix
from embeddings.encoders.protocol import (
    Encoder,
    EncoderUnavailable,
    Loadable,
    read_of,
    refusals,
)
from embeddings.item_content import ItemContent
from infra.array_file import FileKind, array_file, check_format, write_array_file

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

_ALGORITHM: Final = 1
"""Raised whenever equal parts would get another fused vector."""

_FORMAT: Final = "1"
_KIND: Final = FileKind(
    what="items.mean_file", maker="`millrace pretrain mean`", error=EncoderUnavailable
)
_ITEMS_PER_CALL: Final = 256
_NORM_MIN: Final = 1e-6
"""A vector shorter than this has no direction: its modality counts as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """`dim`: length of the fused vector, projected to it where the parts' sum is another.

    `weights`: weight of a modality by its encoder's name, 1 where it has none.
    """

    dim: int = 128
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 65_536:
            raise ValueError(f"fusion: dim must be 1 to 65536, got {self.dim}")
        bad = [n for n, w in self.weights.items() if not 0 < w <= 1_000]
        if bad:
            raise ValueError(f"fusion: weights must be above 0 and at most 1000: {bad}")


class Part(NamedTuple):
    """One modality of a batch: unit vectors [B, D], zeros where `present_B` is False."""

    vectors_BD: F32
    present_B: Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Frozen means [D] of unit vectors by encoder name, and each encoder's version."""

    means: Mapping[str, F32]
    encoders: Mapping[str, str]

    @property
    def version(self) -> str:
        """A hash of names, encoder versions and all numbers."""
        digest = xxhash.xxh3_64(json.dumps(sorted(self.encoders.items())).encode())
        for name in sorted(self.means):
            digest.update(name.encode() + np.ascontiguousarray(self.means[name], "<f4").tobytes())
        return digest.hexdigest()


class FusedEncoder:
    """f = P [w_1 c_1; …; w_M c_M] at unit length; c_m = u_m - mean_m at unit length, 0 if missing.

    The cosine of two items with all modalities is the mean of the modalities' centred cosines,
    weighted by w_m^2. P is the identity, or random signs where the dimensions differ (Achlioptas
    2003, section 1.1), which adds an error of about 1 / sqrt(dim). Each row is made by itself, in
    float64: it has the same bits in every batch in which its parts have.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], config: FusionConfig, means: Means | None = None
    ) -> None:
        """Raises ValueError for weights of no encoder, EncoderUnavailable for means of another."""
        assert encoders
        unknown = sorted(set(config.weights) - set(encoders))
        if unknown:
            raise ValueError(f"fusion: weights of {unknown}, but encoders are {sorted(encoders)}")
        self._encoders, self._config = dict(encoders), config
        self._means = dict(means.means) if means else {}
        if means:
            _check_means(means, encoders)
        self._weights = {name: float(config.weights.get(name, 1.0)) for name in encoders}
        total = sum(encoder.dim for encoder in encoders.values())
        self._signs: dict[str, NDArray[np.int8]] = {}
        if total != config.dim:
            self._signs = {
                name: _signs(f"{config.seed} {name}", config.dim, encoder.dim)
                for name, encoder in encoders.items()
            }
        parts = [[name, e.version, self._weights[name]] for name, e in encoders.items()]
        stated = [_ALGORITHM, parts, config.dim, config.seed, means.version if means else ""]
        digest = xxhash.xxh3_64_hexdigest(json.dumps(stated).encode())
        self._version = f"fused-{config.dim}-{digest}"

    @property
    def version(self) -> str:
        """Dimension, and a hash of the parts' versions, their weights, means and the projection."""
        return self._version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._config.dim

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """The modalities' encoders by name."""
        return dict(self._encoders)

    def load(self) -> None:
        """Read all weights now; raises EncoderUnavailable."""
        for encoder in self._encoders.values():
            if isinstance(encoder, Loadable):
                encoder.load()

    def read_of(self, item: ItemContent) -> object:
        """What the modalities' encoders read."""
        return [read_of(encoder, item) for encoder in self._encoders.values()]

    def refusals(self) -> Mapping[str, int]:
        """Contents that the modalities' encoders could not use, by reason."""
        return refusals(*self._encoders.values())

    def encode_each(self, items: Sequence[ItemContent]) -> dict[str, Part]:
        """The modalities' own centred unit vectors, by encoder name."""
        return {
            name: centred(*encoder.encode_many(items), self._means.get(name))
            for name, encoder in self._encoders.items()
        }

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`vectors_BD` float32 of unit length; `present_B`: False where all are missing."""
        return self.fuse(self.encode_each(items))

    def fuse(self, parts: Mapping[str, Part]) -> tuple[F32, Bools]:
        """Fused vectors of what `encode_each` gave."""
        assert parts.keys() == self._encoders.keys()
        count = len(next(iter(parts.values())).present_B)
        vectors_BD = np.zeros((count, self.dim), np.float32)
        present_B = np.zeros(count, np.bool_)
        for row in range(count):
            fused_D = self._row(
                {n: p.vectors_BD[row] for n, p in parts.items() if p.present_B[row]}
            )
            norm = float(np.sqrt((fused_D**2).sum()))
            if norm > _NORM_MIN:
                vectors_BD[row], present_B[row] = fused_D / norm, True
        return vectors_BD, present_B

    def _row(self, parts: Mapping[str, F32]) -> F64:
        """The weighted parts in a row, or the sum of their projections."""
        if not self._signs:
            return np.concatenate([
                self._weights[name] * parts[name].astype(np.float64)
                if name in parts else np.zeros(encoder.dim)
                for name, encoder in self._encoders.items()
            ])  # fmt: skip
        fused_D = np.zeros(self.dim)
        for name, vector in parts.items():
            # A product of the whole batch has other bits for another number of rows.
            fused_D += self._weights[name] * (self._signs[name] * vector.astype(np.float64)).sum(1)
        return fused_D


def fused(
    encoders: Mapping[str, Encoder], config: FusionConfig, means: Means | None = None
) -> Encoder:
    """The encoders fused; a single one of the wanted length without a mean stays what it is.

    Raises as FusedEncoder does.
    """
    only = next(iter(encoders.values()))
    if len(encoders) == 1 and means is None and only.dim == config.dim:
        return only
    return FusedEncoder(encoders, config, means)


def centred(vectors_BD: F32, present_B: Bools, mean_D: F32 | None = None) -> Part:
    """Vectors at unit length, less the mean, at unit length again; without direction: missing."""
    unit_BD, present_B = _unit(vectors_BD.astype(np.float64), present_B)
    if mean_D is not None:
        unit_BD, present_B = _unit(unit_BD - mean_D.astype(np.float64), present_B)
    return Part(unit_BD.astype(np.float32), present_B)


def projected(part: Part, dim: int, name: str) -> Part:
    """Unit vectors of `dim` numbers by the sign matrix of `name`; cosines stay within 1/sqrt(dim).

    Each row by itself, so that its bits do not depend on its batch.
    """
    signs_DE = _signs(name, dim, part.vectors_BD.shape[1])
    out_BD = np.zeros((len(part.vectors_BD), dim))
    for row in np.flatnonzero(part.present_B).tolist():
        out_BD[row] = (signs_DE * part.vectors_BD[row].astype(np.float64)).sum(1)
    unit_BD, present_B = _unit(out_BD, part.present_B)
    return Part(unit_BD.astype(np.float32), present_B)


def fit_means(
    encoders: Mapping[str, Encoder],
    items: Sequence[ItemContent],
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Means:
    """Mean unit vector of each modality over the items that have it; none where no item has it."""
    sums = {name: np.zeros(encoder.dim) for name, encoder in encoders.items()}
    counts = dict.fromkeys(encoders, 0)
    for start in range(0, len(items), _ITEMS_PER_CALL):
        block = items[start : start + _ITEMS_PER_CALL]
        for name, encoder in encoders.items():
            part = centred(*encoder.encode_many(block))
            sums[name] += part.vectors_BD.sum(axis=0, dtype=np.float64)
            counts[name] += int(part.present_B.sum())
        on_progress(start + len(block), len(items))
    means = {n: (sums[n] / counts[n]).astype(np.float32) for n in encoders if counts[n]}
    return Means(means=means, encoders={name: encoders[name].version for name in means})


def write_means(path: Path, means: Means) -> None:
    """Write the safetensors file, whole or not at all. Raises OSError."""
    meta = {"format": _FORMAT, "encoders": json.dumps(dict(means.encoders))}
    write_array_file(path, {n: np.asarray(m, np.float32) for n, m in means.means.items()}, meta)


def read_means(path: Path) -> Means:
    """The means in `path`; raises EncoderUnavailable."""
    with array_file(path, _KIND) as (means, header):
        check_format(header.get("format"), _FORMAT)
        if any(mean.ndim != 1 for mean in means.values()):
            raise ValueError("a mean is not a vector")
        encoders = json.loads(header["encoders"])
    return Means(means=means, encoders=encoders)


def _check_means(means: Means, encoders: Mapping[str, Encoder]) -> None:
    for name, mean_D in means.means.items():
        encoder = encoders.get(name)
        if encoder is None:
            continue
        if means.encoders.get(name) != encoder.version or len(mean_D) != encoder.dim:
            raise EncoderUnavailable(
                f"fusion: the mean of '{name}' is of encoder '{means.encoders.get(name)}', but the "
                f"configured one is '{encoder.version}'; fit the means anew "
                "(`millrace pretrain mean`)"
            )


def _unit(vectors_BD: F64, present_B: Bools) -> tuple[F64, Bools]:
    norm_B = np.sqrt((vectors_BD**2).sum(axis=1))
    present_B = present_B & (norm_B > _NORM_MIN)
    unit_BD = np.zeros_like(vectors_BD)
    unit_BD[present_B] = vectors_BD[present_B] / norm_B[present_B, None]
    return unit_BD, present_B


def _signs(name: str, rows: int, columns: int) -> NDArray[np.int8]:
    """A fixed random sign matrix [rows, columns] of that name."""
    words = -(-columns // 64)
    counters = np.arange(rows * words, dtype=np.uint64).reshape(rows, words)
    start = np.uint64(xxhash.xxh3_64_intdigest(name.encode()))
    bits = mix(mix(counters + start)).astype("<u8").view(np.uint8)
    ones = np.unpackbits(bits, axis=1, count=columns, bitorder="little")
    return (ones.astype(np.int8) << 1) - np.int8(1)
