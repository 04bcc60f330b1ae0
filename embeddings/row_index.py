"""Exact index from 64-bit keys to a bounded number of rows, as compiled loops. Holds no row data.

Shapes: S slots of the hash table, R rows, B x L keys of a batch, m new keys. A slot is [key, mark];
key 0 is an empty slot. A mark holds the row (32 bits), whether it lacks a vector (1 bit), and the
number of the look-up that last met it, its stamp (30 bits): a look-up costs one cache line. Linear
probing, backward-shift deletion, load at most 1/2.

`NUMBA_DISABLE_JIT=1` runs this file as plain Python. All that its loops call is in it, for numba's
cache does not see changes in other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., object])
kernel = cast("Callable[[F], F]", numba.njit(cache=True, nogil=True))

LOOKED_UP, MISSED, HELD = 0, 1, 2
"""Places in the totals of `find_rows`."""

ROW_MASK = (1 << 32) - 1
VECTORLESS = 1 << 32
STAMP_SHIFT = 33
STAMP_MASK = (1 << STAMP_SHIFT) - 1
STAMP_MAX = 1 << 30


def slots_for(rows: int) -> I64:
    """An empty table [S, 2] for `rows` keys at a load of at most 1/2."""
    return np.zeros((max(8, 1 << (2 * rows - 1).bit_length()), 2), np.int64)


def with_room(slots_S2: I64, rows: int) -> I64:
    """The table itself, or one of at least twice its size with the same keys, to hold `rows`.

    A table that grows with its keys stays in the processor's cache while they are few.
    """
    if 2 * rows <= len(slots_S2):
        return slots_S2
    larger = slots_for(rows)
    _move(slots_S2, larger)
    return larger


@kernel
def _place(slots_S2: I64, key: int) -> int:
    """The slot of `key`, or of the empty place where it would go."""
    mask = slots_S2.shape[0] - 1
    i: int = (key ^ (key >> 32)) & mask
    while slots_S2[i, 0] != key and slots_S2[i, 0] != 0:
        i = (i + 1) & mask
    return i


@kernel
def _remove(slots_S2: I64, i: int) -> None:
    """Empties slot `i`, moving later keys of its run back so that no search ends early."""
    mask = slots_S2.shape[0] - 1
    j = i
    while True:
        j = (j + 1) & mask
        key = slots_S2[j, 0]
        if key == 0:
            break
        home = (key ^ (key >> 32)) & mask
        if ((j - home) & mask) >= ((j - i) & mask):
            slots_S2[i, 0] = key
            slots_S2[i, 1] = slots_S2[j, 1]
            i = j
    slots_S2[i, 0] = 0


@kernel
def _move(slots_S2: I64, larger: I64) -> None:
    for j in range(slots_S2.shape[0]):
        if slots_S2[j, 0] != 0:
            i = _place(larger, slots_S2[j, 0])
            larger[i, 0] = slots_S2[j, 0]
            larger[i, 1] = slots_S2[j, 1]


@kernel
def find_rows(
    slots_S2: I64,
    keys_BL: I64,
    nothing: int,
    vectorless_row: int,
    now: int,
    rows_BL: I64,
    found_B: NDArray[np.int32],
    totals_3: I64,
) -> None:
    """Fills `rows_BL` with the row of each key, -1 for a key that is not there.

    Key 0 gives `nothing`. A row without a vector gives `vectorless_row`, or itself where that is
    -1. `found_B` counts the keys whose row has a vector. Rows met are stamped with `now`. Adds to
    `totals_3`: keys looked up, keys missed, rows stamped.
    """
    looked_up = 0
    missed = 0
    held = 0
    for b in range(keys_BL.shape[0]):
        found = 0
        for x in range(keys_BL.shape[1]):
            key = keys_BL[b, x]
            if key == 0:
                rows_BL[b, x] = nothing
                continue
            looked_up += 1
            i = _place(slots_S2, key)
            if slots_S2[i, 0] == 0:
                rows_BL[b, x] = -1
                missed += 1
                continue
            mark = slots_S2[i, 1]
            if mark >> STAMP_SHIFT != now:
                slots_S2[i, 1] = (mark & STAMP_MASK) | (now << STAMP_SHIFT)
                held += 1
            if mark & VECTORLESS:
                rows_BL[b, x] = mark & ROW_MASK if vectorless_row < 0 else vectorless_row
            else:
                rows_BL[b, x] = mark & ROW_MASK
                found += 1
        found_B[b] = found
    totals_3[LOOKED_UP] += looked_up
    totals_3[MISSED] += missed
    totals_3[HELD] += held


@kernel
def find_filled(
    slots_S2: I64, keys_BL: I64, vectorless_row: int, rows_BL: I64, found_B: NDArray[np.int32]
) -> int:
    """Completes what `find_rows` left at -1, now that these keys have rows; how many have none."""
    missed = 0
    for b in range(keys_BL.shape[0]):
        for x in range(keys_BL.shape[1]):
            if rows_BL[b, x] >= 0:
                continue
            i = _place(slots_S2, keys_BL[b, x])
            mark = slots_S2[i, 1]
            if slots_S2[i, 0] == 0:
                missed += 1
            elif not mark & VECTORLESS:
                rows_BL[b, x] = mark & ROW_MASK
                found_B[b] += 1
            else:
                rows_BL[b, x] = mark & ROW_MASK if vectorless_row < 0 else vectorless_row
    return missed


@kernel
def claim_rows(
    slots_S2: I64,
    keys_m: I64,
    has_vector_m: NDArray[np.bool_],
    now: int,
    key_R: I64,
    clock_2: I64,
    rows_m: I64,
) -> None:
    """Gives each of the distinct, absent `keys_m` a row, in `rows_m`; rows stamped `now` stay.

    Free rows first, then by a clock with one second chance: a row that was met since the hand last
    passed is passed once. `clock_2` is [rows ever used, hand]; `key_R` the key of each row, 0 for a
    free one. The caller makes sure that the rows not stamped `now` suffice.
    """
    capacity = key_R.shape[0]
    for n in range(keys_m.shape[0]):
        if clock_2[0] < capacity:
            row = clock_2[0]
            clock_2[0] += 1
        else:
            while True:
                row = clock_2[1]
                clock_2[1] = row + 1 if row + 1 < capacity else 0
                if key_R[row] == 0:
                    break
                i = _place(slots_S2, key_R[row])
                stamp = slots_S2[i, 1] >> STAMP_SHIFT
                if stamp == 0:
                    _remove(slots_S2, i)
                    break
                if stamp != now:
                    slots_S2[i, 1] &= STAMP_MASK
        key_R[row] = keys_m[n]
        i = _place(slots_S2, keys_m[n])
        slots_S2[i, 0] = keys_m[n]
        slots_S2[i, 1] = (now << STAMP_SHIFT) | row | (0 if has_vector_m[n] else VECTORLESS)
        rows_m[n] = row


@kernel
def drop_keys(slots_S2: I64, keys_m: I64, key_R: I64) -> None:
    """Forgets the keys that are there; the clock's hand gives their rows away when it passes."""
    for n in range(keys_m.shape[0]):
        i = _place(slots_S2, keys_m[n])
        if slots_S2[i, 0] != 0:
            key_R[slots_S2[i, 1] & ROW_MASK] = 0
            _remove(slots_S2, i)


def forget_stamps(slots_S2: I64) -> None:
    """Sets all stamps to 0, when `now` has come to STAMP_MAX and starts again."""
    slots_S2[:, 1] &= STAMP_MASK


@kernel
def number_rows(rows_BL: I64, nothing: int, local_R: I64, distinct: I64, count: int) -> int:
    """Renumbers `rows_BL` in place by first occurrence, and lists the rows met in `distinct`.

    `local_R` is scratch, -1 outside of a call series; `nothing` stays what it is. Returns the count
    of distinct rows, `count` included.
    """
    for b in range(rows_BL.shape[0]):
        for x in range(rows_BL.shape[1]):
            row = rows_BL[b, x]
            if row == nothing:
                continue
            if local_R[row] < 0:
                local_R[row] = count
                distinct[count] = row
                count += 1
            rows_BL[b, x] = local_R[row]
    return count
