"""Table encoder: vectors that were made beforehand, by item id. Looks at no content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embeddings.item_content import ItemContent
from embeddings.vector_file import VectorFile


class TableEncoder:
    """The vector of an item's id in a file of item vectors; an unknown item has none."""

    def __init__(self, file: VectorFile) -> None:
        self._file = file
        self._rows = {item_id: row for row, item_id in enumerate(file.item_ids)}

    @property
    def version(self) -> str:
        """The file's."""
        return self._file.version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._file.dim

    def read_of(self, item: ItemContent) -> object:
        """The id alone."""
        return item.item_id

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 as they are in the file, and `present_B`: False for unknown ids."""
        rows_B = np.array([self._rows.get(item.item_id, -1) for item in items], np.int64)
        present_B = rows_B >= 0
        vectors_BD = np.zeros((len(items), self.dim), np.float32)
        vectors_BD[present_B] = self._file.vectors_ND[rows_B[present_B]]
        return vectors_BD, present_B
