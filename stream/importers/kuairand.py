"""KuaiRand's tables to a record log. The only module that knows this data set.

Clicks: `click` where `is_click`, 7 s after the impression (the publisher's "valid play"), or at the
end of a shorter video; `long_view` where `long_view`, at the end of the play. Repeated rows are
emitted again, so that what reads the log can prove itself on them. The lists of videos watched
before the slice become organic events of kind `watch`: all entries of all users, also of users
without an impression, one user after the other at strictly increasing milliseconds that end just
before the slice's first impression, so that the log begins in order. (A list has one time for all
its entries; those of 565 users of the development slice end up to 47 minutes inside it, which is
harmless: it is long before any evaluated span.)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import InputError
from stream.codec_write import (
    click_body,
    encode_columns,
    encode_key,
    impression_body,
    item_body,
)
from stream.columns import I64
from stream.importers.import_config import ImportConfig, ImportCounts
from stream.importers.log_builder import Outgoing, write_log
from stream.importers.table_file import in_span, read_table, row_ids

CLICK_DELAY_MS: Final = 7_000
_HISTORY_FILES: Final = "user_history_before_*.parquet"
_LOG_COLUMNS: Final = (
    "user_id", "video_id", "time_ms", "is_click", "long_view", "play_time_ms", "duration_ms", "tab",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KuaiRandImportConfig(ImportConfig):
    """The settings of all importers; this one has none of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    log: pa.Table
    videos: pa.Table
    users: pa.Table | None
    history: pa.Table | None

    @property
    def first_ms(self) -> int:
        """Time of the first impression."""
        return int(pc.min(self.log["time_ms"]).as_py())

    @property
    def organic(self) -> int:
        """Entries of all histories."""
        if self.history is None:
            return 0
        return int(pc.sum(pc.list_value_length(self.history["watch_seq"])).as_py() or 0)


def import_kuairand(
    source: Path,
    out: Path,
    config: KuaiRandImportConfig,
    on_records: Callable[[int], None] = lambda _: None,
) -> ImportCounts:
    """Write the record log `out` from the tables in the folder `source`.

    Needs impressions.parquet and videos.parquet; users.parquet and one
    user_history_before_*.parquet are optional. Raises InputError when a table is absent,
    unreadable or lacks a column, or no impression lies in the span.
    """
    tables = _read_tables(source, config)
    streams = {
        "items": _items(tables),
        "impressions": _impressions(tables),
        "clicks": chain(_organic(tables), _clicks(tables.log)),
    }
    return write_log(out, streams, config, on_records, organic=tables.organic)


def request_ids(log: pa.Table) -> I64:
    """Positive 63-bit hash of (user, video, time, tab): the log itself names no request."""
    columns = [log[name].to_numpy() for name in ("user_id", "video_id", "time_ms", "tab")]
    return row_ids(columns, "request")


def _read_tables(source: Path, config: KuaiRandImportConfig) -> _Tables:
    path = source / "impressions.parquet"
    log = read_table(path, _LOG_COLUMNS)
    log, _ = in_span(log, log["time_ms"].to_numpy(), config, path)
    users = source / "users.parquet"
    histories = sorted(source.glob(_HISTORY_FILES))
    if len(histories) > 1:
        raise InputError(
            f"{source}: expected at most one {_HISTORY_FILES}, got {len(histories)}; "
            "keep the one that ends where the impressions begin"
        )
    return _Tables(
        log=log,
        videos=read_table(source / "videos.parquet", ("video_id",)),
        users=read_table(users, ("user_id",)) if users.exists() else None,
        history=read_table(histories[0], ("user_id", "watch_seq")) if histories else None,
    )


def _impressions(tables: _Tables) -> Iterator[Outgoing]:
    log = tables.log
    static = {} if tables.users is None else dict(_rows(tables.users, "user_id"))
    contexts: dict[tuple[int, int], dict[str, Any]] = {}
    columns = [log[name].to_pylist() for name in ("user_id", "video_id", "time_ms", "tab")]
    for request, user, video, time_ms, tab in zip(request_ids(log).tolist(), *columns, strict=True):
        context = contexts.get((user, tab))
        if context is None:
            context = contexts[user, tab] = {"tab": tab, **static.get(user, {})}
        body = impression_body(
            request_id=request,
            user_id=user,
            ts_ms=time_ms,
            context=context,
            items=[{"item_id": video, "position": 0}],
        )
        yield Outgoing(time_ms, encode_key(user), "impression", body)


def _clicks(log: pa.Table) -> Iterator[Outgoing]:
    columns = [log[name].to_pylist() for name in _LOG_COLUMNS[:-1]]
    rows = zip(request_ids(log).tolist(), *columns, strict=True)
    for request, user, video, time_ms, is_click, long_view, play_ms, duration_ms in rows:
        delay_ms = duration_ms if 0 < duration_ms < CLICK_DELAY_MS else CLICK_DELAY_MS
        for flag, kind, after_ms in (
            (is_click, "click", delay_ms),
            (long_view, "long_view", max(play_ms, 1)),
        ):
            if flag:
                ts_ms = time_ms + after_ms
                body = click_body(
                    request_id=request, item_id=video, user_id=user, ts_ms=ts_ms, kind=kind
                )
                yield Outgoing(ts_ms, encode_key(user), "click", body)


def _organic(tables: _Tables) -> Iterator[Outgoing]:
    """One columnar envelope a user; the newest entry stands last."""
    if tables.history is None:
        return
    next_ms = tables.first_ms - tables.organic
    lists = tables.history["watch_seq"].to_pylist()
    for user, videos in zip(tables.history["user_id"].to_pylist(), lists, strict=True):
        if not videos:
            continue
        n = len(videos)
        columns = {
            "user_id": user,
            "kind": "watch",
            "item_id": np.array(videos, np.int64),
            "ts_ms": np.arange(next_ms, next_ms + n),
        }
        next_ms += n
        message = encode_columns("click_columns", n, columns)
        yield Outgoing(next_ms - 1, encode_key(user), "click_columns", {}, message)


def _items(tables: _Tables) -> Iterator[Outgoing]:
    """One item a video, all stamped before everything else."""
    ts_ms = tables.first_ms - tables.organic - 1
    for video, attributes in _rows(tables.videos, "video_id"):
        tags = attributes.get("tag")
        if isinstance(tags, str):
            attributes["tag"] = tags.split(",")
        uploaded = attributes.get("upload_dt")
        if isinstance(uploaded, str):
            day = dt.date.fromisoformat(uploaded)
            attributes["upload_day"] = day.toordinal() - dt.date(1970, 1, 1).toordinal()
        duration_ms = attributes.get("video_duration")
        if isinstance(duration_ms, int):
            attributes["video_duration_log2"] = duration_ms.bit_length()
        body = item_body(item_id=video, ts_ms=ts_ms, attributes=attributes)
        yield Outgoing(ts_ms, encode_key(video), "item", body)


def _rows(table: pa.Table, id_column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Id and other cells of each row: whole floats as integers, empty cells left out."""
    names = [name for name in table.column_names if name != id_column]
    columns = [list(map(_whole, table[name].to_pylist())) for name in names]
    for id_, *cells in zip(table[id_column].to_pylist(), *columns, strict=True):
        yield int(id_), {n: c for n, c in zip(names, cells, strict=True) if c is not None}


def _whole(cell: object) -> object:
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell
