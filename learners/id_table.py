"""Exact 64-bit key -> row of an embedding table: admission, expiry, counts. Holds no weights.

Rows 0..F-1 are the shared rows of F fields (for ids without a row of their own), row F is the
padding row, which is always zero; rows of ids follow. What is remembered is kept by row, so
neither behaviour nor snapshots depend on the layout of the hash table, which is rebuilt at will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from infra.state import Part
from learners import id_kernels as kernels
from learners.feature_spec import IdField
from learners.id_kernels import (
    FREE,
    HIGH,
    I32,
    I64,
    N_STATE,
    NEW,
    OCCURRENCES,
    U8,
    UNIQUE,
)

NORMALS = ndtri((np.arange(65_536) + 0.5) / 65_536).astype(np.float32)
"""Quantiles of N(0, 1): 16 bits of a hash pick one."""


def noise_of_keys(keys_n: I64, dim: int, *, sigma: float, seed: int) -> NDArray[np.float32]:
    """float32 [n, dim] of N(0, sigma), a pure function of key and seed: order does not matter."""
    out = np.empty((len(keys_n), dim), np.float32)
    with np.errstate(over="ignore"):  # the uncompiled mode warns of wrapping products
        kernels.noise(
            keys_n.view(np.uint64), np.uint64(seed % (1 << 64)), np.float32(sigma), NORMALS, out
        )
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBlock:
    """Keys of one kind in a batch: the id columns of a table, or one bag.

    `keys_BN` int64, 0 for an empty place; `field_N` the table's field of each column; occurrence
    (b, k) has row `source[0] + b source[1] + k source[2]` of the gradient matrix. `admit`: may a
    sighting here give an id its row. `flag_B`: of its own rows, where they are not the batch's.
    """

    keys_BN: I64
    field_N: I64
    source: I64
    admit: bool
    flag_B: U8 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which rows to update from which rows of the gradient matrix.

    `rows_U` int64, each once; sources_O[offsets_U[u] : offsets_U[u + 1]] int32 are the occurrences
    of rows_U[u], in order. `new_n` rows were given to ids in this batch and have no weights yet.
    """

    rows_U: I64
    offsets_U: I32
    sources_O: I32
    new_n: I32


def _slots_for(n: int) -> I64:
    """Empty hash table for n keys at a load of at most 1/2."""
    return np.zeros((1 << max(10, (2 * n - 1).bit_length()), 2), np.int64)


def _room(occurrences: int) -> kernels.Room:
    """Room for the plan of a batch with so many occurrences."""
    return kernels.Room(
        occurrences=np.empty(occurrences, np.int64),
        scratch=np.empty(occurrences, np.int64),
        digits=np.empty(2049, np.int64),
        new_row=np.empty(occurrences, np.int32),
    )


