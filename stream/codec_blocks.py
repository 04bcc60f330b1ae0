"""Blocks of rows, each of one wire form, to the EventColumns of a batch. Reads no bytes.

Here stand the checks that need whole columns: times, record keys. An event with one bad row is
rejected as a whole; a columnar envelope's events are its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream.codec_spec import DecodeSpec
from stream.codec_values import Bad, BadRow, repeated_rows
from stream.codec_write import encode_key
from stream.columns import I64, EventColumns, EventKind, ImpressionColumns, Reason, Rejected
from stream.events import TIME_MAX_MS, TIME_MIN_MS
from stream.keys import key_of_str, keys_of_ints
from stream.records import RecordBatch

_PLACE_BITS: Final = 32


@dataclass(slots=True, kw_only=True)
class Block:
    """Rows of one kind in (record, place) order; `place_n` is the event's place in its record.

    `lead_records` and `lead_users` are each record's number and the user id of its first row, for
    the check of record keys; empty for events without a user.
    """

    record_n: I64
    place_n: I64
    kind_n: NDArray[np.uint8]
    ts_ms_n: I64
    request_n: I64
    item_n: I64
    user_n: I64
    click_kind_n: NDArray[np.int16]
    impressions: ImpressionColumns | None = None
    lead_records: list[int] = field(default_factory=list)
    lead_users: Sequence[int | str] = ()
    bad: Bad = field(default_factory=list)


def plain_block(
    record_n: Sequence[int], place_n: Sequence[int], kind: EventKind, ts_ms_n: Sequence[int]
) -> Block:
    """Rows that have nothing but a kind and a time: watermarks and rejects."""
    n = len(record_n)
    zeros = np.zeros(n, np.int64)
    return Block(
        record_n=np.array(record_n, np.int64),
        place_n=np.array(place_n, np.int64),
        kind_n=np.full(n, kind, np.uint8),
        ts_ms_n=np.array(ts_ms_n, np.int64),
        request_n=zeros,
        item_n=zeros,
        user_n=zeros,
        click_kind_n=np.full(n, -1, np.int16),
    )


def empty_impressions(spec: DecodeSpec, rows: int = 0) -> ImpressionColumns:
    """Columns of the right shapes, all 0; the propensity is unknown."""
    return ImpressionColumns(
        ids_mF=np.zeros((rows, spec.id_columns), np.int64),
        multi_mM=tuple(np.zeros((rows, multi.length), np.int64) for multi in spec.multis),
        dense_mX=np.zeros((rows, spec.dense_columns), np.float32),
        position_m=np.zeros(rows, np.int32),
        propensity_m=np.full(rows, np.nan, np.float32),
    )


def columns_of(
    blocks: list[Block], rejected: list[Rejected], batch: RecordBatch, spec: DecodeSpec
) -> EventColumns:
    """All good rows in (record, place) order, and one REJECTED row for each rejected event."""
    for block in blocks:
        _check_times(block, batch, spec.max_future_ms)
        _check_keys(block, batch)
    rejected = rejected + [reject for block in blocks for reject in _drop_bad(block)]
    rejected.sort(key=lambda reject: (reject.record, reject.index))
    if rejected:
        records = [reject.record for reject in rejected]
        places = [max(reject.index, 0) for reject in rejected]
        blocks = [*blocks, plain_block(records, places, EventKind.REJECTED, [0] * len(records))]
    if not blocks:
        blocks = [plain_block([], [], EventKind.REJECTED, [])]
    return _merged(blocks, rejected, spec)


def _check_times(block: Block, batch: RecordBatch, max_future_ms: int) -> None:
    ts = block.ts_ms_n
    outside = (ts < TIME_MIN_MS) | (ts >= TIME_MAX_MS)
    if outside.any():
        for row in np.flatnonzero(outside).tolist():
            detail = f"ts_ms: expected the years 2000 to 2099, got {ts[row]}"
            block.bad.append(BadRow(row, Reason.BAD_TIME, detail))
    stamp = batch.timestamp_ms_n[block.record_n]
    # Kafka's timestamp is -1 where the producer gave none: then nothing can be said.
    future = (ts - stamp > max_future_ms) & (stamp > 0) & ~outside
    future &= block.kind_n != EventKind.WATERMARK
    for row in np.flatnonzero(future).tolist():
        detail = f"ts_ms {ts[row]}: over {max_future_ms} ms ahead of its record's {stamp[row]}"
        block.bad.append(BadRow(row, Reason.FUTURE_TIME, detail))


def _check_keys(block: Block, batch: RecordBatch) -> None:
    got = [batch.keys[record] for record in block.lead_records]
    if got.count(None) == len(got):
        return
    expected = [
        b"%d" % user if type(user) is int else encode_key(user) for user in block.lead_users
    ]
    if got == expected and len(got) == len(block.record_n):
        return
    wrong = {
        record
        for record, key, own in zip(block.lead_records, got, expected, strict=True)
        if key is not None and key != own
    }
    # Rows behind the first one: another user in a keyed record is wrong too.
    change = np.flatnonzero((np.diff(block.record_n) == 0) & (np.diff(block.user_n) != 0))
    wrong.update(r for r in block.record_n[change].tolist() if batch.keys[r] is not None)
    for record in sorted(wrong):
        key = batch.keys[record]
        assert key is not None
        rows = np.flatnonzero(block.record_n == record)
        rows = rows[~np.isin(block.user_n[rows], _keys_spelled(key))]
        repeated_rows(
            block.bad, Reason.KEY_MISMATCH, rows, f"record key {key[:64]!r} is not its user's"
        )


def _keys_spelled(key: bytes) -> I64:
    """Keys of the ids that a record key can stand for: the string, and the integer if it is one."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return np.zeros(0, np.int64)
    spelled = [key_of_str(text)]
    if (
        len(text) <= 20 and text.lstrip("-").isdecimal() and text == str(int(text))
    ):  # digits of 64 bits
        number = int(text)
        if -(2**63) <= number < 2**63:
            spelled.append(int(keys_of_ints(np.array([number]))[0]))
    return np.array(spelled, np.int64)


