"""Columnar envelopes to blocks: cells of all envelopes of a batch are joined, then converted once.

A cell is bytes (n little-endian int64), {"f4": bytes}, {"blob", "offsets"} (strings) or a scalar.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.codec_blocks import Block
from stream.codec_fill import filled
from stream.codec_rows import Caches, names_of
from stream.codec_served import served_of_columns
from stream.codec_spec import SERVED_VERSION, DecodeSpec, ServedSource
from stream.codec_values import (
    Bad,
    field_keys,
    finite,
    float_column,
    id_keys,
    multi_keys,
    small_ints,
)
from stream.columns import I64, EventKind, Reason, Rejected
from stream.keys import keys_of_ints

IDS: Final = ("user_id", "item_id")
_INT64: Final = struct.Struct("<q")
_SCALARS: Final = (int, float, str, bool, type(None))


class _BadCellError(ValueError):
    """Why a cell cannot be read; `reason` is the record's."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def good_messages(
    messages: list[tuple[int, Any]], required: Sequence[str], read: Sequence[str]
) -> tuple[list[tuple[int, Any]], list[Rejected]]:
    """Messages whose cells have the right form and length, and the others as rejected records."""
    good, rejected = [], []
    for record, message in messages:
        try:
            _check_cells(message.n, message.columns, required, read)
        except _BadCellError as error:
            rejected.append(
                Rejected(record=record, index=-1, reason=error.reason, detail=str(error))
            )
        else:
            good.append((record, message))
    return good, rejected


def _check_cells(
    n: int, columns: dict[str, Any], required: Sequence[str], read: Sequence[str]
) -> None:
    for name in required:
        if columns.get(name) is None:
            raise _BadCellError(Reason.MISSING_FIELD, f"columns: no column '{name}'")
    for name in read:
        cell = columns.get(name)
        if type(cell) is bytes:
            if len(cell) != 8 * n:
                raise _BadCellError(
                    Reason.WRONG_TYPE,
                    f"column '{name}': expected {8 * n} bytes for {n} rows, got {len(cell)}",
                )
        elif type(cell) is dict:
            _check_map(n, name, cell)
        elif not isinstance(cell, _SCALARS):
            got = type(cell).__name__
            raise _BadCellError(Reason.WRONG_TYPE, f"column '{name}': expected a cell, got {got}")
    times, kind = columns["ts_ms"], columns.get("kind")
    if type(times) is int and not -(2**63) <= times < 2**63:
        raise _BadCellError(Reason.BAD_TIME, f"column 'ts_ms': got {times:.3e}")
    if type(times) is not bytes and type(times) is not int:
        raise _BadCellError(Reason.WRONG_TYPE, "column 'ts_ms': expected int64 or one integer")
    if "kind" in required and not (type(kind) is str or (type(kind) is dict and "blob" in kind)):
        raise _BadCellError(Reason.WRONG_TYPE, "column 'kind': expected strings")


def _check_map(n: int, name: str, cell: dict[Any, Any]) -> None:
    floats, blob, offsets = cell.get("f4"), cell.get("blob"), cell.get("offsets")
    if type(floats) is bytes and len(floats) == 4 * n:
        return
    if type(blob) is not bytes or type(offsets) is not bytes or len(offsets) != 4 * (n + 1):
        raise _BadCellError(
            Reason.WRONG_TYPE,
            f"column '{name}': expected f4 of {4 * n} bytes, or blob and offsets of {4 * (n + 1)}",
        )
    ends = np.frombuffer(offsets, "<i4")
    if ends[0] != 0 or ends[-1] != len(blob) or np.any(np.diff(ends) < 0):
        raise _BadCellError(Reason.WRONG_TYPE, f"column '{name}': offsets do not cut the blob")
    try:
        _texts(cell)
    except UnicodeDecodeError:
        raise _BadCellError(Reason.WRONG_TYPE, f"column '{name}': not UTF-8") from None


def _texts(cell: dict[str, bytes]) -> list[str]:
    ends = np.frombuffer(cell["offsets"], "<i4").tolist()
    blob = cell["blob"]
    return [blob[a:b].decode() for a, b in pairwise(ends)]


class Columns:
    """Cells of checked messages as columns over all their rows; the `Fields` of columnar forms."""

    def __init__(self, messages: list[Any], caches: Caches) -> None:
        """Every message has at least one row."""
        self._columns: list[dict[str, Any]] = [message.columns for message in messages]
        self._n: list[int] = [message.n for message in messages]
        self._caches = caches

    def values(self, name: str) -> list[Any]:
        """One Python value a row."""
        cells = zip(self._columns, self._n, strict=True)
        return list(chain.from_iterable(_values(columns.get(name), n) for columns, n in cells))

    def ints(self, name: str) -> I64 | None:
        """The column as int64 where all its cells are integers, else None."""
        parts: list[bytes] = []
        for columns, n in zip(self._columns, self._n, strict=True):
            cell = columns.get(name)
            if type(cell) is bytes:
                parts.append(cell)
            elif type(cell) is int and -(2**63) <= cell < 2**63:
                parts.append(_INT64.pack(cell) * n)
            else:
                return None
        return np.frombuffer(b"".join(parts), "<i8")

    def is_missing(self, name: str) -> bool:
        """True when no message has the column."""
        return all(columns.get(name) is None for columns in self._columns)

    def ids(self, name: str, bad: Bad) -> tuple[I64, bool]:
        """Keys of ids, and whether all are integers."""
        ints = self.ints(name)
        if ints is not None:
            return keys_of_ints(ints), True
        return id_keys(self.values(name), self._caches.ids, bad, name)

    def keys(self, path: str, bad: Bad) -> I64:
        """Plain keys, 0 where the field is missing."""
        ints = self.ints(path)
        if ints is not None:
            return keys_of_ints(ints)
        if self.is_missing(path):
            return np.zeros(sum(self._n), np.int64)
        return field_keys(self.values(path), self._caches.values, bad, path)

    def multi(self, path: str, length: int, salt: np.int64, bad: Bad) -> I64:
        """Salted keys [n, length]; a columnar field has at most one value a row."""
        return multi_keys(self.values(path), length, salt, self._caches.values, bad, path)

    def floats(self, path: str, bad: Bad) -> NDArray[np.float32]:
        """Numbers, 0 where the field is missing."""
        cells = [columns.get(path) for columns in self._columns]
        parts = [cell["f4"] for cell in cells if type(cell) is dict and "f4" in cell]
        if len(parts) == len(cells):
            return finite(np.frombuffer(b"".join(parts), "<f4"), bad, path)
        ints = self.ints(path)
        return (
            float_column(self.values(path), bad, path) if ints is None else finite(ints, bad, path)
        )

    def served(self, source: ServedSource, bad: Bad) -> tuple[I64, NDArray[np.float32]]:
        """Keys of the version [n], and numbers [n, width]; 0 where they are not there."""
        versions = self.values(SERVED_VERSION)
        cells = [columns.get(source.path) for columns in self._columns]
        return served_of_columns(versions, cells, self._n, source, bad)


def _values(cell: object, n: int) -> list[Any]:
    if type(cell) is bytes:
        return list(np.frombuffer(cell, "<i8").tolist())
    if type(cell) is dict:
        return list(np.frombuffer(cell["f4"], "<f4").tolist()) if "f4" in cell else _texts(cell)
    return [cell] * n


def columnar_click_block(
    messages: list[tuple[int, Any]], kinds: dict[str, int], caches: Caches
) -> Block:
    """Rows of columnar clicks; without a request_id column they are organic."""
    columns = Columns([message for _, message in messages], caches)
    bad: Bad = []
    record_n, place_n, starts = _places(messages)
    request_n, kind_n = _requests(messages, caches, bad)
    user_n, _ = columns.ids("user_id", bad)
    item_n, _ = columns.ids("item_id", bad)
    return Block(
        record_n=record_n,
        place_n=place_n,
        kind_n=kind_n,
        ts_ms_n=_times(columns),
        request_n=request_n,
        item_n=item_n,
        user_n=user_n,
        click_kind_n=_kinds(messages, kinds),
        lead_records=[record for record, _ in messages],
        lead_users=_lead_users(columns, starts),
        bad=bad,
    )


