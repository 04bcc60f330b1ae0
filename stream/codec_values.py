"""Lists of decoded values to columns: ids and fields to keys, numbers to floats.

Each function gives a whole column and adds what cannot be used to `bad`; such places hold 0.
`array("q", values)` is the strict and fast test for "all are integers": it refuses str, float and
None, where numpy would parse or truncate them, and takes 0.02 µs a value.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from stream.columns import I64, Reason
from stream.events import ID_BYTES_MAX
from stream.keys import key_of, key_of_str, keys_of_ints, salted

CACHE_VALUES_MAX: Final = 65_536
_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1


class BadRow(NamedTuple):
    """A row of a column that cannot be used."""

    row: int
    reason: Reason
    detail: str


Bad = list[BadRow]


class _BadValueError(Exception):
    """Why a value has no key."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class KeyCache(dict[Any, int]):
    """Keys of values seen lately, computed on a miss; emptied when it holds 65,536."""

    def __init__(self, key: Callable[[Any], int]) -> None:
        """`key` raises _BadValueError for what has none."""
        super().__init__()
        self._key = key

    def __missing__(self, value: object) -> int:
        """Compute, remember and return the key of `value`."""
        key = self._key(value)
        if len(self) >= CACHE_VALUES_MAX:
            self.clear()
        self[value] = key
        return key


def id_key(value: object) -> int:
    """Key of an id; raises _BadValueError."""
    if type(value) is str:
        if not 0 < len(value.encode()) <= ID_BYTES_MAX:
            raise _BadValueError(
                Reason.BAD_ID, f"expected 1 to {ID_BYTES_MAX} bytes, got {len(value.encode())}"
            )
        return key_of_str(value)
    if type(value) is int:
        if not _INT_MIN <= value <= _INT_MAX:
            raise _BadValueError(Reason.BAD_ID, f"expected a 64-bit integer, got {value:.3e}")
        return key_of(value)
    raise _BadValueError(Reason.WRONG_TYPE, f"expected an id, got {type(value).__name__}")


def value_key(value: object) -> int:
    """Plain key of a field's value, 0 for None; raises _BadValueError."""
    if value is None:
        return 0
    if type(value) is str:
        return key_of_str(value)
    if isinstance(value, float):
        if not value.is_integer():
            reason = Reason.WRONG_TYPE if math.isfinite(value) else Reason.NOT_FINITE
            raise _BadValueError(reason, f"expected an id, got the number {value}")
        value = int(value)
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise _BadValueError(Reason.BAD_ID, f"expected a 64-bit integer, got {value:.3e}")
        return key_of(value)
    raise _BadValueError(Reason.WRONG_TYPE, f"expected one value, got {type(value).__name__}")


def int_array(values: Sequence[Any]) -> I64 | None:
    """The values as int64, or None when one is no integer of 64 bits."""
    try:
        return np.frombuffer(array("q", values), np.int64) if len(values) else _EMPTY
    except (TypeError, OverflowError):
        return None


_EMPTY: Final[I64] = np.zeros(0, np.int64)


def id_keys(values: Sequence[Any], cache: KeyCache, bad: Bad, name: str) -> tuple[I64, bool]:
    """Keys of ids, and whether all ids are integers."""
    ints = int_array(values)
    if ints is not None:
        return keys_of_ints(ints), True
    return _cached_keys(values, cache, bad, name), False


def request_keys(values: Sequence[Any], cache: KeyCache, bad: Bad) -> tuple[I64, bool]:
    """As `id_keys`, for ids that hardly repeat: strings are hashed without the cache."""
    if len(values) and type(values[0]) is str:
        try:
            texts = [value.encode() for value in values]
        except AttributeError:  # an integer among them
            return id_keys(values, cache, bad, "request_id")
        if min(map(len, texts)) > 0 and max(map(len, texts)) <= ID_BYTES_MAX:
            keys = np.frombuffer(array("Q", map(xxh3_64_intdigest, texts)), np.int64)
            if keys.all():  # else one needs the stand-in for 0
                return keys, False
    return id_keys(values, cache, bad, "request_id")


