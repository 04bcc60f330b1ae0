"""Ledger: what was learned, as sums that any order of the same samples gives. Pure.

Together with the positions' counts and offset sums it proves by arithmetic that every sample was
learned exactly once: a replay of the log up to the positions must give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.keys import mix
from stream.positions import MASK64


@dataclass(slots=True)
class Ledger:
    """`samples` learned, and the sum modulo 2^64 of hash64(sample id, labels) over them."""

    samples: int = 0
    hash_sum: int = 0

    def add(self, key_n: NDArray[np.int64], labels_nK: NDArray[np.float32]) -> None:
        """Enter learned samples: their identities and labels."""
        bits = (labels_nK > 0) @ (1 << np.arange(labels_nK.shape[1], dtype=np.int64))
        hashed = mix(mix(key_n.view(np.uint64)) + bits.astype(np.uint64) + np.uint64(1))
        self.samples += len(key_n)
        self.hash_sum = (self.hash_sum + int(hashed.sum(dtype=np.uint64))) & MASK64

    def to_map(self) -> dict[str, Any]:
        """A msgpack-able map."""
        return {"samples": self.samples, "hash_sum": self.hash_sum}

    @classmethod
    def from_map(cls, value: dict[str, Any]) -> Ledger:
        """The inverse of `to_map`."""
        return cls(**value)