def columnar_impression_block(
    messages: list[tuple[int, Any]], spec: DecodeSpec, caches: Caches
) -> Block:
    """Rows of columnar impressions."""
    columns = Columns([message for _, message in messages], caches)
    bad: Bad = []
    record_n, place_n, starts = _places(messages)
    request_n, plain_requests = columns.ids("request_id", bad)
    user_n, plain_users = columns.ids("user_id", bad)
    item_n, plain_items = columns.ids("item_id", bad)
    ts_ms_n = _times(columns)
    if columns.is_missing("position"):
        position_n = _within(record_n, request_n)
    else:
        values = [-1 if value is None else value for value in columns.values("position")]
        position_n = small_ints(values, bad, "position")
        position_n = np.where(position_n < 0, _within(record_n, request_n), position_n)
    impressions = filled(
        spec, columns, ts_ms_n=ts_ms_n, user_n=user_n, item_n=item_n, position_n=position_n, bad=bad
    )
    if not (plain_requests and plain_users and plain_items):
        impressions.names = names_of(*map(columns.values, ("request_id", "item_id", "user_id")))
    return Block(
        record_n=record_n,
        place_n=place_n,
        kind_n=np.full(len(record_n), EventKind.IMPRESSION, np.uint8),
        ts_ms_n=ts_ms_n,
        request_n=request_n,
        item_n=item_n,
        user_n=user_n,
        click_kind_n=np.full(len(record_n), -1, np.int16),
        impressions=impressions,
        lead_records=[record for record, _ in messages],
        lead_users=_lead_users(columns, starts),
        bad=bad,
    )


def _places(messages: list[tuple[int, Any]]) -> tuple[I64, I64, list[int]]:
    n_r = np.array([message.n for _, message in messages], np.int64)
    starts = np.cumsum(n_r) - n_r
    record_n = np.repeat(np.array([record for record, _ in messages], np.int64), n_r)
    return record_n, np.arange(len(record_n)) - np.repeat(starts, n_r), starts.tolist()


def _times(columns: Columns) -> I64:
    times = columns.ints("ts_ms")
    assert times is not None, "checked with the cells"
    return times


def _within(record_n: I64, request_n: I64) -> NDArray[np.int32]:
    new = np.ones(len(record_n), np.bool_)
    new[1:] = (np.diff(record_n) != 0) | (np.diff(request_n) != 0)
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(record_n)))
    return (np.arange(len(record_n)) - np.repeat(starts, lengths)).astype(np.int32)


def _requests(
    messages: list[tuple[int, Any]], caches: Caches, bad: Bad
) -> tuple[I64, NDArray[np.uint8]]:
    """Request keys, 0 for organic rows, and the kinds of the rows."""
    counts = [message.n for _, message in messages]
    joined = np.array(
        [message.columns.get("request_id") is not None for _, message in messages], np.bool_
    )
    is_click = np.repeat(joined, counts)
    request_n = np.zeros(len(is_click), np.int64)
    with_request = [
        message for _, message in messages if message.columns.get("request_id") is not None
    ]
    if with_request:
        inner: Bad = []
        request_n[is_click], _ = Columns(with_request, caches).ids("request_id", inner)
        rows = np.flatnonzero(is_click)
        bad.extend(one._replace(row=int(rows[one.row])) for one in inner)
    return request_n, np.where(is_click, EventKind.CLICK, EventKind.ORGANIC).astype(np.uint8)


def _kinds(messages: list[tuple[int, Any]], kinds: dict[str, int]) -> NDArray[np.int16]:
    cells = [message.columns["kind"] for _, message in messages]
    counts = [message.n for _, message in messages]
    if all(type(cell) is str for cell in cells):
        return np.repeat(np.array([kinds.get(cell, -1) for cell in cells], np.int16), counts)
    rows = chain.from_iterable(map(_values, cells, counts))
    return np.array([kinds.get(kind, -1) for kind in rows], np.int16)


def _lead_users(columns: Columns, starts: list[int]) -> list[Any]:
    ints = columns.ints("user_id")
    if ints is not None:
        return list(ints[starts].tolist())
    users = columns.values("user_id")
    return [users[start] for start in starts]