def optional_id_keys(values: Sequence[Any], cache: KeyCache, bad: Bad, name: str) -> I64:
    """Keys of ids; 0 for None."""
    ints = int_array([0 if value is None else value for value in values])
    missing = _is_none(values)
    if ints is not None:
        return np.where(missing, np.int64(0), keys_of_ints(ints))
    keys = np.zeros(len(values), np.int64)
    rows = np.flatnonzero(~missing).tolist()
    inner: Bad = []
    keys[rows] = _cached_keys([values[row] for row in rows], cache, inner, name)
    bad.extend(one._replace(row=rows[one.row]) for one in inner)
    return keys


def field_keys(values: Sequence[Any], cache: KeyCache, bad: Bad, name: str) -> I64:
    """Plain keys of a field's values; 0 for None."""
    ints = int_array(values)
    if ints is not None:
        return keys_of_ints(ints)
    if None in values:
        ints = int_array([0 if value is None else value for value in values])
        if ints is not None:
            return np.where(_is_none(values), np.int64(0), keys_of_ints(ints))
    return _cached_keys(values, cache, bad, name)


def _is_none(values: Sequence[Any]) -> NDArray[np.bool_]:
    return np.fromiter((value is None for value in values), np.bool_, len(values))


def _cached_keys(values: Sequence[Any], cache: KeyCache, bad: Bad, name: str) -> I64:
    try:
        return np.fromiter(map(cache.__getitem__, values), np.int64, len(values))
    except (_BadValueError, TypeError):  # TypeError: a list cannot be looked up
        keys = np.zeros(len(values), np.int64)
        for row, value in enumerate(values):
            try:
                keys[row] = cache._key(value)  # noqa: SLF001  # lists cannot be remembered
            except _BadValueError as error:
                bad.append(BadRow(row, error.reason, f"{name}: {error.detail}"))
        return keys


def multi_keys(
    values: Sequence[Any], length: int, salt: np.int64, cache: KeyCache, bad: Bad, name: str
) -> I64:
    """Salted keys int64 [n, length] of lists (or single values), None left out, 0 padded."""
    lists = [_as_list(value, length) for value in values]
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    inner: Bad = []
    flat = field_keys([value for one in lists for value in one], cache, inner, name)
    row_of = np.repeat(np.arange(len(lists)), counts)
    starts = np.cumsum(counts) - counts
    keys = np.zeros((len(lists), length), np.int64)
    keys[row_of, np.arange(len(flat)) - starts[row_of]] = salted(flat, salt)
    bad.extend(one._replace(row=int(row_of[one.row])) for one in inner)
    return keys


def _as_list(value: object, length: int) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list):
        return [one for one in value if one is not None][:length]
    return [value]


def float_column(values: Sequence[Any], bad: Bad, name: str) -> NDArray[np.float32]:
    """Numbers as float32; 0 for None."""
    try:
        column = np.array(array("d", values))
    except (TypeError, OverflowError):
        column = np.zeros(len(values))
        for row, value in enumerate(values):
            if value is None:
                continue
            try:
                column[row] = array("d", (value,))[0]
            except TypeError:
                got = type(value).__name__
                bad.append(BadRow(row, Reason.WRONG_TYPE, f"{name}: expected a number, got {got}"))
            except OverflowError:
                column[row] = np.inf
    return finite(column, bad, name)


def finite(column: NDArray[Any], bad: Bad, name: str) -> NDArray[np.float32]:
    """The column as float32; what is not finite in it becomes a bad row."""
    with np.errstate(over="ignore"):
        narrow = column.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(narrow))
    for row in wrong.tolist():
        bad.append(BadRow(row, Reason.NOT_FINITE, f"{name}: got {column[row]}"))
    return narrow


def small_ints(values: Sequence[Any], bad: Bad, name: str) -> NDArray[np.int32]:
    """Integers of 32 bits."""
    try:
        return np.array(array("i", values), np.int32)
    except (TypeError, OverflowError):
        column = np.zeros(len(values), np.int32)
        for row, value in enumerate(values):
            if type(value) is int and -(2**31) <= value < 2**31:
                column[row] = value
            else:
                bad.append(
                    BadRow(
                        row,
                        Reason.WRONG_TYPE,
                        f"{name}: expected a 32-bit integer, got {value!r:.40}",
                    )
                )
        return column


def repeated_rows(bad: Bad, reason: Reason, rows: I64, detail: str) -> None:
    """Add all `rows` for one reason."""
    bad.extend(map(BadRow, rows.tolist(), repeat(reason), repeat(detail)))
