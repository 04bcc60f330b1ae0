"""Cosines of each row's item with every entry of its histories, once a batch, for all modules.

Computed on the host from single vectors: no weight is read and no gradient flows. A place without
a vector on either side is masked, never a cosine of 0. What is made of cosines is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from learners.batch import ContentRows
from learners.feature_spec import ContentBlock

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
F = TypeVar("F", bound=Callable[..., Any])


class Cosines(NamedTuple):
    """One history of B rows with L places, oldest entry first.

    `r_BL` float32 in [-1, 1], 0 where `known_BL` is 0; `known_BL` uint8, 1 where both the item and
    the entry have a vector; `length_B` int64, entries of the history with or without one.
    """

    r_BL: F32
    known_BL: U8
    length_B: I64


class ContentCosines:
    """Cosines of one batch, computed when first asked for and then kept with the batch.

    A row's values depend on that row alone, bit for bit. Vectors need not be of unit length. A
    vector of zeros, or with a number that is not finite, is no vector.
    """

    def __init__(self, content: ContentRows | None, bags_BL: Sequence[I64]) -> None:
        """`bags_BL`: keys of the histories, in the order of `content.bags_BL`; 0 is padding."""
        self._content = content
        self._bags_BL = bags_BL
        self._found: dict[ContentBlock, tuple[Cosines, ...]] = {}

    @property
    def encoder(self) -> str:
        """Version of the vectors; empty without any."""
        return self._content.encoder if self._content else ""

    def histories(self, block: ContentBlock) -> tuple[Cosines, ...]:
        """Cosines with each history, inside one block of the vectors."""
        if self._content is None:
            return tuple(_none_known(keys_BL) for keys_BL in self._bags_BL)
        if block not in self._found:
            table_VC = _numbers(self._content.table_VC.numpy())
            target_B = self._content.target_B.numpy()
            self._found[block] = tuple(
                _cosines(table_VC, target_B, rows.numpy(), keys_BL, block)
                for rows, keys_BL in zip(self._content.bags_BL, self._bags_BL, strict=True)
            )
        return self._found[block]


def _cosines(
    table_VC: NDArray[Any], target_B: I64, rows_BL: I64, keys_BL: I64, block: ContentBlock
) -> Cosines:
    b, length = rows_BL.shape
    out = Cosines(
        np.zeros((b, length), np.float32), np.zeros((b, length), np.uint8), np.empty(b, np.int64)
    )
    scratch_2C = np.empty((2, block.dim), np.uint32)
    _fill(
        table_VC, target_B, rows_BL, keys_BL, block.start,
        scratch_2C, scratch_2C.view(np.float32), out.r_BL, out.known_BL, out.length_B,
    )  # fmt: skip
    return out


def _none_known(keys_BL: I64) -> Cosines:
    shape = keys_BL.shape
    length_B = (keys_BL != 0).sum(1)
    return Cosines(np.zeros(shape, np.float32), np.zeros(shape, np.uint8), length_B)


def _numbers(table_VC: NDArray[Any]) -> NDArray[Any]:
    """The table as compiled code takes it: float32, or the bits of float16."""
    if table_VC.dtype == np.float16:
        return table_VC.view(np.uint16)
    assert table_VC.dtype == np.float32, table_VC.dtype
    return table_VC


def _compiled(f: F) -> F:
    # Sums may be reordered, by a rule that depends on the number of dimensions alone; infinities
    # keep their meaning.
    return cast("F", numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})(f))


@_compiled
def _fill(
    table_VC: NDArray[Any],
    target_B: I64,
    rows_BL: I64,
    keys_BL: I64,
    start: int,
    bits_2C: NDArray[np.uint32],
    scratch_2C: F32,
    r_BL: F32,
    known_BL: U8,
    length_B: I64,
) -> None:
    """Dot products over norms, row by row; `scratch_2C` is `bits_2C` as float32."""
    dim = bits_2C.shape[1]
    none = table_VC.shape[0] - 1
    target_C, entry_C = scratch_2C[0], scratch_2C[1]
    for b in range(rows_BL.shape[0]):
        n = 0
        for place in range(keys_BL.shape[1]):
            n += keys_BL[b, place] != 0
        length_B[b] = n
        if target_B[b] == none:
            continue
        _read(table_VC[target_B[b], start : start + dim], bits_2C[0], target_C)
        target_sq = np.float32(0)
        for c in range(dim):
            target_sq += target_C[c] * target_C[c]
        if not 0 < target_sq < np.inf:
            continue
        for place in range(rows_BL.shape[1]):
            row = rows_BL[b, place]
            if row == none:
                continue
            _read(table_VC[row, start : start + dim], bits_2C[1], entry_C)
            product, square = np.float32(0), np.float32(0)
            for c in range(dim):
                product += target_C[c] * entry_C[c]
                square += entry_C[c] * entry_C[c]
            if not 0 < square < np.inf:
                continue
            r = product / (np.sqrt(target_sq) * np.sqrt(square))
            r_BL[b, place] = min(max(r, np.float32(-1)), np.float32(1))
            known_BL[b, place] = 1


def _read(row_C: NDArray[Any], bits_C: NDArray[np.uint32], out_C: F32) -> None:  # noqa: ARG001 - for compiled code
    """A row's numbers as float32 in `out_C`, which is `bits_C` seen as float32."""
    out_C[:] = row_C if row_C.dtype == np.float32 else row_C.view(np.float16)


@overload(_read)
def _compiled_read(row_C: Any, bits_C: Any, out_C: Any) -> Any:  # noqa: ARG001 - overload needs them
    """The same for compiled code, which knows no float16.

    Exponent and fraction move to their places in a float32, whose exponent is then short of 112.
    """
    if row_C.dtype == numba.types.float32:

        def read(row_C: Any, bits_C: Any, out_C: Any) -> None:  # noqa: ARG001 - as the other one
            for c in range(row_C.shape[0]):
                out_C[c] = row_C[c]
    else:

        def read(row_C: Any, bits_C: Any, out_C: Any) -> None:
            for c in range(row_C.shape[0]):
                h = np.uint32(row_C[c])
                bits_C[c] = ((h & np.uint32(0x7FFF)) << np.uint32(13)) | (
                    (h & np.uint32(0x8000)) << np.uint32(16)
                )
            for c in range(row_C.shape[0]):
                x = out_C[c] * np.float32(2.0**112)
                out_C[c] = x if abs(x) < np.float32(65_536) else np.float32(np.inf)

    return read
