"""The distinct keys of a batch's sequences, each looked up once. Owns no rows.

A history of codes holds few distinct ids many times over: rows and gradients are then those of the
distinct ones, a hundred times fewer.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from learners.id_kernels import I32, I64, U8


class Distinct(NamedTuple):
    """`keys_U1`: 0, then each key in the order of its first place; `index_BL`: places among them.

    `flag_U` is the highest flag of the rows that hold a key.
    """

    keys_U1: I64
    index_BL: I32
    flag_U: U8


def distinct_keys(keys_BL: I64, flag_B: U8) -> Distinct:
    """The distinct keys of all rows; index 0 stands for an empty place (key 0)."""
    slots = np.zeros((1 << max(4, (2 * keys_BL.size).bit_length()), 2), np.int64)
    keys_U = np.zeros(keys_BL.size + 1, np.int64)
    flag_U = np.zeros(keys_BL.size + 1, np.uint8)
    index_BL = np.empty(keys_BL.shape, np.int32)
    count = _number(keys_BL, flag_B, slots, len(slots) - 1, keys_U, flag_U, index_BL)
    return Distinct(keys_U[:count, None], index_BL, flag_U[:count])


@numba.njit(cache=True, nogil=True)
def _number(
    keys_BL: I64, flag_B: U8, slots: I64, mask: int, keys_U: I64, flag_U: NDArray[np.uint8],
    index_BL: I32,
) -> int:  # fmt: skip
    count = 1
    for b in range(keys_BL.shape[0]):
        for i in range(keys_BL.shape[1]):
            key = keys_BL[b, i]
            if key == 0:
                index_BL[b, i] = 0
                continue
            slot = (key ^ (key >> 32)) & mask
            while slots[slot, 0] != 0 and slots[slot, 0] != key:
                slot = (slot + 1) & mask
            if slots[slot, 0] == 0:
                slots[slot, 0] = key
                slots[slot, 1] = count
                keys_U[count] = key
                count += 1
            place = slots[slot, 1]
            index_BL[b, i] = place
            flag_U[place] = max(flag_U[place], flag_B[b])
    return count
