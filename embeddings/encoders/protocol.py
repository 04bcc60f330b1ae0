"""Encoder: the contract of everything that turns item content into vectors. Implements none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embeddings.item_content import ItemContent


class Encoder(Protocol):
    """Item content to vectors. One item's vector never depends on the other items of its batch."""

    @property
    def version(self) -> str:
        """Names the vector space: vectors of two versions must never meet in one store."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 and `present_B`, False (a row of zeros) where there is no vector."""
        ...
