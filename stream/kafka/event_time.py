"""Event time of a record, for putting records in order. Checks nothing: the codec does."""

from __future__ import annotations

import msgspec
import numpy as np

from stream.events import TIME_MAX_MS, TIME_MIN_MS


class _Timed(msgspec.Struct, gc=False):
    ts_ms: int = 0


class _Cells(msgspec.Struct, gc=False):
    ts_ms: bytes | int = 0


class _Record(msgspec.Struct, gc=False):
    ts_ms: int = 0
    type: str = ""
    events: list[_Timed] = []
    columns: _Cells | None = None


_DECODER = msgspec.msgpack.Decoder(_Record)


def event_time_ms(value: bytes | None) -> int | None:
    """Latest `ts_ms` of the record's events; None where none can be read or it is no such time."""
    record = _decoded(value)
    if record is None:
        return None
    latest = record.ts_ms
    if record.events:
        latest = max(event.ts_ms for event in record.events)
    elif record.columns is not None:
        cells = record.columns.ts_ms
        if isinstance(cells, int):
            latest = cells
        elif cells and len(cells) % 8 == 0:
            latest = int(np.frombuffer(cells, "<i8").max())
    return latest if TIME_MIN_MS <= latest < TIME_MAX_MS else None


def is_watermark(value: bytes | None) -> bool:
    """Whether the record is a watermark."""
    record = _decoded(value)
    return record is not None and record.type == "watermark"


def _decoded(value: bytes | None) -> _Record | None:
    if value is None:
        return None
    try:
        return _DECODER.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
