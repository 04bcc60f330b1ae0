"""Attribute encoder: a hashed multi-hot of item attributes, projected by seeded random signs.

Learns nothing and reads neither text nor pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.item_content import ItemContent, Scalar, usable_attributes

_ALGORITHM = 1
"""Raised whenever equal content would get another vector."""

_ITEMS_PER_BLOCK = 1024
_TOKENS_MAX = 4096
"""Tokens of one item that count, in the order of their hashes."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeEncoderConfig:
    """`fields` empty: all attributes. `numeric`: integer attributes that are quantities, not ids.

    Fractional numbers are always taken as quantities.
    """

    dim: int = 128
    seed: int = 0
    fields: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 4096:
            raise ValueError(f"attribute encoder: dim must be 1 to 4096, got {self.dim}")
        both = sorted(set(self.fields) & set(self.ignore))
        if both:
            raise ValueError(f"attribute encoder: {both} are in both 'fields' and 'ignore'")


class AttributeEncoder:
    """Unit-length sums of one random sign vector per (field, value) of an item.

    The cosine of two items is about (tokens in common) / sqrt(tokens of one x tokens of the other),
    with an error of about 1 / sqrt(dim): sign random projection (Achlioptas 2003, section 1.1) of a
    multi-hot vector that is never built. A token's signs are a pure function of its hash and the
    seed, and sums of signs are exact, so a vector has the same bits in whatever batch it is made.
    """

    def __init__(self, config: AttributeEncoderConfig) -> None:
        self._config = config
        self._fields = frozenset(config.fields)
        self._ignore = frozenset(config.ignore)
        self._numeric = frozenset(config.numeric)
        stated = asdict(config) | {
            n: sorted(asdict(config)[n]) for n in ("fields", "ignore", "numeric")
        }
        digest = xxhash.xxh3_64_hexdigest(json.dumps(stated, sort_keys=True).encode())
        self._version = f"attributes-{_ALGORITHM}-{config.dim}-{digest}"

    @property
    def version(self) -> str:
        """Algorithm, dimension and hash of the configuration."""
        return self._version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._config.dim

    def read_of(self, item: ItemContent) -> object:
        """The tokens that are hashed."""
        return self.tokens(item)

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 of unit length, and `present_B`: False for an item with no token."""
        vectors_BD = np.zeros((len(items), self.dim), np.float32)
        present_B = np.zeros(len(items), np.bool_)
        for start in range(0, len(items), _ITEMS_PER_BLOCK):
            block = items[start : start + _ITEMS_PER_BLOCK]
            stop = start + len(block)
            self._encode_block(block, vectors_BD[start:stop], present_B[start:stop])
        return vectors_BD, present_B

    def tokens(self, item: ItemContent) -> list[int]:
        """Hashes of the item's distinct (field, value) tokens, sorted, each within 64 bits."""
        hashes: set[int] = set()
        for name, value in usable_attributes(item.attributes).items():
            if name in self._ignore or (self._fields and name not in self._fields):
                continue
            elements = value if isinstance(value, list) else [value]
            for element in elements:
                for text in self._words(name, element):
                    hashes.add(xxhash.xxh3_64_intdigest(f"{name}\x00{text}".encode()))
        return sorted(hashes)[:_TOKENS_MAX]

    def _words(self, name: str, value: Scalar) -> Iterator[str]:
        """The word of a value, none for a missing one. The type is part of it: 5 is not "5"."""
        if value is None or value == "":
            return
        if isinstance(value, bool):
            yield f"b{int(value)}"
        elif isinstance(value, str):
            yield f"s{value}"
        elif isinstance(value, float) or name in self._numeric:
            yield f"n{_magnitude(value)}"
        else:
            yield f"i{value}"

    def _encode_block(
        self,
        items: Sequence[ItemContent],
        vectors_BD: NDArray[np.float32],
        present_B: NDArray[np.bool_],
    ) -> None:
        tokens = [self.tokens(item) for item in items]
        rows = np.array([i for i, t in enumerate(tokens) if t], np.int64)
        if not len(rows):
            return
        flat = np.fromiter((t for ts in tokens for t in ts), np.uint64)
        lengths = np.array([len(tokens[i]) for i in rows], np.int64)
        distinct, places = np.unique(flat, return_inverse=True)
        signs_TD = self._signs(distinct)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        # Sums of +-1 are integers, exact in any order; the norm is the root of an integer.
        sums_BD = np.add.reduceat(signs_TD[places], starts, axis=0, dtype=np.int32)
        squares_B = (sums_BD.astype(np.int64) ** 2).sum(axis=1)
        alive = squares_B > 0  # opposite tokens may cancel out in a few dimensions
        norms_B1 = np.sqrt(squares_B[alive].astype(np.float64))[:, None]
        vectors_BD[rows[alive]] = (sums_BD[alive] / norms_B1).astype(np.float32)
        present_B[rows[alive]] = True

    def _signs(self, tokens: NDArray[np.uint64]) -> NDArray[np.int8]:
        """Sign vectors [T, D] of tokens: bits of SplitMix64 words (Steele et al. 2014)."""
        words = -(-self.dim // 64)
        counters = np.arange(1, words + 1, dtype=np.uint64) * _GAMMA
        seeded = _mix(tokens ^ _mix(np.array([self._config.seed & (2**64 - 1)], np.uint64)))
        bits = _mix(seeded[:, None] + counters[None, :]).astype("<u8").view(np.uint8)
        ones = np.unpackbits(bits, axis=1, count=self.dim, bitorder="little")
        return (ones.astype(np.int8) << 1) - np.int8(1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer."""
    z = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _magnitude(value: float) -> str:
    """Sign and binary order of magnitude: 0, or [2^k, 2^(k+1)) of either sign."""
    if value == 0:
        return "0"
    exponent = math.frexp(abs(value))[1]
    return f"{'-' if value < 0 else '+'}{exponent}"
