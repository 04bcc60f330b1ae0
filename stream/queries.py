"""Pairs of a query and the item that was clicked for it, from record logs (shell)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from embeddings.item_content import ItemContent
from embeddings.pretrain.pairs import I64, Pairs
from infra.errors import InputError
from stream.codec import ClickDecoder
from stream.codec_spec import DecodeSpec
from stream.columns import EventKind
from stream.events import TIME_MIN_MS, TopicRole
from stream.keys import key_of, key_of_str
from stream.record_log import RecordLog

QUERY_CHARACTERS_MAX: Final = 1_000
_PREFIX: Final = "query:"


class _Request(msgspec.Struct, gc=False):
    request_id: int | str
    context: dict[str, Any] = {}


class _Single(_Request, tag_field="type", tag="impression"):
    pass


class _Rows(msgspec.Struct, tag_field="type", tag="impressions"):
    events: list[_Request]


class _Columns(msgspec.Struct, tag_field="type", tag="impression_columns"):
    n: int
    columns: dict[str, Any]


_REQUESTS: Final = msgspec.msgpack.Decoder(_Single | _Rows | _Columns)


def query_pairs(
    logs: Sequence[Path], *, impressions: str, clicks: str, field: str, kinds: Sequence[str] = ()
) -> tuple[Pairs, dict[int, ItemContent]]:
    """Pairs (query, item clicked in its request), and the queries as contents to encode, by key.

    A query is the text under `field` of an impression's context. A query counts once with an item
    and a user. Raises InputError where no click has one.
    """
    queries = _queries(logs, impressions, field)
    contents: dict[int, ItemContent] = {}
    rows: set[tuple[int, int, int, int]] = set()
    for request, item, user, ts_ms in _clicked(logs, clicks, kinds):
        text = queries.get(request)
        if text is not None:
            key = key_of_str(_PREFIX + text)
            contents.setdefault(
                key, ItemContent(item_id=_PREFIX + text, ts_ms=TIME_MIN_MS, title=text)
            )
            rows.add((ts_ms, user, key, item))
    if not rows:
        raise InputError(
            f"{', '.join(map(str, logs))}: no click belongs to an impression with a text under "
            f"'context.{field}'; name the field with --query"
        )
    columns = np.array(sorted(rows), np.int64).T
    ts_ms_P, user_P, left_P, right_P = columns
    first = np.unique(np.stack((user_P, left_P, right_P)), axis=1, return_index=True)[1]
    keep = np.zeros(len(left_P), np.bool_)
    keep[first] = True
    return Pairs(left_P, right_P, user_P, ts_ms_P).where(keep), contents


def _queries(logs: Sequence[Path], topic: str, field: str) -> dict[int, str]:
    """The query of each request by the request's key."""
    found: dict[int, str] = {}
    for log in map(RecordLog, logs):
        for batches in log.batches_of(topic) if topic in log.partitions else ():
            for value in (value for batch in batches for value in batch.values):
                for request_id, query in _asked(value or b"", field):
                    if isinstance(query, str) and 0 < len(query) <= QUERY_CHARACTERS_MAX:
                        found[key_of(request_id)] = query
    return found


def _asked(value: bytes, field: str) -> Iterator[tuple[int | str, Any]]:
    """Request ids and queries in one record; none of one that cannot be read."""
    try:
        message = _REQUESTS.decode(value)
    except (ValueError, RecursionError):
        return
    if isinstance(message, _Columns):
        cells = (message.columns.get(name) for name in ("request_id", f"context.{field}"))
        yield from zip(*(_cells(cell, message.n) for cell in cells), strict=False)
        return
    rows = message.events if isinstance(message, _Rows) else [message]
    for row in rows:
        if isinstance(row.request_id, str) or -(2**63) <= row.request_id < 2**63:
            yield row.request_id, row.context.get(field)


def _cells(cell: object, n: int) -> Any:
    """The values of a columnar cell; none of one whose form is wrong, or of floats."""
    if isinstance(cell, bytes) and len(cell) == 8 * n:
        return np.frombuffer(cell, "<i8").tolist()
    if isinstance(cell, dict):
        try:
            ends = np.frombuffer(cell["offsets"], "<i4").tolist()
            return [cell["blob"][a:b].decode() for a, b in pairwise(ends)]
        except (KeyError, TypeError, ValueError):
            return []
    return repeat(cell, n) if isinstance(cell, int | str) else []


def _clicked(
    logs: Sequence[Path], topic: str, kinds: Sequence[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Request, item, user and time of each click that belongs to a request."""
    decoder = ClickDecoder(DecodeSpec(role=TopicRole.CLICKS), open_kinds=True)
    for log in map(RecordLog, logs):
        for batches in log.batches_of(topic) if topic in log.partitions else ():
            for part in map(decoder.decode, batches):
                keep = part.kind_n == EventKind.CLICK
                if kinds:
                    numbers = [i for i, kind in enumerate(decoder.kinds) if kind in kinds]
                    keep &= np.isin(part.click_kind_n, numbers)
                columns: list[I64] = [part.request_n, part.item_n, part.user_n, part.ts_ms_n]
                yield from zip(*(column[keep].tolist() for column in columns), strict=True)
