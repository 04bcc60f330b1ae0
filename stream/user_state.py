"""User state: histories in rings, last impression, session, interactions; the loops are in kernels.

A frozen history is (user row, sequence number), read when the request settles. A ring that has
overtaken an open reader loses that reader's oldest entries, deterministically and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infra.state import Part
from stream import kernels

RING_SLACK = 14
"""Entries that a ring holds beyond the history's length, for impressions still open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """A user's last `length` items of the click kinds `kinds`, oldest first."""

    name: str
    kinds: tuple[str, ...]
    length: int = 50

    def __post_init__(self) -> None:
        """Check what types cannot."""
        if not self.kinds or not 1 <= self.length <= 1_000:
            raise ValueError(
                f"history '{self.name}': needs kinds and a length of 1 to 1000, got "
                f"{list(self.kinds)} and {self.length}"
            )


def ring_size(length: int) -> int:
    """Places of a ring for histories of `length`: a power of two."""
    return 1 << (length + RING_SLACK - 1).bit_length()


class UserState:
    """Rows of users, grown by doubling up to `users_max`; the items table counts interactions."""

    def __init__(self, *, histories: int, ring: int, users_max: int, items_max: int) -> None:
        """`ring` is the ring size, shared by all histories."""
        self.users_max, self.items_max = users_max, items_max
        self._ring = ring
        rows = 1 << 10
        self.arrays = kernels.Users(
            table=np.zeros((rows * 2, 2), np.int64),
            ring=np.zeros((rows, histories * ring), np.int64),
            seq=np.zeros((rows, histories), np.int64),
            last_ts=np.zeros(rows, np.int64),
            session=np.zeros(rows, np.int64),
            clicked=np.zeros(rows, np.int64),
            interactions=np.zeros(rows, np.int64),
            items=np.zeros((rows * 2, 2), np.int64),
        )

    def reserve(self, users: int, items: int, n: int) -> None:
        """Make room for n more users and items."""
        a = self.arrays
        need = min(users + n, self.users_max)
        if need > len(a.last_ts):
            rows = len(a.last_ts)
            while rows < need:
                rows *= 2
            a = a._replace(
                ring=_grown(a.ring, rows), seq=_grown(a.seq, rows),
                last_ts=_grown(a.last_ts, rows), session=_grown(a.session, rows),
                clicked=_grown(a.clicked, rows), interactions=_grown(a.interactions, rows),
            )  # fmt: skip
        a = a._replace(table=grown_table(a.table, min(users + n, self.users_max)))
        self.arrays = a._replace(items=grown_table(a.items, min(items + n, self.items_max)))

    def export(self, users: int) -> Part:
        """All rows in use."""
        a = self.arrays
        return Part(
            name="user_state",
            part_class="serve",
            arrays={
                "table": table_rows(a.table), "ring": a.ring[:users].copy(),
                "seq": a.seq[:users].copy(), "last_ts": a.last_ts[:users].copy(),
                "session": a.session[:users].copy(), "clicked": a.clicked[:users].copy(),
                "interactions": a.interactions[:users].copy(), "items": table_rows(a.items),
            },
            meta={"ring": self._ring},
        )  # fmt: skip

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the rows of a part."""
        part = parts["user_state"]
        if part.meta["ring"] != self._ring or (
            part.array("ring").shape[1] != self.arrays.ring.shape[1]
        ):
            raise ValueError("part 'user_state': histories of another number or length")
        users = len(part.array("last_ts"))
        self.reserve(users, len(part.array("items")), 0)
        a = self.arrays
        for name in ("ring", "seq", "last_ts", "session", "clicked", "interactions"):
            target = getattr(a, name)
            target[...] = 0
            target[:users] = part.array(name, np.int64)
        self.arrays = a._replace(
            table=table_of(part.array("table", np.int64)),
            items=table_of(part.array("items", np.int64)),
        )


def _grown(old: kernels.I64, rows: int) -> kernels.I64:
    new = np.zeros((rows, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


def grown_table(table: kernels.I64, used: int) -> kernels.I64:
    """The table, or a larger copy, such that `used` entries fill at most half of it."""
    capacity = len(table)
    while capacity < 2 * (used + 1):
        capacity *= 2
    if capacity == len(table):
        return table
    new = np.zeros((capacity, 2), np.int64)
    kernels.rehash(table, new)
    return new


def table_rows(table: kernels.I64) -> kernels.I64:
    """The entries of a table, [n, 2]."""
    rows: kernels.I64 = table[table[:, 0] != 0]
    return rows


def table_of(rows: kernels.I64) -> kernels.I64:
    """A table of entries [n, 2]."""
    capacity = 1 << 11
    while capacity < 2 * (len(rows) + 1):
        capacity *= 2
    new = np.zeros((capacity, 2), np.int64)
    kernels.rehash(np.ascontiguousarray(rows), new)
    return new
