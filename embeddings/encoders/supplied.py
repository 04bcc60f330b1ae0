"""Supplied encoder: a vector that the sender of an item event made itself, of any dimension."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embeddings.item_content import ItemContent

_NAME: Final = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedConfig:
    """`dim`: length of the sender's vectors. `version`: to be changed whenever their model is."""

    dim: int
    version: str = "1"

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 65_536:
            raise ValueError(f"supplied vectors: dim must be 1 to 65536, got {self.dim}")
        if not _NAME.fullmatch(self.version):
            raise ValueError("supplied vectors: version must be 1 to 64 letters, digits, . _ or -")


class SuppliedEncoder:
    """The entry `name` of an item's `vectors`, at unit length."""

    def __init__(self, name: str, config: SuppliedConfig) -> None:
        """Raises ValueError for a name that cannot be in a version."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"supplied vectors: bad name '{name}'; use letters, digits, . _ or -")
        self._name, self._config = name, config
        self.refused = 0
        """Vectors so far of a wrong length, without a direction, or not finite."""

    @property
    def version(self) -> str:
        """Name, length and the configured version of the sender's model."""
        return f"supplied-{self._name}-{self._config.dim}-{self._config.version}"

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._config.dim

    def read_of(self, item: ItemContent) -> object:
        """The sender's vector of that name."""
        given = item.vectors.get(self._name)
        return given if given is None or isinstance(given, bytes) else list(given)

    def refusals(self) -> Mapping[str, int]:
        """Vectors so far that could not be used."""
        return {"supplied_vector": self.refused} if self.refused else {}

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 of unit length; `present_B` False where it is absent or unusable."""
        vectors_BD = np.zeros((len(items), self.dim), np.float32)
        present_B = np.zeros(len(items), np.bool_)
        for row, item in enumerate(items):
            given = item.vectors.get(self._name)
            if given is None:
                continue
            unit = self._unit(given)
            if unit is None:
                self.refused += 1
            else:
                vectors_BD[row], present_B[row] = unit, True
        return vectors_BD, present_B

    def _unit(self, given: Sequence[float] | bytes) -> NDArray[np.float64] | None:
        try:
            numbers = np.frombuffer(given, "<f4") if isinstance(given, bytes) else np.array(given)
            numbers = numbers.astype(np.float64)
        except (ValueError, TypeError, OverflowError):
            return None
        if numbers.shape != (self.dim,) or not np.isfinite(numbers).all():
            return None
        largest = float(np.abs(numbers).max())
        if largest < 1e-30:
            return None
        scaled = numbers / largest
        unit: NDArray[np.float64] = scaled / np.sqrt((scaled**2).sum())
        return unit