def _drop_bad(block: Block) -> list[Rejected]:
    """Take the events of bad rows out of the block."""
    if not block.bad:
        return []
    event_n = (block.record_n << _PLACE_BITS) | block.place_n
    first: dict[int, Rejected] = {}
    for bad in block.bad:
        event = int(event_n[bad.row])
        if event not in first:
            first[event] = Rejected(
                record=event >> _PLACE_BITS,
                index=event & ((1 << _PLACE_BITS) - 1),
                reason=bad.reason,
                detail=bad.detail,
            )
    keep = ~np.isin(event_n, np.fromiter(first, np.int64, len(first)))
    for name in ("record_n", "place_n", "kind_n", "ts_ms_n", "request_n", "item_n", "user_n"):
        setattr(block, name, getattr(block, name)[keep])
    block.click_kind_n = block.click_kind_n[keep]
    if block.impressions is not None:
        block.impressions = _taken(block.impressions, np.flatnonzero(keep))
    return list(first.values())


def _taken(columns: ImpressionColumns, row_n: NDArray[Any]) -> ImpressionColumns:
    names = columns.names
    if names is not None:
        names = [names[row] for row in row_n.tolist()]
    return ImpressionColumns(
        ids_mF=columns.ids_mF[row_n],
        multi_mM=tuple(multi[row_n] for multi in columns.multi_mM),
        dense_mX=columns.dense_mX[row_n],
        position_m=columns.position_m[row_n],
        propensity_m=columns.propensity_m[row_n],
        names=names,
    )


def _merged(blocks: list[Block], rejected: list[Rejected], spec: DecodeSpec) -> EventColumns:
    shown = [block.impressions for block in blocks if block.impressions is not None]
    record_n = _joined([block.record_n for block in blocks])
    imp_n = np.full(len(record_n), -1, np.int32)
    start, row = 0, 0
    for block in blocks:
        if block.impressions is not None:
            m = len(block.record_n)
            imp_n[start : start + m] = np.arange(row, row + m)
            row += m
        start += len(block.record_n)
    order: NDArray[np.int64] | slice = slice(None)
    if len(blocks) > 1:
        place_n = _joined([block.place_n for block in blocks])
        order = np.argsort((record_n << _PLACE_BITS) | place_n, kind="stable")
        record_n = record_n[order]
    imp_n, impressions = imp_n[order], _joined_impressions(shown, spec)
    if len(shown) > 1:
        impressions = _taken(impressions, imp_n[imp_n >= 0])
        imp_n[imp_n >= 0] = np.arange(row)
    starts = np.flatnonzero(np.diff(record_n, prepend=-1))
    lengths = np.diff(np.append(starts, len(record_n)))
    return EventColumns(
        kind_n=_joined([block.kind_n for block in blocks])[order],
        ts_ms_n=_joined([block.ts_ms_n for block in blocks])[order],
        request_n=_joined([block.request_n for block in blocks])[order],
        item_n=_joined([block.item_n for block in blocks])[order],
        user_n=_joined([block.user_n for block in blocks])[order],
        click_kind_n=_joined([block.click_kind_n for block in blocks])[order],
        record_n=record_n.astype(np.int32),
        index_n=(np.arange(len(record_n)) - np.repeat(starts, lengths)).astype(np.int32),
        imp_n=imp_n,
        impressions=impressions,
        rejected=rejected,
    )


def _joined(columns: list[NDArray[Any]]) -> NDArray[Any]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _joined_impressions(parts: list[ImpressionColumns], spec: DecodeSpec) -> ImpressionColumns:
    if not parts:
        return empty_impressions(spec)
    if len(parts) == 1:
        return parts[0]
    names = None
    if any(part.names is not None for part in parts):
        names = [
            name
            for part in parts
            for name in ([None] * len(part.position_m) if part.names is None else part.names)
        ]
    return ImpressionColumns(
        ids_mF=np.concatenate([part.ids_mF for part in parts]),
        multi_mM=tuple(
            np.concatenate([part.multi_mM[i] for part in parts]) for i in range(len(spec.multis))
        ),
        dense_mX=np.concatenate([part.dense_mX for part in parts]),
        position_m=np.concatenate([part.position_m for part in parts]),
        propensity_m=np.concatenate([part.propensity_m for part in parts]),
        names=names,
    )
