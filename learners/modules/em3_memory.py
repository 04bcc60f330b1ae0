"""Content memory: item key -> the vector that the Q-Former last made of it, with its age.

Bounded: the item that was entered longest ago makes room. Computes no vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.id_kernels import _erase, _find, index_rows
from learners.modules.module import Kept

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
AGES_MS = (3_600_000, 86_400_000)
"""Bounds of the ages by which staleness is told: under an hour, under a day, more."""


class ContentMemory(Kept):
    """`rows_max` vectors of `dim`; those older than `max_age_ms` count as absent, 0: none does.

    Ages are of event time, by the newest event that was learned from. `seen` counts how often an
    item was a target. Row `rows_max` is all zeros and stands for "absent".
    """

    def __init__(self, rows_max: int, dim: int, max_age_ms: int) -> None:
        self.rows_max, self.max_age_ms = rows_max, max_age_ms
        self.vector_MD = np.zeros((rows_max + 1, dim), np.float32)
        self._clear()

    def _clear(self) -> None:
        m = self.rows_max
        self.key_M = np.zeros(m, np.int64)
        self.written_ms_M = np.zeros(m, np.int64)
        self.seen_M = np.zeros(m, np.int64)
        self.touched_M = np.zeros(m, np.int64)
        self.vector_MD[:] = 0
        self.slots = np.zeros((1 << (2 * m - 1).bit_length(), 2), np.int64)
        self.entered = 0
        self.clock_ms = 0
        self.staleness = np.zeros((len(AGES_MS) + 1, 2))
        """By age when it is written anew: how many, and the sum of the cosines of old and new."""

    @property
    def none(self) -> int:
        """Row of "absent"."""
        return self.rows_max

    def rows(self, keys: I64) -> I64:
        """Rows of keys of any shape, `none` for absent or too old ones; changes nothing."""
        oldest = self.clock_ms - self.max_age_ms if self.max_age_ms else -(2**62)
        flat = np.ascontiguousarray(keys).ravel()
        return _rows(self.slots, flat, self.written_ms_M, oldest, self.none).reshape(keys.shape)

    def seen(self, keys_n: I64) -> I64:
        """How often each was a target, 0 for absent ones."""
        rows_n = _rows(self.slots, keys_n, self.written_ms_M, -(2**62), self.none)
        return np.append(self.seen_M, 0)[rows_n]

    def write(self, keys_n: I64, vectors_ND: F32, seen_n: I64, *, clock_ms: int, step: int) -> None:
        """Enter or replace vectors of distinct keys, and add to how often they were targets."""
        self.clock_ms = max(self.clock_ms, clock_ms)
        self.entered = _write(
            self.slots, keys_n, vectors_ND, seen_n, self.clock_ms, step, self.entered, self.key_M,
            self.written_ms_M, self.seen_M, self.touched_M, self.vector_MD, self.staleness,
            np.array(AGES_MS, np.int64),
        )  # fmt: skip

    def parts(self, name: str, mark: int | None) -> Sequence[Part]:
        """Rows written after step `mark`, or all of them."""
        rows = np.flatnonzero((self.key_M != 0) & (self.touched_M > (-1 if mark is None else mark)))
        arrays: dict[str, NDArray[Any]] = {
            "rows": rows, "keys": self.key_M[rows], "written_ms": self.written_ms_M[rows],
            "seen": self.seen_M[rows], "touched": self.touched_M[rows],
            "vectors": self.vector_MD[rows], "staleness": self.staleness.copy(),
        }  # fmt: skip
        meta = {"entered": self.entered, "clock_ms": self.clock_ms, "rows_max": self.rows_max}
        delta = mark is not None
        return [Part(name=name, part_class="serve", arrays=arrays, meta=meta, delta=delta)]

    def apply(self, part: Part) -> None:
        """Take a full or delta part; raises ValueError for a memory of another size."""
        if part.meta["rows_max"] != self.rows_max:
            raise ValueError(
                f"part '{part.name}': {part.meta['rows_max']} rows, but memory_rows is "
                f"{self.rows_max}; it must be as it was"
            )
        if not part.delta:
            self._clear()
        rows = part.array("rows", np.int64)
        for own, name in (
            (self.key_M, "keys"), (self.written_ms_M, "written_ms"), (self.seen_M, "seen"),
            (self.touched_M, "touched"), (self.vector_MD, "vectors"),
        ):  # fmt: skip
            own[rows] = part.array(name)
        self.staleness[:] = part.array("staleness", np.float64)
        self.entered, self.clock_ms = int(part.meta["entered"]), int(part.meta["clock_ms"])
        self.slots[:] = 0
        index_rows(self.slots, len(self.slots) - 1, self.key_M)

    def counts(self) -> Mapping[str, int]:
        """Items in use, and thousandths of the mean cosine of a vector and the one before it."""
        counts = {"memory_rows": min(self.entered, self.rows_max)}
        for name, (n, total) in zip(("hour", "day", "more"), self.staleness, strict=True):
            counts[f"memory_rewritten_{name}"] = int(n)
            counts[f"memory_cosine_{name}"] = int(1_000 * total / n) if n else 0
        return counts


@numba.njit(cache=True, nogil=True)
def _rows(slots: I64, keys_n: I64, written_ms_M: I64, oldest_ms: int, none: int) -> I64:
    out = np.empty(len(keys_n), np.int64)
    mask = len(slots) - 1
    for n in range(len(keys_n)):
        out[n] = none
        if keys_n[n] == 0:
            continue
        i = _find(slots, mask, keys_n[n])
        if slots[i, 0] != 0 and written_ms_M[slots[i, 1]] >= oldest_ms:
            out[n] = slots[i, 1]
    return out


@numba.njit(cache=True, nogil=True)
def _write(
    slots: I64, keys_n: I64, vectors_ND: F32, seen_n: I64, clock_ms: int, step: int, entered: int,
    key_M: I64, written_ms_M: I64, seen_M: I64, touched_M: I64, vector_MD: F32,
    staleness: NDArray[np.float64], ages_ms: I64,
) -> int:  # fmt: skip
    mask = len(slots) - 1
    for n in range(len(keys_n)):
        key = keys_n[n]
        i = _find(slots, mask, key)
        if slots[i, 0] == 0:
            row = entered % len(key_M)
            if key_M[row] != 0:
                _erase(slots, mask, _find(slots, mask, key_M[row]))
                i = _find(slots, mask, key)
            slots[i, 0] = key
            slots[i, 1] = row
            key_M[row], seen_M[row] = key, 0
            entered += 1
        else:
            row = slots[i, 1]
            dot, a, b = 0.0, 0.0, 0.0
            for d in range(vectors_ND.shape[1]):
                dot += vectors_ND[n, d] * vector_MD[row, d]
                a += vectors_ND[n, d] ** 2
                b += vector_MD[row, d] ** 2
            bucket = 0
            while bucket < len(ages_ms) and clock_ms - written_ms_M[row] >= ages_ms[bucket]:
                bucket += 1
            staleness[bucket, 0] += 1
            staleness[bucket, 1] += dot / max(np.sqrt(a * b), 1e-12)
        vector_MD[row] = vectors_ND[n]
        written_ms_M[row] = clock_ms
        seen_M[row] += seen_n[n]
        touched_M[row] = step
    return entered
