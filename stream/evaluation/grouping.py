"""Numbers of groups: pairs of keys, days, hours; orders rows without sorting them by index.

Sorting packed (key, place) values is ten times as fast as an argsort of 10 million keys.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WINDOWS_MAX = 2_000
_WINDOW_HOURS = (1, 2, 3, 6, 12, 24, 168, 720, 8_760)
_DIRECT_MAX = 1 << 27
_PLACE = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Rows by window of time: `start_ms_G[code_n[i]]` is when row i's begins; none is empty."""

    code_n: NDArray[np.int32]
    start_ms_G: I64
    width_ms: int

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.start_ms_G)


def windows(ts_ms_n: I64, width_ms: int, offset_ms: int = 0) -> Windows:
    """Windows of one width that hold rows; `offset_ms` is that of the local clock to UTC."""
    number = (ts_ms_n + offset_ms) // width_ms
    low = int(number.min()) if len(number) else 0
    number -= low
    if len(number) and int(number.max()) >= _DIRECT_MAX:
        present, code = np.unique(number, return_inverse=True)
    else:
        count = np.bincount(number) if len(number) else np.zeros(0, np.int64)
        present = np.flatnonzero(count)
        code = (np.cumsum(count > 0) - 1)[number]
    return Windows(
        code_n=code.astype(np.int32),
        start_ms_G=(present + low) * width_ms - offset_ms,
        width_ms=width_ms,
    )


def hours(ts_ms_n: I64) -> Windows:
    """Windows of one hour, or of several where more than 2,000 would hold rows."""
    for width in _WINDOW_HOURS[:-1]:
        found = windows(ts_ms_n, width * HOUR_MS)
        if len(found) <= WINDOWS_MAX:
            return found
    return windows(ts_ms_n, _WINDOW_HOURS[-1] * HOUR_MS)


def dates(days: Windows, offset_ms: int) -> list[str]:
    """Local date of each day, as ISO 8601."""
    epoch = dt.date(1970, 1, 1)
    numbers = (days.start_ms_G + offset_ms) // DAY_MS
    return [(epoch + dt.timedelta(days=int(n))).isoformat() for n in numbers]


def pair_groups(a_n: NDArray[Any], b_n: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """A number for each distinct (a, b), and a bound of the numbers; both are codes from 0 on."""
    assert not len(a_n) or (a_n.min() >= 0 and b_n.min() >= 0), "codes are not negative"
    width = int(b_n.max(initial=-1)) + 1
    bound = (int(a_n.max(initial=-1)) + 1) * width
    if bound <= max(4 * len(a_n), 1 << 20):
        return a_n.astype(np.int64) * width + b_n, bound
    by_b = np.argsort(b_n, kind="stable")
    place = by_b[order_by_code(a_n[by_b])]
    a_s, b_s = a_n[place], b_n[place]
    new = np.ones(len(place), np.bool_)
    new[1:] = (a_s[1:] != a_s[:-1]) | (b_s[1:] != b_s[:-1])
    code_s = np.cumsum(new, dtype=np.int32)
    code_s -= 1
    code_n = np.empty(len(place), np.int32)
    code_n[place] = code_s
    return code_n, int(new.sum())


def order_by_code(code_n: NDArray[Any]) -> I64:
    """Places of rows in order of their codes in [0, 2**32), stable."""
    key = code_n.astype(np.uint64)
    key <<= np.uint64(32)
    key |= np.arange(len(key), dtype=np.uint64)
    key.sort()
    key &= _PLACE
    return key.view(np.int64)


def present_codes(code_n: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """The same groups numbered from 0 without gaps, and how many there are."""
    has = np.bincount(code_n) > 0 if len(code_n) else np.zeros(0, np.bool_)
    return (np.cumsum(has, dtype=np.int32) - np.int32(1))[code_n], int(has.sum())
