"""MIND's impressions and news to a record log. The only module that knows this data set.

A request shows all its candidates. The publisher shuffles them: the position is their place in the
list, which says nothing of where they stood on the page. Clicks have no time in the data: each gets
`CLICK_DELAY_MS` after its impression. A user's `history` (earlier clicks, the same list in all of
the user's rows) becomes organic clicks in front of the log.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from infra.errors import InputError
from stream.codec_write import click_body, encode_key, impression_body, item_body
from stream.columns import I64
from stream.importers.histories import organic_histories
from stream.importers.import_config import ImportConfig, ImportCounts, Progress, unheard
from stream.importers.log_builder import Outgoing, write_log
from stream.importers.table_file import first_of, in_span, milliseconds, read_table

CLICK_DELAY_MS: Final = 5_000
_SHOWN_FILES: Final = ("impressions.parquet", "behaviors.tsv")
_NEWS_FILES: Final = ("news.parquet", "news_partial.parquet", "news.tsv")
_SHOWN_TEXT: Final = ("impression_id", "user_id", "time", "history", "impressions")
_SHOWN_LISTS: Final = ("impression_id", "user_id", "time", "history", "candidates", "clicked")
_NEWS: Final = (
    "news_id", "category", "subcategory", "title", "abstract", "url", "title_entities",
    "abstract_entities",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requests:
    ids: list[int]
    users: list[str]
    ts_ms_n: I64
    histories: list[list[str]]
    candidates: list[list[str]]
    clicked: list[list[int]]


def import_mind(
    source: Path, out: Path, config: ImportConfig, on_records: Progress = unheard
) -> ImportCounts:
    """Write the record log `out` from the tables in the folder `source`.

    Needs the publisher's behaviors.tsv or an impressions.parquet with lists; news.tsv, news.parquet
    or news_partial.parquet is optional. Raises InputError when a table is absent, unreadable or
    lacks a column, or no request lies in the span.
    """
    requests = _requests(source, config)
    first_rows: dict[str, int] = {}
    for row, user in enumerate(requests.users):
        first_rows.setdefault(user, row)
    histories = [requests.histories[row] for row in first_rows.values()]
    first_ms = int(requests.ts_ms_n.min())
    organic = sum(map(len, histories))
    before = organic_histories(list(first_rows), histories, kind="click", end_ms=first_ms)
    streams = {
        "items": _items(source, first_ms - organic - 1),
        "impressions": _impressions(requests),
        "clicks": chain(before, _clicks(requests)),
    }
    return write_log(out, streams, config, on_records, organic=organic)


def _requests(source: Path, config: ImportConfig) -> _Requests:
    path = first_of(source, _SHOWN_FILES)
    if path.suffix == ".tsv":
        table = read_table(path, _SHOWN_TEXT[:3], names=_SHOWN_TEXT, delimiter="\t")
        ts_ms_n = milliseconds(pa.chunked_array([_times(table["time"].to_pylist(), path)]))
    else:
        table = read_table(path, _SHOWN_LISTS)
        ts_ms_n = milliseconds(table["time"])
    table, ts_ms_n = in_span(table, ts_ms_n, config, path)
    if path.suffix == ".tsv":
        pairs = [
            _pairs(text, path, row) for row, text in enumerate(table["impressions"].to_pylist())
        ]
        histories = [(text or "").split() for text in table["history"].to_pylist()]
    else:
        pairs = list(
            zip(table["candidates"].to_pylist(), table["clicked"].to_pylist(), strict=True)
        )
        histories = table["history"].to_pylist()
    for row, (candidates, clicked) in enumerate(pairs):
        if len(candidates) != len(clicked) or not candidates:
            raise InputError(
                f"{path}: request {row}: expected as many clicks as candidates and at least one, "
                f"got {len(clicked)} and {len(candidates)}"
            )
    return _Requests(
        ids=table["impression_id"].to_pylist(),
        users=table["user_id"].to_pylist(),
        ts_ms_n=ts_ms_n,
        histories=histories,
        candidates=[candidates for candidates, _ in pairs],
        clicked=[clicked for _, clicked in pairs],
    )


def _times(texts: list[str], path: Path) -> pa.Array:
    try:
        times = [dt.datetime.strptime(text, "%m/%d/%Y %I:%M:%S %p") for text in texts]  # noqa: DTZ007 - the publisher names no zone
    except (ValueError, TypeError) as error:  # a column of ISO dates is read as dates
        raise InputError(
            f"{path}: expected times such as 11/11/2019 9:05:58 AM ({error})"
        ) from error
    return pa.array(times, pa.timestamp("ms"))


def _pairs(text: str | None, path: Path, row: int) -> tuple[list[str], list[int]]:
    candidates, clicked = [], []
    for pair in (text or "").split():
        item, _, flag = pair.rpartition("-")
        if not item or flag not in {"0", "1"}:
            raise InputError(
                f"{path}: request {row}: expected candidates such as N123-0, got '{pair}'; "
                "a test split without clicks cannot be imported"
            )
        candidates.append(item)
        clicked.append(int(flag))
    return candidates, clicked


def _impressions(requests: _Requests) -> Iterator[Outgoing]:
    rows = zip(
        requests.ids, requests.users, requests.ts_ms_n.tolist(), requests.candidates, strict=True
    )
    for request, user, ts_ms, candidates in rows:
        body = impression_body(
            request_id=request,
            user_id=user,
            ts_ms=ts_ms,
            context={"slate": len(candidates), "slate_log2": len(candidates).bit_length()},
            items=[{"item_id": item} for item in candidates],
        )
        yield Outgoing(ts_ms, encode_key(user), "impression", body)


def _clicks(requests: _Requests) -> Iterator[Outgoing]:
    rows = zip(
        requests.ids, requests.users, requests.ts_ms_n.tolist(), requests.candidates,
        requests.clicked, strict=True,
    )  # fmt: skip
    for request, user, shown_ms, candidates, clicked in rows:
        ts_ms = shown_ms + CLICK_DELAY_MS
        for item, flag in zip(candidates, clicked, strict=True):
            if flag:
                body = click_body(
                    request_id=request, item_id=item, user_id=user, ts_ms=ts_ms, kind="click"
                )
                yield Outgoing(ts_ms, encode_key(user), "click", body)


def _items(source: Path, ts_ms: int) -> Iterator[Outgoing]:
    path = first_of(source, _NEWS_FILES)
    if not path.is_file():
        return
    text = path.suffix == ".tsv"
    table = read_table(
        path, ("news_id",), names=_NEWS if text else (), delimiter="\t" if text else ","
    )
    present = [name for name in _NEWS if name in table.column_names]
    for row in table.select(present).to_pylist():
        entities = sorted({*_entities(row.get("title_entities")),
                           *_entities(row.get("abstract_entities"))})  # fmt: skip
        attributes: dict[str, Any] = {
            name: row[name] for name in ("category", "subcategory") if row.get(name)
        }
        if entities:
            attributes["entities"] = entities
        content = {
            name: row[column]
            for name, column in (("title", "title"), ("text", "abstract"))
            if row.get(column)
        }
        item = row["news_id"]
        body = item_body(item_id=item, ts_ms=ts_ms, attributes=attributes, **content)
        yield Outgoing(ts_ms, encode_key(item), "item", body)


def _entities(text: str | None) -> list[str]:
    """WikidataIds of a cell of JSON; what is no such JSON names none."""
    try:
        return [entity["WikidataId"] for entity in json.loads(text or "[]")]
    except (ValueError, KeyError, TypeError):
        return []
