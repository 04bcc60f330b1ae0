"""Interactions of a record log as columns, with the ids behind their keys (shell)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from embeddings.pretrain.pairs import I64, Interactions
from infra.errors import InputError
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.codec_spec import DecodeSpec
from stream.columns import EventColumns, EventKind
from stream.events import TopicRole
from stream.keys import key_of_str, keys_of_ints
from stream.record_log import RecordLog
from stream.records import RecordBatch

_CHUNK_RECORDS: Final = 16_384


class _Named(msgspec.Struct, gc=False):
    item_id: int | str


class _Single(_Named, tag_field="type", tag="click"):
    pass


class _Rows(msgspec.Struct, tag_field="type", tag="clicks"):
    events: list[_Named]


class _Columns(msgspec.Struct, tag_field="type", tag="click_columns"):
    columns: dict[str, Any]


_IDS: Final = msgspec.msgpack.Decoder(_Single | _Rows | _Columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedInteractions:
    """Interactions and the id of each item key; `kinds`: how many of each kind were read."""

    interactions: Interactions
    item_ids: dict[int, int | str]
    kinds: dict[str, int]
    source_ids: list[str]

    def named(self) -> Interactions:
        """Those with items whose id is known: all but some of records that were damaged."""
        known = np.fromiter(self.item_ids, np.int64, len(self.item_ids))
        return self.interactions.where(np.isin(self.interactions.item_n, known))


def read_interactions(
    logs: Sequence[Path],
    *,
    topic: str,
    kinds: Sequence[str] = (),
    from_ms: int | None = None,
    until_ms: int | None = None,
    on_progress: Callable[[int, int], None] = lambda _, __: None,
) -> LoggedInteractions:
    """Clicks of `kinds` (all where empty) with `from_ms <= ts_ms < until_ms`.

    Raises InputError where a log has no such topic or nothing in it matches, RecordLogUnusable for
    a file that is no log.
    """
    decoder = ClickDecoder(DecodeSpec(role=TopicRole.CLICKS), open_kinds=True)
    opened = [RecordLog(path) for path in logs]
    total, done = sum(map(len, opened)), 0
    parts: list[tuple[EventColumns, np.ndarray[Any, Any]]] = []
    ids = _Ids()
    for log in opened:
        if topic not in log.partitions:
            raise InputError(
                f"record log {log.path}: has no topic '{topic}', only {sorted(log.partitions)}"
            )
        for chunk in log.batches(_CHUNK_RECORDS):
            for batch in chunk:
                if batch.tp.topic == topic:
                    ids.take(batch)
                    columns = decoder.decode(batch)
                    parts.append((columns, _wanted(columns, from_ms, until_ms)))
            done += sum(map(len, chunk))
            on_progress(done, total)
    return _result(parts, ids, decoder.kinds, kinds, opened)


def read_shown(logs: Sequence[Path], *, topic: str, until_ms: int) -> Interactions:
    """Items shown before `until_ms`, clicked or not; empty where no log has the topic."""
    decoder = ImpressionDecoder(DecodeSpec(role=TopicRole.IMPRESSIONS))
    empty = np.zeros(0, np.int64)
    columns: list[tuple[I64, I64, I64]] = [(empty, empty, empty)]
    for log in map(RecordLog, logs):
        for batches in log.batches_of(topic) if topic in log.partitions else ():
            for part in map(decoder.decode, batches):
                keep = (part.kind_n == EventKind.IMPRESSION) & (part.ts_ms_n < until_ms)
                columns.append((part.user_n[keep], part.item_n[keep], part.ts_ms_n[keep]))
    return Interactions(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _wanted(columns: EventColumns, from_ms: int | None, until_ms: int | None) -> Any:
    keep = np.isin(columns.kind_n, (EventKind.CLICK, EventKind.ORGANIC))
    if from_ms is not None:
        keep &= columns.ts_ms_n >= from_ms
    if until_ms is not None:
        keep &= columns.ts_ms_n < until_ms
    return keep


def _result(
    parts: list[tuple[EventColumns, Any]],
    ids: _Ids,
    known: Sequence[str],
    kinds: Sequence[str],
    logs: Sequence[RecordLog],
) -> LoggedInteractions:
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise InputError(f"no click is of kind '{unknown[0]}'; the logs hold {sorted(known)}")
    wanted = np.array([not kinds or kind in kinds for kind in known], np.bool_)
    columns: list[tuple[I64, I64, I64]] = []
    counts = np.zeros(len(known), np.int64)
    for part, keep_n in parts:
        keep = keep_n & (part.click_kind_n >= 0)
        keep[keep] = wanted[part.click_kind_n[keep]]
        counts += np.bincount(part.click_kind_n[keep], minlength=len(known))
        columns.append((part.user_n[keep], part.item_n[keep], part.ts_ms_n[keep]))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)] if columns else []
    if not joined or not len(joined[0]):
        raise InputError(
            f"{', '.join(str(log.path) for log in logs)}: no clicks in that span of time"
        )
    return LoggedInteractions(
        interactions=Interactions(*joined),
        item_ids=ids.by_key(),
        kinds={kind: int(n) for kind, n in zip(known, counts, strict=True) if n},
        source_ids=[log.source_id for log in logs],
    )


class _Ids:
    """Distinct item ids of clicks."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._ints: I64 = np.zeros(0, np.int64)

    def take(self, batch: RecordBatch) -> None:
        """Those of one batch; what cannot be decoded is left out."""
        numbers: list[int] = []
        blocks: list[I64] = [self._ints]
        for value in batch.values:
            try:
                message = _IDS.decode(value or b"")
            except (ValueError, RecursionError):
                continue  # a watermark, or damaged: the click decoder tells them apart
            if isinstance(message, _Columns):
                found = _column(message.columns.get("item_id"))
            else:
                rows = message.events if isinstance(message, _Rows) else [message]
                found = [row.item_id for row in rows]
            if isinstance(found, np.ndarray):
                blocks.append(found)
            else:
                numbers += [i for i in found if isinstance(i, int) and -(2**63) <= i < 2**63]
                self._texts.update(i for i in found if isinstance(i, str))
        self._ints = np.unique(np.concatenate([*blocks, np.array(numbers, np.int64)]))

    def by_key(self) -> dict[int, int | str]:
        """The id of each key."""
        found: dict[int, int | str] = {key_of_str(text): text for text in self._texts}
        keys = keys_of_ints(self._ints).tolist()
        found.update(zip(keys, self._ints.tolist(), strict=True))
        return found


def _column(cell: object) -> I64 | list[int | str]:
    """The ids of a columnar cell; none where its form is wrong."""
    if isinstance(cell, int | str):
        return [cell]
    if isinstance(cell, bytes) and len(cell) % 8 == 0:
        return np.frombuffer(cell, "<i8")
    if isinstance(cell, dict) and isinstance(cell.get("blob"), bytes):
        try:
            ends = np.frombuffer(cell["offsets"], "<i4").tolist()
            return [cell["blob"][a:b].decode() for a, b in pairwise(ends)]
        except (KeyError, TypeError, ValueError):
            return []
    return []
