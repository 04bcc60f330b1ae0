"""Compiled loops of the id table: find, admit, plan, expire. They own no arrays.

A kernel neither allocates nor raises: `IdTable` reserves room before each call. All that the
kernels call is in this file, because a compiled cache does not notice changes in another one.
With NUMBA_DISABLE_JIT=1 the same code runs uncompiled, with the same results.

Hash table: `slots[i] = (key, row)`, linear probing, key 0 = empty, deletion by backward shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


HIGH, FREE, ADMITTED, EXPIRED, OVERFLOW, WAITING_CURSOR, WAITING_DROPPED, SWEEP = range(8)
UNIQUE, OCCURRENCES, NEW = range(8, 11)
N_STATE, N_COUNTS = 8, 11
"""Places of `n`: rows ever used, free rows, totals, cursors; the last three are of one batch."""

READ, LEARN, LEARN_AND_COUNT = 0, 1, 2
"""Flags of a batch row: only read; learn by it; learn and count it as a sighting."""

NEW_BIT = 1 << 31
ROW_MASK = NEW_BIT - 1
"""A row that was given out in the present batch carries the bit in the hash table."""

F = TypeVar("F", bound=Callable[..., Any])


class Ids(NamedTuple):
    """Arrays of a table: hash table and its mask, rows, free rows, use.

    By row: key (0 = free), second of the last update (rounded up), learn step of the last change,
    field.
    """

    slots: I64
    mask: int
    key_R: I64
    last_s_R: NDArray[np.uint32]
    touched_R: I32
    field_R: NDArray[np.int16]
    free: I32
    used_F: I64
    limit_F2: I64
    """Per field: sightings before admission, rows at most."""
    n: I64


class Waits(NamedTuple):
    """Ids without a row yet: hash table into a ring of (key, sightings)."""

    slots: I64
    mask: int
    ring: I64


class Room(NamedTuple):
    """Room for the plan of one batch; an occurrence is packed as row * 2^32 + source."""

    occurrences: I64
    scratch: I64
    digits: I64
    new_row: I32


def _kernel(function: F) -> F:
    return cast("F", numba.njit(cache=True, nogil=True)(function))


@_kernel
def _find(slots: I64, mask: int, key: int) -> int:
    """Slot of `key`, or of the empty place where it belongs."""
    i = (key ^ (key >> 32)) & mask
    while slots[i, 0] != 0 and slots[i, 0] != key:
        i = (i + 1) & mask
    return i


@_kernel
def _touch(slots: I64, mask: int, keys_N: I64) -> int:
    """Read the first slot of each key without a branch, so that the cache misses overlap."""
    seen = 0
    for k in range(len(keys_N)):
        seen ^= slots[(keys_N[k] ^ (keys_N[k] >> 32)) & mask, 0]
    return seen


@_kernel
def _erase(slots: I64, mask: int, i: int) -> None:
    """Empty slot `i` and shift back what follows, so that probing needs no tombstones."""
    j = i
    while True:
        j = (j + 1) & mask
        key = slots[j, 0]
        if key == 0:
            break
        home = (key ^ (key >> 32)) & mask
        if ((j - home) & mask) >= ((j - i) & mask):
            slots[i, 0] = key
            slots[i, 1] = slots[j, 1]
            i = j
    slots[i, 0] = 0
    slots[i, 1] = 0


@_kernel
def index_rows(slots: I64, mask: int, keys_n: I64) -> None:
    """Enter row r under keys_n[r]; rows with key 0 are free."""
    for row in range(len(keys_n)):
        key = keys_n[row]
        if key != 0:
            i = _find(slots, mask, key)
            slots[i, 0] = key
            slots[i, 1] = row


@_kernel
def _sightings_before(waiting: I64, w_mask: int, ring: I64, key: int, n: I64) -> int:
    """Sightings of an id without row before this one, which counts; the oldest id makes room."""
    i = _find(waiting, w_mask, key)
    if waiting[i, 0] == key:
        place = waiting[i, 1]
        ring[place, 1] += 1
        return int(ring[place, 1] - 1)
    place = n[WAITING_CURSOR]
    n[WAITING_CURSOR] = place + 1 if place + 1 < len(ring) else 0
    if ring[place, 0] != 0:
        _erase(waiting, w_mask, _find(waiting, w_mask, ring[place, 0]))
        n[WAITING_DROPPED] += 1
        i = _find(waiting, w_mask, key)
    ring[place, 0] = key
    ring[place, 1] = 1
    waiting[i, 0] = key
    waiting[i, 1] = place
    return 0


@_kernel
def _forget_waiting(waiting: I64, w_mask: int, ring: I64, key: int) -> None:
    i = _find(waiting, w_mask, key)
    if waiting[i, 0] == key:
        ring[waiting[i, 1], 0] = 0
        _erase(waiting, w_mask, i)


@_kernel
def _admit(key: int, field: int, slot: int, ids: Ids, waits: Waits, room: Room) -> int:
    """Row of an id without one; that of its field while it waits or when its field is full."""
    n = ids.n
    after = ids.limit_F2[field, 0]
    before = _sightings_before(waits.slots, waits.mask, waits.ring, key, n) if after > 0 else 0
    if before < after:
        return field
    if ids.used_F[field] >= ids.limit_F2[field, 1]:
        n[OVERFLOW] += 1
        return field
    if n[FREE] > 0:  # the last one freed, else a fresh one
        n[FREE] -= 1
        row = int(ids.free[n[FREE]])
    else:
        row = n[HIGH]
        n[HIGH] += 1
    if after > 0:
        _forget_waiting(waits.slots, waits.mask, waits.ring, key)
    ids.slots[slot, 0] = key
    ids.slots[slot, 1] = row | NEW_BIT
    ids.key_R[row] = key
    ids.field_R[row] = field
    ids.used_F[field] += 1
    room.new_row[n[NEW]] = row
    n[NEW] += 1
    n[ADMITTED] += 1
    return row


@_kernel
def read_rows(
    keys_BN: I64,
    field_N: I64,
    padding_row: int,
    slots: I64,
    mask: int,
    read_BN: I32,
    inv_len_B: NDArray[np.float32],
) -> int:
    """Rows of keys (shared row where there is none, padding row for key 0), and 1 / keys a row.

    What it returns only keeps `_touch` alive.
    """
    seen = 0
    for b in range(keys_BN.shape[0]):
        seen ^= _touch(slots, mask, keys_BN[b])
        length = 0
        for k in range(keys_BN.shape[1]):
            key = keys_BN[b, k]
            if key == 0:
                read_BN[b, k] = padding_row
                continue
            length += 1
            i = _find(slots, mask, key)
            read_BN[b, k] = slots[i, 1] if slots[i, 0] == key else field_N[k]
        inv_len_B[b] = 1.0 / length if length > 0 else 0.0
    return seen


@_kernel
def learn_rows(
    keys_BN: I64,
    field_N: I64,
    flag_B: U8,
    source: I64,
    admit: bool,
    ids: Ids,
    waits: Waits,
    room: Room,
    read_BN: I32,
    inv_len_B: F32,
) -> int:
    """Rows to read as `read_rows` would have given them before this batch, and what to update.

    An id that gets its row in this batch is read from its field's shared row once more, so that a
    prediction just before and the forward pass of learning agree. Returned as in `read_rows`.
    """
    n, slots, mask = ids.n, ids.slots, ids.mask
    padding_row = len(ids.used_F)
    o = n[OCCURRENCES]
    seen = 0
    for b in range(keys_BN.shape[0]):
        seen ^= _touch(slots, mask, keys_BN[b])
        flag = flag_B[b]
        length = 0
        for k in range(keys_BN.shape[1]):
            key = keys_BN[b, k]
            if key == 0:
                read_BN[b, k] = padding_row
                continue
            length += 1
            row = field_N[k]
            i = _find(slots, mask, key)
            if slots[i, 0] == key:
                row = slots[i, 1]
                read_BN[b, k] = row if row < NEW_BIT else field_N[k]
                row &= ROW_MASK
            else:
                read_BN[b, k] = row
                if flag == LEARN_AND_COUNT and admit:
                    row = _admit(key, row, i, ids, waits, room)
            if flag != READ:
                room.occurrences[o] = (row << 32) | (source[0] + b * source[1] + k * source[2])
                o += 1
        inv_len_B[b] = 1.0 / length if length > 0 else 0.0
    n[OCCURRENCES] = o
    return seen


@_kernel
def merge_rows(
    rows_n: I64,
    keys_n: I64,
    fields_n: NDArray[np.int16],
    slots: I64,
    mask: int,
    key_R: I64,
    field_R: NDArray[np.int16],
) -> None:
    """Give rows other keys: all old ones are taken out first, as keys may have changed places."""
    for i in range(len(rows_n)):
        old = key_R[rows_n[i]]
        if old != 0:
            _erase(slots, mask, _find(slots, mask, old))
            key_R[rows_n[i]] = 0
    for i in range(len(rows_n)):
        row = rows_n[i]
        key_R[row] = keys_n[i]
        field_R[row] = fields_n[i]
        if keys_n[i] != 0:
            slot = _find(slots, mask, keys_n[i])
            slots[slot, 0] = keys_n[i]
            slots[slot, 1] = row


@_kernel
def _sort_occurrences(a: I64, b: I64, count: int, row_bits: int, digits: I64) -> bool:
    """Stable radix sort by row, 11 bits a pass; True if the result is in `b`."""
    swapped = False
    for shift in range(32, 32 + row_bits, 11):
        digits[:] = 0
        for o in range(count):
            digits[((a[o] >> shift) & 2047) + 1] += 1
        for d in range(2048):
            digits[d + 1] += digits[d]
        for o in range(count):
            d = (a[o] >> shift) & 2047
            b[digits[d]] = a[o]
            digits[d] += 1
        a, b = b, a
        swapped = not swapped
    return swapped


@_kernel
def make_plan(
    room: Room, ids: Ids, row_bits: int, clock_ms: int, step: int, rows: I64, offsets: I32,
    sources: I32,
) -> None:  # fmt: skip
    """Each row to update once, and its sources side by side in order of occurrence."""
    n = ids.n
    last_s = (clock_ms + 999) // 1000
    count, unique, last = n[OCCURRENCES], 0, -1
    swapped = _sort_occurrences(room.occurrences, room.scratch, count, row_bits, room.digits)
    ordered = room.scratch if swapped else room.occurrences
    for o in range(count):
        row = ordered[o] >> 32
        sources[o] = ordered[o] & 0xFFFFFFFF
        if row != last:
            rows[unique] = row
            offsets[unique] = o
            unique += 1
            ids.last_s_R[row] = last_s
            ids.touched_R[row] = step
            last = row
    n[UNIQUE] = unique
    for j in range(n[NEW]):
        row = room.new_row[j]
        ids.slots[_find(ids.slots, ids.mask, ids.key_R[row]), 1] = row


@_kernel
def expire(rows: int, clock_ms: int, step: int, expire_ms_F: I64, ids: Ids) -> None:
    """Free rows that were not updated for their field's time, looking at the next `rows` rows."""
    n = ids.n
    first = len(ids.used_F) + 1
    for _ in range(min(rows, n[HIGH] - first)):
        row = n[SWEEP] if first <= n[SWEEP] < n[HIGH] else first
        n[SWEEP] = row + 1
        key = ids.key_R[row]
        field = ids.field_R[row]
        age_ms_max = expire_ms_F[field]
        age_ms = clock_ms - np.int64(ids.last_s_R[row]) * 1000
        if key == 0 or age_ms_max == 0 or age_ms <= age_ms_max:
            continue
        _erase(ids.slots, ids.mask, _find(ids.slots, ids.mask, key))
        ids.key_R[row] = 0
        ids.touched_R[row] = step
        ids.used_F[field] -= 1
        ids.free[n[FREE]] = row
        n[FREE] += 1
        n[EXPIRED] += 1


@_kernel
def noise(
    keys_n: NDArray[np.uint64],
    seed: np.uint64,
    sigma: np.float32,
    normals: NDArray[np.float32],
    out_nD: NDArray[np.float32],
) -> None:
    """N(0, sigma) numbers as a function of (key, seed) alone: SplitMix64, 16 bits a number."""
    for i in range(len(keys_n)):
        x = keys_n[i] ^ seed
        z = x
        for j in range(out_nD.shape[1]):
            lane = j & 3
            if lane == 0:
                x = x + np.uint64(0x9E3779B97F4A7C15)
                z = x
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
            out_nD[i, j] = sigma * normals[(z >> np.uint64(16 * lane)) & np.uint64(0xFFFF)]
