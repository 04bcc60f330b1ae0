"""Hashed text encoder: words and pieces of words of an item's text, by signed hashing.

Learns nothing, needs no weights, and knows no language: what it sees is shared spelling.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.encoders.text import text_of
from embeddings.item_content import ItemContent

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_ALGORITHM: Final = 1
"""Raised whenever equal text would get another vector."""

_CHARACTERS_PER_BLOCK: Final = 1 << 18
_WORD: Final = re.compile(r"[^\W_]+")
_BASE: Final = 0x2545F4914F6CDD1D
_BASE_INVERSE: Final = pow(_BASE, -1, 1 << 64)
_SPACE: Final = ord(" ")
_WORDS_SALT, _PIECES_SALT = 0x51, 0x52


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedTextConfig:
    """Runs of 1 to `words` words, and of `pieces_min` to `pieces_max` characters within a word.

    `pieces_weight`: weight of a run of characters beside 1 for one of words; 0 leaves them out.
    """

    dim: int = 256
    seed: int = 0
    words: int = 2
    pieces_min: int = 3
    pieces_max: int = 5
    pieces_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 4096:
            raise ValueError(f"text encoder: dim must be 1 to 4096, got {self.dim}")
        if not 1 <= self.words <= 5:
            raise ValueError(f"text encoder: words must be 1 to 5, got {self.words}")
        if not 2 <= self.pieces_min <= self.pieces_max <= 8:
            raise ValueError("text encoder: expected 2 <= pieces_min <= pieces_max <= 8")
        if not 0 <= self.pieces_weight <= 10:
            raise ValueError("text encoder: pieces_weight must be 0 to 10")


class HashedTextEncoder:
    """Unit vectors of hashed n-grams: x_h(t) += s(t) w(t) (1 + ln tf(t)) for each distinct n-gram.

    Signed feature hashing (Weinberger et al. 2009, section 2) with sublinear counts: the cosine of
    two texts is that of their n-gram counts, with an error of about 1 / sqrt(dim). Sums run in the
    order of an item's own hashes, so a vector has the same bits in whatever batch it is made.
    """

    def __init__(self, config: HashedTextConfig) -> None:
        self._config = config
        digest = xxhash.xxh3_64_hexdigest(json.dumps(asdict(config), sort_keys=True).encode())
        self._version = f"text-{_ALGORITHM}-{config.dim}-{digest}"

    @property
    def version(self) -> str:
        """Algorithm, dimension and hash of the configuration."""
        return self._version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._config.dim

    def read_of(self, item: ItemContent) -> object:
        """Title and text."""
        return text_of(item)

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 of unit length, and `present_B`: False for an item without words."""
        vectors_BD = np.zeros((len(items), self.dim), np.float32)
        present_B = np.zeros(len(items), np.bool_)
        rows: list[int] = []
        texts: list[str] = []
        room = _CHARACTERS_PER_BLOCK
        for row, item in enumerate(items):
            if text := plain_words(text_of(item)):
                rows.append(row)
                texts.append(text)
                room -= len(text)
            if texts and (room <= 0 or row == len(items) - 1):
                block_BD, alive_B = self._encode_block(texts)
                vectors_BD[rows], present_B[rows] = block_BD, alive_B
                rows, texts, room = [], [], _CHARACTERS_PER_BLOCK
        if texts:
            vectors_BD[rows], present_B[rows] = self._encode_block(texts)
        return vectors_BD, present_B

    def _encode_block(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors of texts of words; False where opposite n-grams have cancelled out."""
        ngrams = _NGrams(texts, self._config.seed)
        families = [ngrams.words(n) for n in range(1, self._config.words + 1)]
        weights = [1.0] * len(families)
        if self._config.pieces_weight:
            sizes = range(self._config.pieces_min, self._config.pieces_max + 1)
            families += [ngrams.pieces(n) for n in sizes]
            weights += [self._config.pieces_weight] * len(sizes)
        of_T = np.concatenate([of for of, _ in families])
        hash_T = np.concatenate([hashes for _, hashes in families])
        weight_T = np.repeat(weights, [len(of) for of, _ in families])
        order = np.lexsort((hash_T, of_T))
        of_T, hash_T, weight_T = of_T[order], hash_T[order], weight_T[order]
        first_T = np.ones(len(of_T), np.bool_)
        first_T[1:] = (of_T[1:] != of_T[:-1]) | (hash_T[1:] != hash_T[:-1])
        starts = np.flatnonzero(first_T)
        counts = np.diff(np.append(starts, len(of_T)))
        of_T, hash_T = of_T[starts], hash_T[starts]
        sign_T = np.where(hash_T >> np.uint64(63), -1.0, 1.0)
        values_T = sign_T * weight_T[starts] * (1.0 + np.log(counts))
        place_T = of_T * self.dim + (hash_T % np.uint64(self.dim)).astype(np.int64)
        sums = np.bincount(place_T, values_T, len(texts) * self.dim)
        sums_BD = sums.reshape(len(texts), self.dim)
        norm_B = np.sqrt((sums_BD**2).sum(axis=1))
        alive_B = norm_B > 1e-9
        sums_BD[alive_B] /= norm_B[alive_B, None]
        sums_BD[~alive_B] = 0
        return sums_BD.astype(np.float32), alive_B


class _NGrams:
    """Hashes of runs of words and characters, each found in a few operations on a whole block.

    A run's hash is the difference of two prefix sums of (mixed character) x base^place, shifted
    back to place 0: a polynomial hash modulo 2^64, then mixed.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        block = "".join(f" {text} " for text in texts)
        codes_C = np.frombuffer(block.encode("utf-32-le"), np.uint32)
        self._space_C = codes_C == _SPACE
        self._text_C = np.repeat(np.arange(len(texts)), [len(text) + 2 for text in texts])
        mixed_C = mix(codes_C + np.uint64(seed * _BASE & (2**64 - 1)))
        size = len(codes_C) + 1
        self._sums = np.concatenate(([np.uint64(0)], np.cumsum(mixed_C * _powers(_BASE, size - 1))))
        self._back = _powers(_BASE_INVERSE, size)
        self._starts = np.flatnonzero(~self._space_C[1:] & self._space_C[:-1]) + 1
        self._ends = np.flatnonzero(self._space_C[1:] & ~self._space_C[:-1]) + 1

    def words(self, n: int) -> tuple[I64, U64]:
        """Text and hash of each run of n words of one text."""
        count = max(len(self._starts) - n + 1, 0)
        starts, ends = self._starts[:count], self._ends[n - 1 :]
        same = self._text_C[starts] == self._text_C[ends - 1]
        return self._hashed(starts[same], ends[same], _WORDS_SALT)

    def pieces(self, n: int) -> tuple[I64, U64]:
        """Text and hash of each run of n characters within one word and a space either side."""
        count = max(len(self._space_C) - n + 1, 0)
        spaces = np.concatenate(([0], np.cumsum(self._space_C)))
        starts = np.arange(count)
        inner = spaces[starts + n - 1] == spaces[starts + 1]
        blank = self._space_C[starts] & self._space_C[starts + n - 1] if n == 2 else False
        starts = starts[inner & ~np.asarray(blank)]
        return self._hashed(starts, starts + n, _PIECES_SALT + n)

    def _hashed(self, starts: I64, ends: I64, salt: int) -> tuple[I64, U64]:
        raw = (self._sums[ends] - self._sums[starts]) * self._back[starts]
        return self._text_C[starts], mix(raw ^ mix(np.array([salt], np.uint64)))


def plain_words(text: str) -> str:
    """Words of a text in one case and form (NFKC), one space between; empty without words."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def mix(x: U64) -> U64:
    """SplitMix64's finalizer (Steele et al. 2014)."""
    z = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cast("U64", z ^ (z >> np.uint64(31)))


def _powers(base: int, n: int) -> U64:
    """base^0 to base^(n-1) modulo 2^64."""
    steps = np.full(n, base, np.uint64)
    steps[:1] = 1
    return np.multiply.accumulate(steps)
