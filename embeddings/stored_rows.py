"""Reads items of a store as rows of numbers and as columns of attributes. Keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embeddings.item_content import Attributes
from embeddings.value_scan import read_rows
from embeddings.vector_codec import BadVector, decode_stored, misfit, stored_attributes
from embeddings.vectors import StoreMismatch, VectorStore

I64 = NDArray[np.int64]
_ITEMS_PER_READ = 8_192
"""Bounds the values in memory at once; more of them are no faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeColumns:
    """Attributes of n items as columns: `ids_nA` and `multi_nM` int64, `dense_nX` float32."""

    ids_nA: I64
    multi_nM: I64
    dense_nX: NDArray[np.float32]


class AttributeReader(Protocol):
    """Turns attributes into columns; a pure function, with `{}` for an item that is not there."""

    def __call__(self, attributes: Sequence[Attributes]) -> AttributeColumns:
        """Columns of the items, in their order and of the same widths in every call."""
        ...


def read_no_attributes(attributes: Sequence[Attributes]) -> AttributeColumns:
    """The AttributeReader of whoever wants none."""
    n = len(attributes)
    return AttributeColumns(
        ids_nA=np.empty((n, 0), np.int64),
        multi_nM=np.empty((n, 0), np.int64),
        dense_nX=np.empty((n, 0), np.float32),
    )


class Rows(NamedTuple):
    """m items as arrays: vectors, zeros where `has_vector_m` is False, and attribute columns.

    `unreadable`: how many values were no item vector; their items count as not there.
    """

    vectors_mD: NDArray[Any]
    has_vector_m: NDArray[np.bool_]
    columns: AttributeColumns
    unreadable: int


class RowReader:
    """Reads a store's values as rows of `dim` numbers of `dtype`, float16 or float32."""

    def __init__(
        self, store: VectorStore, dim: int, dtype: str, read_attributes: AttributeReader
    ) -> None:
        self._store, self._dim, self._dtype = store, dim, dtype
        self._read_attributes = read_attributes
        self._wants_attributes = read_attributes is not read_no_attributes

    def read(self, keys_m: I64) -> Rows:
        """The items with these keys; raises StoreMismatch on a vector of another space.

        Sorted keys are read fastest.
        """
        vectors_mD = np.zeros((len(keys_m), self._dim), self._dtype)
        has_vector_m = np.zeros(len(keys_m), np.bool_)
        columns, unreadable = [], 0
        for piece in _pieces(len(keys_m)):
            values = self._store.get_many(keys_m[piece])
            left = read_rows(
                values, self._store.encoder_version, vectors_mD[piece], has_vector_m[piece]
            )
            attributes = self._attributes(values, left)
            for place in sorted(left):
                row = vectors_mD[piece][place]
                has_vector_m[piece.start + place], attributes[place] = False, {}
                row[:] = 0
                item = decode_stored(values[place] or b"")
                if isinstance(item, BadVector):
                    unreadable += 1
                    continue
                fault = misfit(item, self._store.encoder_version, self._dim)
                if fault is not None:
                    raise StoreMismatch(f"vector store: item {item.item_id!r}: {fault.detail}")
                attributes[place] = item.attributes
                if item.dim:
                    with np.errstate(over="ignore"):
                        row[:] = item.vector()
                    has_vector_m[piece.start + place] = True
            columns.append(self._read_attributes(attributes))
        return Rows(vectors_mD, has_vector_m, _joined(columns), unreadable)

    def _attributes(self, values: Sequence[bytes | None], left: list[int]) -> list[Attributes]:
        """Attributes of all values, `{}` of those `left`; adds those that cannot be read to it."""
        attributes: list[Attributes] = [{}] * len(values)
        if not self._wants_attributes:
            return attributes
        seen = set(left)
        for place, value in enumerate(values):
            if value is None or place in seen:
                continue
            found = stored_attributes(value)
            if found is None:
                left.append(place)
            else:
                attributes[place] = found
        return attributes


def _pieces(count: int) -> Iterator[slice]:
    """One piece at least, so that columns have their widths."""
    for start in range(0, max(count, 1), _ITEMS_PER_READ):
        yield slice(start, start + _ITEMS_PER_READ)


def _joined(columns: Sequence[AttributeColumns]) -> AttributeColumns:
    if len(columns) == 1:
        return columns[0]
    return AttributeColumns(
        ids_nA=np.concatenate([c.ids_nA for c in columns]),
        multi_nM=np.concatenate([c.multi_nM for c in columns]),
        dense_nX=np.concatenate([c.dense_nX for c in columns]),
    )
