"""Memory of items' last rows, by which equal content is encoded once. Encodes nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_BYTES_PER_ROW = 450
"""What Python takes for one remembered row besides its value."""


class Place(NamedTuple):
    """Where an item event stands: record, and event within it. `log`: hash of log and partition."""

    log: int
    offset: int
    event: int

    def reaches(self, other: Place) -> bool:
        """Whether this is the same log at the same event or a later one."""
        return self.log == other.log and self[1:] >= other[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The last row of an item: `value` as written, and digests of what it was made of.

    `content`: of what the encoder reads, empty for a deletion; `row`: of all that is written but
    the time. `place`: of the item event, None where that is not known.
    """

    content: bytes
    row: bytes
    value: bytes
    place: Place | None = None


class RowMemory(Protocol):
    """Last rows by item id. May forget: an item is then encoded again, to the same vector."""

    def get_many(self, item_ids: Sequence[int | str]) -> list[Remembered | None]:
        """What is remembered of these items, in their order."""
        ...

    def put_many(self, item_ids: Sequence[int | str], rows: Sequence[Remembered]) -> None:
        """Remember these rows; no id occurs twice."""
        ...


class RecentRows:
    """A RowMemory in the process: the rows used last, up to `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._rows: OrderedDict[int | str, Remembered] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        """Rows remembered."""
        return len(self._rows)

    def get_many(self, item_ids: Sequence[int | str]) -> list[Remembered | None]:
        """What is remembered of these items, in their order."""
        for item_id in item_ids:
            if item_id in self._rows:
                self._rows.move_to_end(item_id)
        return [self._rows.get(item_id) for item_id in item_ids]

    def put_many(self, item_ids: Sequence[int | str], rows: Sequence[Remembered]) -> None:
        """Remember these rows, forgetting the ones used longest ago beyond the limit."""
        for item_id, row in zip(item_ids, rows, strict=True):
            old = self._rows.pop(item_id, None)
            self.nbytes += _nbytes(row) - (_nbytes(old) if old else 0)
            self._rows[item_id] = row
        while self.nbytes > self._bytes_max:
            self.nbytes -= _nbytes(self._rows.popitem(last=False)[1])


def _nbytes(row: Remembered) -> int:
    return _BYTES_PER_ROW + len(row.value)
