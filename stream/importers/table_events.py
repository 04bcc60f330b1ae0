"""Rows of somebody's tables to events, by a mapping of their columns. Writes no log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stream.codec_write import Id, click_body, encode_key, impression_body, item_body
from stream.columns import Reason
from stream.importers.import_config import ImportConfig
from stream.importers.log_builder import Outgoing
from stream.importers.table_columns import (
    Cells,
    Rejects,
    are_integers,
    milliseconds_of,
    number_of,
    read_cells,
    typed_id,
    typed_values,
)
from stream.importers.table_mapping import ClickColumns, ItemColumns, ShownColumns, TableMapping
from stream.keys import combined, key_of, salt_of

_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFiles:
    """The tables that a mapping is for; parts of one table may be several files."""

    impressions: Sequence[Path]
    clicks: Sequence[Path] = ()
    items: Sequence[Path] = ()


class TableEvents:
    """All tables read; ids of one sort are integers in every table or in none."""

    rejects: Rejects
    """What could not be used so far; whole after the last table was asked for."""

    def __init__(self, files: TableFiles, mapping: TableMapping, config: ImportConfig) -> None:
        self.rejects = Rejects()
        self._labelled: list[Outgoing] = []
        self._requests: dict[Id, dict[str, Any]] = {}
        self._mapping, self._config = mapping, config
        self._milliseconds = milliseconds_of(mapping.time)
        shown = mapping.impressions
        labels = [name for one in mapping.label.values() for name in (one.column, one.time) if name]
        self._shown = self._read(files.impressions, [*shown.columns, *labels] if shown else [])
        self._clicks = self._read(files.clicks, mapping.clicks.columns if mapping.clicks else ())
        self._items = self._read(files.items, mapping.items.columns if mapping.items else ())
        sides = [(self._shown, shown), (self._clicks, mapping.clicks), (self._items, mapping.items)]
        self._integer = {
            sort: not mapping.text_ids
            and are_integers([
                table[getattr(columns, sort)]
                for tables, columns in sides
                for table in tables
                if getattr(columns, sort, "")
            ])
            for sort in ("user", "item", "request")
        }  # fmt: skip

    def _read(self, files: Sequence[Path], columns: Sequence[str]) -> list[Cells]:
        return [read_cells(f, columns, self._mapping.delimiter, self.rejects) for f in files]

    def impressions(self) -> list[Outgoing]:
        """Requests, each with all its items; labels wait for `clicks`."""
        columns = self._mapping.impressions
        for table in self._shown:
            assert columns is not None
            maps = {
                kind: _fields(table, getattr(columns, kind)) for kind in ("context", "features")
            }
            for row in range(len(table)):
                self._take(table, row, columns, maps)
        return [
            Outgoing(body["ts_ms"], encode_key(body["user_id"]), "impression", body)
            for body in self._requests.values()
        ]

    def _take(
        self,
        table: Cells,
        row: int,
        columns: ShownColumns,
        maps: Mapping[str, Mapping[str, list[Any]]],
    ) -> None:
        """One row: into its request, with its clicks; or rejected."""
        known = self._ids(table, row, columns)
        if known is None or not self._in_span(known[3]):
            return
        user, item, request, ts_ms = known
        if request is None:
            request = _row_request(user, item, ts_ms)
        shown = self._shown_item(table, row, columns, item)
        clicks = self._label_clicks(table, row, (request, item, user, ts_ms))
        if shown is None or clicks is None:
            return
        features = {name: v[row] for name, v in maps["features"].items() if v[row] is not None}
        if features:
            shown["features"] = features
        body = self._requests.get(request)
        if body is None:
            context = {name: v[row] for name, v in maps["context"].items() if v[row] is not None}
            self._requests[request] = impression_body(
                request_id=request, user_id=user, ts_ms=ts_ms, context=context, items=[shown]
            )
        elif body["user_id"] != user:
            detail = f"request {request} is of user {body['user_id']}, not {user}"
            self.rejects.add(Reason.KEY_MISMATCH, table.place(row), detail)
            return
        else:
            body["ts_ms"] = min(body["ts_ms"], ts_ms)
            body["items"].append(shown)
        self._labelled += clicks

    def _in_span(self, ts_ms: int) -> bool:
        return ts_ms >= self._config.from_ms and not (0 < self._config.to_ms <= ts_ms)

    def _is_wanted(self, request: Id | None, ts_ms: int) -> bool:
        """Whether a click belongs to the span: with its request, if it has one."""
        cut = self._config.from_ms or self._config.to_ms
        if request is None or not cut or not self._requests:
            return self._in_span(ts_ms)
        return request in self._requests

    def _ids(
        self, table: Cells, row: int, columns: ShownColumns | ClickColumns
    ) -> tuple[Id, Id, Id | None, int] | None:
        """User, item, request and time of a row; None if it is rejected."""
        found: dict[str, Id | None] = {}
        for sort in ("user", "item", "request"):
            column = getattr(columns, sort)
            cell = table[column][row] if column else None
            # A click may lack a request: then it is organic. An impression may not.
            if cell is None and (
                sort != "request" or (column and isinstance(columns, ShownColumns))
            ):
                self.rejects.add(Reason.MISSING_FIELD, table.place(row), f"'{column}' is empty")
                return None
            found[sort] = None if cell is None else typed_id(cell, integer=self._integer[sort])
            if cell is not None and found[sort] is None:
                self.rejects.add(Reason.BAD_ID, table.place(row), f"'{column}' is too long")
                return None
        ts_ms = self._time(table, row, columns.time)
        user, item = found["user"], found["item"]
        if ts_ms is None or user is None or item is None:
            return None
        return user, item, found["request"], ts_ms

    def _time(self, table: Cells, row: int, column: str) -> int | None:
        cell = table[column][row]
        if cell is None:
            self.rejects.add(Reason.MISSING_FIELD, table.place(row), f"'{column}' is empty")
            return None
        ts_ms = self._milliseconds(cell)
        if ts_ms is None:
            time = self._mapping.time
            form = time.pattern or time.unit
            detail = f"'{column}' is {cell!r}, expected a time of 2000 to 2100 as {form}"
            self.rejects.add(Reason.BAD_TIME, table.place(row), detail)
        return ts_ms

    def _shown_item(
        self, table: Cells, row: int, columns: ShownColumns, item: Id
    ) -> dict[str, Any] | None:
        shown: dict[str, Any] = {"item_id": item}
        for name in ("position", "propensity"):
            column = getattr(columns, name)
            cell = table[column][row] if column else None
            if cell is None:
                continue
            number = number_of(cell)
            fits = number is not None and (
                number >= 0 and number.is_integer() if name == "position" else 0 < number <= 1
            )
            if number is None or not fits:
                self.rejects.add(Reason.WRONG_TYPE, table.place(row), f"'{column}' is {cell!r}")
                return None
            shown[name] = int(number) if name == "position" else number
        return shown

    def _label_clicks(
        self, table: Cells, row: int, shown: tuple[Id, Id, Id, int]
    ) -> list[Outgoing] | None:
        """The clicks that a row's labels tell of; None if it is rejected."""
        request, item, user, shown_ms = shown
        clicks = []
        for kind, label in self._mapping.label.items():
            cell = table[label.column][row]
            number = 0.0 if cell is None else number_of(cell)
            if number is None:
                detail = f"'{label.column}' is {cell!r}, expected a number"
                self.rejects.add(Reason.WRONG_TYPE, table.place(row), detail)
                return None
            if cell is None or number < label.at_least:
                continue
            ts_ms: int | None = shown_ms + label.delay_ms
            if label.time:
                ts_ms = self._time(table, row, label.time)
            if ts_ms is None:
                return None
            clicks.append(_click(request, item, user, ts_ms, kind))
        return clicks

    def clicks(self) -> list[Outgoing]:
        """Clicks of labels, then those of the table of clicks; asked for after `impressions`."""
        found = list(self._labelled)
        columns = self._mapping.clicks
        for table in self._clicks:
            assert columns is not None
            for row in range(len(table)):
                known = self._ids(table, row, columns)
                if known is None or not self._is_wanted(known[2], known[3]):
                    continue
                user, item, request, ts_ms = known
                kind = table[columns.kind_column][row] if columns.kind_column else columns.kind
                if kind is None:
                    detail = f"'{columns.kind_column}' is empty"
                    self.rejects.add(Reason.MISSING_FIELD, table.place(row), detail)
                    continue
                found.append(_click(request, item, user, ts_ms, str(kind)))
        return found

    def items(self, ts_ms: int) -> Iterator[Outgoing]:
        """Items, all stamped `ts_ms`."""
        columns = self._mapping.items
        for table in self._items:
            assert columns is not None
            yield from self._item_rows(table, columns, ts_ms)

    def _item_rows(self, table: Cells, columns: ItemColumns, ts_ms: int) -> Iterator[Outgoing]:
        fields = _fields(table, columns.attributes)
        for name, separator in columns.lists.items():
            fields[name] = [_split(cell, separator) for cell in table[columns.attributes[name]]]
        for row, cell in enumerate(table[columns.item]):
            item = None if cell is None else typed_id(cell, integer=self._integer["item"])
            if item is None:
                detail = f"'{columns.item}' is empty or too long"
                self.rejects.add(Reason.BAD_ID, table.place(row), detail)
                continue
            content = {
                name: str(table[column][row])
                for name, column in (("title", columns.title), ("text", columns.text))
                if column and table[column][row] is not None
            }
            attributes = {name: v[row] for name, v in fields.items() if v[row] is not None}
            body = item_body(item_id=item, ts_ms=ts_ms, attributes=attributes, **content)
            yield Outgoing(ts_ms, encode_key(item), "item", body)


def _fields(table: Cells, columns: Mapping[str, str]) -> dict[str, list[Any]]:
    return {name: typed_values(table[column]) for name, column in columns.items()}


def _split(cell: Any, separator: str) -> list[str] | None:
    if cell is None:
        return None
    parts = cell if isinstance(cell, list) else str(cell).split(separator)
    return [part.strip() for part in map(str, parts) if part.strip()]


def _click(request: Id | None, item: Id, user: Id, ts_ms: int, kind: str) -> Outgoing:
    body = click_body(request_id=request, item_id=item, user_id=user, ts_ms=ts_ms, kind=kind)
    return Outgoing(ts_ms, encode_key(user), "click", body)


def _row_request(user: Id, item: Id, ts_ms: int) -> int:
    """Positive 63-bit hash of a row: the request id where the table names none."""
    keys = [np.array([key_of(value)], np.int64) for value in (user, item, ts_ms)]
    return max(int(combined(keys, salt_of("table request"))[0]) & _MASK, 1)
