"""The fast way from bytes to a block: usual records of a batch by `scan_kernels`. Judges nothing.

What the scan gives up is left to msgspec (`codec_rows`), whose results it equals; so it changes
speed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import config
from numpy.typing import NDArray

from stream import scan_kernels as s
from stream.codec_blocks import Block, empty_impressions
from stream.codec_spec import ITEM_PREFIX, DecodeSpec, DenseSource
from stream.columns import EventKind, ImpressionColumns
from stream.events import TIME_MAX_MS, TIME_MIN_MS, TopicRole
from stream.records import RecordBatch

ROW_BYTES_MIN: Final = 10
"""No item shown, and no click, is encoded in fewer bytes: `item_id` and its map take these."""
NAMES_MAX: Final = 60
SKIP_BATCHES: Final = 15
"""Batches that go to msgspec at once after one of which less than half was usual."""

_OWN: Final = {"user": s.USER, "item": s.ITEM, "impression.hour": s.HOUR,
               "impression.weekday": s.WEEKDAY, "impression.position": s.POSITION}  # fmt: skip


class Scanner:
    """Scans the batches of one topic. Holds room for a batch's rows; they are copied out of it."""

    def __init__(self, spec: DecodeSpec, kinds: Sequence[str] = ()) -> None:
        """`kinds` are the kinds of clicks, by number."""
        self._spec = spec
        self._is_click = spec.role is TopicRole.CLICKS
        context, features = spec.names_in("context."), spec.names_in("features.")
        self._usable = (
            not vars(config)["DISABLE_JIT"]  # words of 64 bits wrap around when compiled only
            and all(m.path.startswith(ITEM_PREFIX) for m in spec.multis)
            and max(len(context), len(features)) <= NAMES_MAX
        )
        self._kinds = _wanted(kinds, [s.AS_ID] * len(kinds))
        self._context, self._features = (
            _wanted(names, [_wants(spec, prefix + name) for name in names])
            for prefix, names in (("context.", context), ("features.", features))
        )
        self._sources = _sources(spec, context, features)
        self._of_context, self._of_features = (
            s.Found(np.zeros(len(names), np.int64), np.zeros(len(names)))
            for names in (context, features)
        )
        self._limits = s.Limits(
            time_min=TIME_MIN_MS, time_max=TIME_MAX_MS, max_future_ms=spec.max_future_ms,
            events_max=spec.events_max, timezone_ms=spec.timezone_offset_minutes * 60_000,
        )  # fmt: skip
        self._forms = np.array(
            [*_form("click"), *_form("clicks"), 1] if self._is_click
            else [*_form("impression"), *_form("impressions"), 0], np.int64,
        )  # fmt: skip
        self._rows, self._logged = _rows(spec, 0), _logged(spec, 0, 0)
        self._skip = 0

    def scan(self, batch: RecordBatch) -> tuple[Block | None, NDArray[np.bool_] | None]:
        """The rows of usual records as a block, and which records these are; None for none."""
        if self._skip or not self._usable:
            self._skip = max(self._skip - 1, 0)
            return None, None
        values, most = batch.values, self._spec.value_bytes_max
        lengths = np.fromiter(
            (0 if value is None else len(value) for value in values), np.int64, len(values)
        )
        usable = ((lengths > 0) & (lengths <= most)).astype(np.uint8)
        data = b"".join([value for value in values if value is not None])
        if len(data) // ROW_BYTES_MIN > len(self._rows.ts):
            self._rows = _rows(self._spec, len(data) // ROW_BYTES_MIN)
            self._logged = _logged(self._spec, len(data), len(self._rows.ts))
        n = s.scan(
            np.frombuffer(data, np.uint8), np.cumsum(lengths), batch.timestamp_ms_n, usable,
            self._forms, self._kinds, self._context, self._features, self._of_context,
            self._of_features, self._sources,
            self._limits, self._logged, self._rows,
        )  # fmt: skip
        if 2 * np.count_nonzero(usable) < len(values):
            self._skip = SKIP_BATCHES
        return (self._block(n) if n else None), usable.astype(np.bool_)

    def _block(self, n: int) -> Block:
        rows = s.Rows._make(column[:n].copy() for column in self._rows)
        impressions: ImpressionColumns | None = None
        if self._is_click:
            organic = rows.request == 0
            kind_n = np.where(organic, np.uint8(EventKind.ORGANIC), np.uint8(EventKind.CLICK))
            click_kind_n = rows.kind.astype(np.int16)
        else:
            kind_n = np.full(n, EventKind.IMPRESSION, np.uint8)
            click_kind_n = np.full(n, -1, np.int16)
            impressions = empty_impressions(self._spec, n)
            impressions.ids_mF, impressions.dense_mX = rows.ids, self._numbers(rows)
            impressions.position_m = rows.position
        first = np.flatnonzero(np.diff(rows.record, prepend=-1))
        return Block(
            record_n=rows.record, place_n=rows.place, kind_n=kind_n, ts_ms_n=rows.ts,
            request_n=rows.request, item_n=rows.item, user_n=rows.user, click_kind_n=click_kind_n,
            impressions=impressions, lead_records=rows.record[first].tolist(),
            lead_users=rows.user_id[first].tolist(),
        )  # fmt: skip

    def _numbers(self, rows: s.Rows) -> NDArray[np.float32]:
        if self._spec.served is None:
            return rows.numbers
        place_n = self._logged.place_n[: len(rows.ts)]
        given = place_n >= 0
        dense_nX = np.zeros((len(given), self._spec.dense_columns), np.float32)
        dense_nX[:, : len(self._spec.dense)] = rows.numbers
        dense_nX[given, len(self._spec.dense) :] = self._logged.values_sN[place_n[given]]
        return dense_nX


def _form(type_: str) -> tuple[int, int, int]:
    """Length and first 16 bytes of a type's name."""
    name = type_.encode().ljust(16, b"\0")
    low, high = np.frombuffer(name, np.int64).tolist()
    return len(type_), low, high


def _wants(spec: DecodeSpec, path: str) -> int:
    dense = {source.path for source in spec.dense}
    ids = {source.path for source in spec.sources if not isinstance(source, DenseSource)}
    return s.AS_ID * (path in ids) + s.AS_NUMBER * (path in dense)


def _wanted(names: Sequence[str], wants: Sequence[int]) -> s.Wanted:
    texts = [name.encode() for name in names]
    return s.Wanted(
        text=np.frombuffer(b"".join(texts) or b"\0", np.uint8),
        start=np.cumsum([0, *map(len, texts)]).astype(np.int64),
        wants=np.array(wants, np.int64),
    )


def _sources(spec: DecodeSpec, context: Sequence[str], features: Sequence[str]) -> s.Sources:
    def place(path: str) -> tuple[int, int]:
        if path in _OWN:
            return _OWN[path], 0
        if path.startswith(ITEM_PREFIX):
            return s.NOTHING, 0
        prefix, _, name = path.partition(".")
        kind, names = (s.CONTEXT, context) if prefix == "context" else (s.FEATURES, features)
        return kind, names.index(name)

    ids, numbers = [place(one.path) for one in spec.ids], [place(one.path) for one in spec.dense]
    return s.Sources(
        id_kind=np.array([kind for kind, _ in ids], np.int64),
        id_place=np.array([at for _, at in ids], np.int64),
        id_salt=np.array([one.salt for one in spec.ids], np.int64),
        number_kind=np.array([kind for kind, _ in numbers], np.int64),
        number_place=np.array([at for _, at in numbers], np.int64),
    )


def _rows(spec: DecodeSpec, n: int) -> s.Rows:
    return s.Rows(
        record=np.empty(n, np.int64), place=np.empty(n, np.int64), ts=np.empty(n, np.int64),
        request=np.empty(n, np.int64), item=np.empty(n, np.int64), user=np.empty(n, np.int64),
        user_id=np.empty(n, np.int64), kind=np.empty(n, np.int64), position=np.empty(n, np.int32),
        ids=np.empty((n, spec.id_columns), np.int64),
        numbers=np.empty((n, len(spec.dense)), np.float32),
    )  # fmt: skip


def _logged(spec: DecodeSpec, data_bytes: int, rows: int) -> s.Logged:
    """Room for the logged numbers of a batch, of which each takes a byte at least."""
    width = spec.served.width if spec.served else 0
    return s.Logged(
        name=_wanted([spec.served.name] if spec.served else [], [s.AS_NUMBER] * (width > 0)),
        width=width,
        values_sN=np.empty((data_bytes // width if width else 0, width), np.float32),
        used=np.zeros(1, np.int64),
        place_n=np.empty(rows if width else 0, np.int64),
    )
