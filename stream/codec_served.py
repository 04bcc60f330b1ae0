"""Logged features of impressions (`served`) to columns. What they are worth is not judged here.

Numbers are a list or little-endian float32 as bytes. Other than `width` of them for each item shown
are of another layout: as if not logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.codec_spec import ServedSource
from stream.codec_values import Bad, BadRow
from stream.columns import I64, Reason
from stream.keys import key_of_str

F32 = NDArray[np.float32]


def served_of_events(
    served: Sequence[Any], event_of_row: I64 | None, source: ServedSource, bad: Bad
) -> tuple[I64, F32]:
    """Keys of versions [m] and numbers [m, width] of the rows of events in row form.

    `served` has one entry an event, None where there is none; `event_of_row` None: one row each.
    """
    width = source.width
    rows_e = (
        np.ones(len(served), np.int64) if event_of_row is None
        else np.bincount(event_of_row, minlength=len(served))
    )  # fmt: skip
    cells = [b"" if one is None else _bytes(one.features.values) for one in served]
    lengths = np.fromiter(map(len, cells), np.int64, len(cells))
    fits_e = (lengths == 4 * rows_e * width) & (lengths > 0)
    fits_m = np.repeat(fits_e, rows_e)
    data = b"".join([cell for cell, fits in zip(cells, fits_e.tolist(), strict=True) if fits])
    values_mN = np.zeros((len(fits_m), width), np.float32)
    _put(values_mN, fits_m, np.frombuffer(data, "<f4").reshape(-1, width), source, bad)
    keys = _Keys()
    key_e = [keys[one.feature_version] if fits else 0
             for one, fits in zip(served, fits_e.tolist(), strict=True)]  # fmt: skip
    return np.repeat(np.array(key_e, np.int64), rows_e), values_mN


def served_of_columns(
    versions: Sequence[Any], cells: Sequence[Any], counts: Sequence[int], source: ServedSource,
    bad: Bad,
) -> tuple[I64, F32]:  # fmt: skip
    """The same of columnar messages: a version each row, and a cell of numbers each message."""
    width = source.width
    given = [cell.get("f4") if type(cell) is dict else None for cell in cells]
    fits = [type(data) is bytes and len(data) == 4 * n * width
            for data, n in zip(given, counts, strict=True)]  # fmt: skip
    fits_m = np.repeat(np.array(fits, np.bool_), counts)
    data = b"".join([data for data, good in zip(given, fits, strict=True) if data and good])
    values_mN = np.zeros((len(fits_m), width), np.float32)
    _put(values_mN, fits_m, np.frombuffer(data, "<f4").reshape(-1, width), source, bad)
    keys = _Keys()
    key_m = [keys[version] if good and isinstance(version, str) else 0
             for version, good in zip(versions, fits_m.tolist(), strict=True)]  # fmt: skip
    key_n = np.array(key_m, np.int64)
    values_mN[key_n == 0] = 0
    return key_n, values_mN


def _bytes(values: list[float] | bytes | None) -> bytes:
    if values is None or isinstance(values, bytes):
        return values or b""
    with np.errstate(over="ignore"):
        return np.array(values).astype("<f4").tobytes()


class _Keys(dict[str, int]):
    """Keys of versions, of which a batch has few."""

    def __missing__(self, version: str) -> int:
        self[version] = key_of_str(version)
        return self[version]


def _put(
    into_mN: F32, fits_m: NDArray[np.bool_], found: NDArray[Any], source: ServedSource, bad: Bad
) -> None:
    """Write the numbers of the rows that have some; rows with one that is not finite are bad."""
    into_mN[fits_m] = found
    for row in np.flatnonzero(~np.isfinite(into_mN).all(1)).tolist():
        bad.append(BadRow(row, Reason.NOT_FINITE, f"{source.path}: a number is not finite"))