class IdTable:
    """Rows of ids. Time is event time; nothing depends on the order of things in memory.

    Every array is bounded: rows by the fields' `rows_max`, waiting ids (sighted fewer than
    `admit_after` times) by `waiting_max`, the oldest giving way.
    """

    def __init__(self, fields: Sequence[IdField], *, waiting_max: int) -> None:
        assert fields, "a table has at least one field"
        assert waiting_max > 0
        self.fields = tuple(fields)
        self.first_row = len(fields) + 1
        self.rows_limit = self.first_row + sum(f.rows_max for f in fields)
        assert self.rows_limit < kernels.ROW_MASK
        self.limit_F2 = np.array([[f.admit_after, f.rows_max] for f in fields], np.int64)
        self.expire_ms_F = np.array([f.expire_ms for f in fields], np.int64)
        waits = any(f.admit_after > 0 for f in fields)
        self.ring = np.zeros((waiting_max if waits else 1, 2), np.int64)
        self.waiting = _slots_for(len(self.ring))
        self.n = np.zeros(kernels.N_COUNTS, np.int64)
        self.n[HIGH] = self.first_row
        self.used_F = np.zeros(len(fields), np.int64)
        self._room = _room(0)
        self._allocate(0)
        self.slots = _slots_for(0)
        self.reserve(0)

    def _allocate(self, rows: int) -> None:
        self.key_R = np.zeros(rows, np.int64)
        self.last_s_R = np.zeros(rows, np.uint32)
        self.touched_R = np.zeros(rows, np.int32)
        self.field_R = np.zeros(rows, np.int16)
        self.free = np.zeros(rows, np.int32)
        self.field_R[: len(self.fields)] = np.arange(len(self.fields))[:rows]

    def _by_row(self) -> dict[str, NDArray[Any]]:
        return {
            "key": self.key_R,
            "last_s": self.last_s_R,
            "touched": self.touched_R,
            "field": self.field_R,
            "free": self.free,
        }

    @property
    def padding_row(self) -> int:
        """The row of empty places."""
        return len(self.fields)

    @property
    def high(self) -> int:
        """Number of rows ever used, shared and padding rows included."""
        return int(self.n[HIGH])

    @property
    def capacity(self) -> int:
        """Rows that there is room for."""
        return len(self.key_R)

    def reserve(self, new: int) -> None:
        """Make room for `new` more rows; grown by doubling up to the limit, never shrunk."""
        rows = min(self.high + new, self.rows_limit)
        if rows > self.capacity:
            old = self._by_row()
            self._allocate(min(self.rows_limit, max(2 * self.capacity, rows, 1 << 16)))
            for name, fresh in self._by_row().items():
                fresh[: len(old[name])] = old[name]
        if 2 * rows > len(self.slots):
            self.slots = _slots_for(max(rows, len(self.slots)))
            kernels.index_rows(self.slots, len(self.slots) - 1, self.key_R[: self.high])

    def predict(self, block: KeyBlock) -> tuple[I32, NDArray[np.float32]]:
        """Rows int32 [B, N] and 1 / (number of keys) float32 [B]; changes nothing."""
        read_BN = np.empty(block.keys_BN.shape, np.int32)
        inv_len_B = np.empty(len(block.keys_BN), np.float32)
        kernels.read_rows(
            block.keys_BN,
            block.field_N,
            self.padding_row,
            self.slots,
            len(self.slots) - 1,
            read_BN,
            inv_len_B,
        )
        return read_BN, inv_len_B

    def learn(
        self, blocks: Sequence[KeyBlock], flag_B: NDArray[np.uint8], *, clock_ms: int, step: int
    ) -> tuple[list[tuple[I32, NDArray[np.float32]]], Plan]:
        """What `predict` gives for each block, and the plan; counts sightings, gives out rows."""
        room = sum(block.keys_BN.size for block in blocks)
        self.reserve(room)
        n = self.n
        n[[UNIQUE, OCCURRENCES, NEW]] = 0
        plan_room = self._room_for(room)
        ids = self._ids()
        waits = kernels.Waits(self.waiting, len(self.waiting) - 1, self.ring)
        reads = []
        for block in blocks:
            read_BN = np.empty(block.keys_BN.shape, np.int32)
            inv_len_B = np.empty(len(block.keys_BN), np.float32)
            kernels.learn_rows(
                block.keys_BN, block.field_N, flag_B if block.flag_B is None else block.flag_B,
                block.source, block.admit, ids, waits,
                plan_room, read_BN, inv_len_B,
            )  # fmt: skip
            reads.append((read_BN, inv_len_B))
        count = int(n[OCCURRENCES])
        rows = np.empty(min(count, self.high), np.int64)
        offsets, sources = np.empty(len(rows), np.int32), np.empty(count, np.int32)
        row_bits = (self.high - 1).bit_length()
        kernels.make_plan(plan_room, ids, row_bits, clock_ms, step, rows, offsets, sources)
        unique = int(n[UNIQUE])
        return reads, Plan(
            rows_U=rows[:unique],
            offsets_U=offsets[:unique],
            sources_O=sources,
            new_n=plan_room.new_row[: int(n[NEW])].copy(),
        )

    def _room_for(self, occurrences: int) -> kernels.Room:
        """Room for a plan, kept between batches: fresh pages cost more than the loop."""
        if occurrences > len(self._room.new_row):
            self._room = _room(1 << (occurrences - 1).bit_length())
        return self._room

    def _ids(self) -> kernels.Ids:
        return kernels.Ids(
            self.slots, len(self.slots) - 1, self.key_R, self.last_s_R, self.touched_R,
            self.field_R, self.free,
            self.used_F, self.limit_F2, self.n,
        )  # fmt: skip

    def expire(self, rows: int, *, clock_ms: int, step: int) -> None:
        """Look at the next `rows` rows and free those that were not updated for too long."""
        if self.expire_ms_F.any():
            kernels.expire(rows, clock_ms, step, self.expire_ms_F, self._ids())

    def keys_of(self, rows: I64) -> I64:
        """Keys of rows; 0 for free, shared and padding rows."""
        keys: I64 = self.key_R[rows]
        return keys

    def touched_rows(self, mark: int) -> I64:
        """Rows whose key or weights changed after learn step `mark`, int64, rising."""
        return np.flatnonzero(self.touched_R[: self.high] > mark)

    def serve_arrays(self, rows: I64) -> dict[str, NDArray[Any]]:
        """What scoring needs of `rows`: keys (0 = free) and fields."""
        return {"rows": rows, "keys": self.key_R[rows], "fields": self.field_R[rows]}

    def train_arrays(self, rows: I64) -> dict[str, NDArray[Any]]:
        """What learning needs besides: ages of `rows`, free rows, waiting ids, counts."""
        return {
            "rows": rows,
            "last_s": self.last_s_R[rows],
            "touched": self.touched_R[rows],
            "free": self.free[: self.n[FREE]].copy(),
            "waiting": self.ring.copy(),
            "counts": self.n[:N_STATE].copy(),
        }

    def apply_serve(self, part: Part) -> I64:
        """Take keys of a full part (all others go) or a delta; gives the rows concerned."""
        rows, keys = part.array("rows", np.int64), part.array("keys", np.int64)
        fields, high = part.array("fields", np.int16), int(part.meta["high"])
        if not self.first_row <= high <= self.rows_limit:
            raise ValueError(
                f"part '{part.name}': {high} rows, but this table holds {self.first_row} to "
                f"{self.rows_limit}; raise rows_max of its fields"
            )
        if not part.delta:
            self._allocate(0)
            self.slots = _slots_for(0)
            self.n[HIGH] = self.first_row
        self.reserve(high - self.high)
        self.n[HIGH] = high
        kernels.merge_rows(
            rows, keys, fields, self.slots, len(self.slots) - 1, self.key_R, self.field_R
        )
        own = self.key_R[self.first_row : high] != 0
        self.used_F[:] = np.bincount(
            self.field_R[self.first_row : high][own], minlength=len(self.fields)
        )
        return rows

    def apply_train(self, part: Part) -> None:
        """Take ages, free rows, waiting ids and counts; `apply_serve` comes first."""
        rows, ring = part.array("rows", np.int64), part.array("waiting", np.int64)
        if ring.shape != self.ring.shape:
            raise ValueError(
                f"part '{part.name}': room for {len(ring)} waiting ids, here {len(self.ring)}; "
                "waiting_max and admit_after must be as they were"
            )
        free = part.array("free", np.int32)
        self.last_s_R[rows] = part.array("last_s", np.uint32)
        self.touched_R[rows] = part.array("touched", np.int32)
        self.free[: len(free)] = free
        self.n[:N_STATE] = part.array("counts", np.int64)
        self.ring[:] = ring
        self.waiting = _slots_for(len(ring))
        kernels.index_rows(self.waiting, len(self.waiting) - 1, ring[:, 0].copy())

    def counts(self) -> Mapping[str, int]:
        """Rows in use and totals since the start."""
        return {
            "rows": int(self.used_F.sum()),
            "admitted": int(self.n[kernels.ADMITTED]),
            "expired": int(self.n[kernels.EXPIRED]),
            "overflow": int(self.n[kernels.OVERFLOW]),
            "waiting_dropped": int(self.n[kernels.WAITING_DROPPED]),
        }
