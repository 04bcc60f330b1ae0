"""Running counters of impressions and outcomes: configuration and arrays; the loops are in kernels.

A rate counter adds an impression and its outcome together when the impression settles, so clicks
never exceed impressions; a separate exposure count, of counters that ask for it, adds at the
impression. Counters keyed with the user id belong to the join, those keyed without it to training
(`GlobalCounters`, rule 12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from stream import kernels

BUCKET_MS = 3_600_000
DECAY_BUCKETS = 4_096
_LINE = 64
_FAST_GROWTH_ROWS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterConfig:
    """Counts of impressions and clicks by one key or a combination of keys.

    `keys` are names of features, `user` or `item`; several-valued features count by their first
    value. `prior_weight` is the weight, in impressions, of the global rate in the smoothed rate.
    With `half_life_hours` a decayed copy is kept beside the plain counts. `open` gives one input
    more: impressions whose outcome is not known yet, log1p(exposures - impressions settled).
    """

    name: str
    keys: tuple[str, ...]
    half_life_hours: float = 0.0
    prior_weight: float = 10.0
    open: bool = False

    def __post_init__(self) -> None:
        """Check what types cannot."""
        if not self.keys:
            raise ValueError(f"counter '{self.name}': keys is empty; name at least one feature")
        if self.half_life_hours < 0 or self.prior_weight <= 0:
            raise ValueError(
                f"counter '{self.name}': half_life_hours must be >= 0 and prior_weight > 0"
            )


def decay_table(half_lives_hours: Sequence[float]) -> NDArray[np.float32]:
    """Decay factor by age in hours, float32 [counters, hours]; by repeated multiplication.

    Repeated multiplication, not exp: the same bits on every machine.
    """
    table = np.zeros((len(half_lives_hours), DECAY_BUCKETS), np.float32)
    for i, hours in enumerate(half_lives_hours):
        step = np.float32(0.5 ** (1.0 / hours))
        value = np.float32(1.0)
        for age in range(DECAY_BUCKETS):
            table[i, age] = value
            value = np.float32(value * step)
    return table


def record_dtype(n_kinds: int) -> np.dtype[np.void]:
    """A counter's record: key, impressions n, exposures x, row of its decayed copy, clicks by kind.

    Its length is a multiple of 32 bytes, so that up to three kinds never lie in two cache lines.
    """
    used = 20 + 4 * n_kinds
    return np.dtype(
        {
            "names": ["key", "n", "x", "decayed", "c"],
            "formats": ["i8", "i4", "i4", "i4", ("i4", (n_kinds,))],
            "itemsize": -(-used // 32) * 32,
        }
    )


def decayed_dtype(n_kinds: int) -> np.dtype[np.void]:
    """A decayed copy: hour of its last change, impressions n and clicks c by kind as of then."""
    return np.dtype([("bucket", "i4"), ("n", "f4"), ("c", "f4", (n_kinds,))])


def _aligned(rows: int, dtype: np.dtype[np.void]) -> NDArray[Any]:
    """Zeros that begin at a cache line."""
    room = np.zeros(rows * dtype.itemsize + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + rows * dtype.itemsize].view(dtype)


class CounterTable:
    """A growing hash table of counter records, with their decayed copies beside it.

    A record's row moves only when the table grows; a copy's never does (row 0 is nobody's).
    """

    def __init__(self, name: str, n_kinds: int, rows_max: int) -> None:
        """`name` is the name of its snapshot part; `rows_max` bounds the records."""
        self.name = name
        self.rows_max = rows_max
        self.records = _aligned(1 << 12, record_dtype(n_kinds))
        self.decayed = np.zeros(1 << 10, decayed_dtype(n_kinds))

    def reserve(
        self, used: int, n: int, decayed_used: int = 0, decayed_n: int = 0
    ) -> NDArray[np.int64] | None:
        """Make room for n more records; where rows moved, the new row of each old one."""
        if decayed_used + decayed_n >= len(self.decayed):
            decayed = np.zeros(2 * (decayed_used + decayed_n), self.decayed.dtype)
            decayed[: len(self.decayed)] = self.decayed
            self.decayed = decayed
        need = 2 * min(used + n, self.rows_max + 1)
        if need <= len(self.records):
            return None
        capacity = len(self.records)
        while capacity < need:
            capacity *= 4 if capacity < _FAST_GROWTH_ROWS else 2
        new = _aligned(capacity, self.records.dtype)
        moved = np.full(len(self.records) + 1, -1, np.int64)
        kernels.rehash_counters(self.records, new, moved)
        self.records = new
        return moved

    def export(self, part_class: str) -> Part:
        """The records with their rows, as plain arrays."""
        row_n = np.flatnonzero(self.records["key"]).astype(np.int64)
        kept = self.records[row_n]
        copies = self.decayed[: int(kept["decayed"].max(initial=0)) + 1]
        arrays: dict[str, NDArray[Any]] = {"row": row_n}
        arrays |= {f: np.ascontiguousarray(kept[f]) for f in kept.dtype.names or ()}
        arrays |= {f"decayed_{f}": np.ascontiguousarray(copies[f])
                   for f in copies.dtype.names or ()}  # fmt: skip
        return Part(
            name=self.name,
            part_class="serve" if part_class == "serve" else "train",
            arrays=arrays,
            meta={"capacity": len(self.records)},
        )

    def apply(self, parts: Mapping[str, Part]) -> int:
        """Take the records of a part; their number."""
        part = parts[self.name]
        self.records = _aligned(int(part.meta["capacity"]), self.records.dtype)
        row_n = part.array("row", np.int64)
        for field in self.records.dtype.names or ():
            self.records[field][row_n] = part.array(field)
        copies = len(part.array("decayed_n"))
        self.decayed = np.zeros(max(copies, 1 << 10), self.decayed.dtype)
        for field in self.decayed.dtype.names or ():
            self.decayed[field][:copies] = part.array(f"decayed_{field}")
        return len(row_n)


class GlobalCounters(CounterTable):
    """Counters whose keys hold no user id: state of the train stage, with a part of its own."""

    def __init__(self, n_kinds: int, rows_max: int) -> None:
        """See CounterTable."""
        super().__init__("global_counters", n_kinds, rows_max)
