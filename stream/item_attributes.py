"""Columns of item attributes, as configured features read them. Fetches no item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from embeddings.item_content import Attributes
from embeddings.stored_rows import AttributeColumns
from stream.codec_spec import DenseSource, IdSource, MultiSource, Source
from stream.codec_values import Bad, KeyCache, field_keys, float_column, multi_keys, value_key
from stream.keys import salted

ATTRIBUTE_PREFIX: Final = "item.attributes."


class AttributeFields:
    """An AttributeReader for paths `item.attributes.X`, by the rules of the fields of impressions.

    A value that such a field cannot hold (a fractional number as an id, a text as a number) counts
    as missing: the field's own key for "missing", or 0. Raises ValueError for another path.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        for source in sources:
            if not source.path.startswith(ATTRIBUTE_PREFIX) or source.path == ATTRIBUTE_PREFIX:
                raise ValueError(
                    f"feature '{source.name}': expected a path {ATTRIBUTE_PREFIX}X, "
                    f"got '{source.path}'"
                )
        self.ids = tuple(s for s in sources if isinstance(s, IdSource))
        self.multis = tuple(s for s in sources if isinstance(s, MultiSource))
        self.dense = tuple(s for s in sources if isinstance(s, DenseSource))
        self._keys = KeyCache(value_key)

    @property
    def multi_widths(self) -> tuple[int, ...]:
        """Places of each several-valued field within `multi_nM`."""
        return tuple(source.length for source in self.multis)

    def texts(self) -> list[str]:
        """Texts that were values lately, at most 65,536."""
        return [value for value in self._keys if isinstance(value, str)]

    def __call__(self, attributes: Sequence[Attributes]) -> AttributeColumns:
        """Columns of the items; see AttributeColumns. Keys are salted, bags padded with 0."""
        n = len(attributes)
        bad: Bad = []
        ids_nA = np.empty((n, len(self.ids)), np.int64)
        for a, one in enumerate(self.ids):
            keys = field_keys(_values(attributes, one), self._keys, bad, one.name)
            ids_nA[:, a] = salted(keys, one.salt)
        multis = [
            multi_keys(_values(attributes, m), m.length, m.salt, self._keys, bad, m.name)
            for m in self.multis
        ]
        dense_nX = np.empty((n, len(self.dense)), np.float32)
        unused: Bad = []  # an item is not refused for an attribute that somebody reads as a number
        for x, number in enumerate(self.dense):
            column = float_column(_values(attributes, number), unused, number.name)
            dense_nX[:, x] = np.where(np.isfinite(column), column, np.float32(0))
        return AttributeColumns(
            ids_nA=ids_nA,
            multi_nM=np.concatenate([np.empty((n, 0), np.int64), *multis], axis=1),
            dense_nX=dense_nX,
        )


def _values(attributes: Sequence[Attributes], source: Source) -> list[Any]:
    name = source.path.removeprefix(ATTRIBUTE_PREFIX)
    return [one.get(name) for one in attributes]
