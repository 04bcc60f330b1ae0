"""Columns of somebody's tables, cell by cell: ids, times and numbers, with what cannot be used.

Makes no events. A bad cell is a value with a place and a reason; an unreadable table is an error.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from infra.errors import InputError
from stream.columns import Reason
from stream.events import ID_BYTES_MAX, TIME_MAX_MS, TIME_MIN_MS
from stream.importers.table_mapping import TimeFormat

EXAMPLES_MAX: Final = 20
_PER_SECOND: Final = {"s": 1_000.0, "ms": 1.0, "us": 0.001}


@dataclass(slots=True)
class Rejects:
    """Rows that cannot be used: how many by reason, and the first of them as `file:line: why`."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, reason: Reason, place: str, detail: str) -> None:
        """One row more."""
        self.counts[reason.value] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{place}: {reason.value}: {detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Rows of one table as lists by column, and the line of each row.

    A line is the row's number from 1, a header included: the line of the file, unless cells hold
    line breaks or the file is Parquet.
    """

    path: Path
    by_column: dict[str, list[Any]]
    lines: Sequence[int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def __getitem__(self, column: str) -> list[Any]:
        """Cells of a column; None where empty."""
        return self.by_column[column]

    def place(self, row: int) -> str:
        """Where a row stands, for people."""
        return f"{self.path}:{self.lines[row]}"


def read_cells(path: Path, columns: Sequence[str], delimiter: str, rejects: Rejects) -> Cells:
    """The named columns of a Parquet file (by its suffix) or of delimited text with a header.

    Cells of a text are strings; rows of another length are rejected. Raises InputError where the
    file is absent or unreadable or lacks a column.
    """
    names = list(dict.fromkeys(columns))
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    skipped: list[int] = []
    try:
        if path.suffix == ".parquet":
            table, first = pq.read_table(path), 1
        else:
            table, first = _text(path, names, delimiter, skipped, rejects), 2
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: no column '{missing[0]}', only {', '.join(table.column_names[:20])}; "
            "name the columns that it has in the mapping"
        )
    by_column = {name: _plain(table[name]) for name in names}
    lines = _lines(len(table), first, skipped)
    # A blank line of a text is a row of empty cells.
    full = [any(cell is not None for cell in row) for row in zip(*by_column.values(), strict=True)]
    if not all(full):
        by_column = {name: list(compress(cells, full)) for name, cells in by_column.items()}
        lines = list(compress(lines, full))
    return Cells(path=path, by_column=by_column, lines=lines)


def _text(
    path: Path, names: list[str], delimiter: str, skipped: list[int], rejects: Rejects
) -> pa.Table:
    def on_bad(row: Any) -> str:
        skipped.append(row.number)
        detail = f"expected {row.expected_columns} cells, got {row.actual_columns}"
        rejects.add(Reason.MALFORMED, f"{path}:{row.number}", detail)
        return "skip"

    options = {"delimiter": delimiter, "newlines_in_values": True, "ignore_empty_lines": False}
    skipping = pa_csv.ParseOptions(**options, invalid_row_handler=lambda _: "skip")
    header = pa_csv.open_csv(path, parse_options=skipping).schema.names
    have = [name for name in names if name in header]
    if len(have) < len(names):
        return pa.table({name: pa.array([], pa.string()) for name in header})
    return pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(use_threads=False),
        parse_options=pa_csv.ParseOptions(**options, invalid_row_handler=on_bad),
        convert_options=pa_csv.ConvertOptions(
            # Types are decided over whole columns: pyarrow would decide by the first block alone.
            column_types={name: pa.string() for name in names},
            include_columns=names,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _lines(rows: int, first: int, skipped: list[int]) -> Sequence[int]:
    if not skipped:
        return range(first, first + rows)
    every = np.arange(first, first + rows + len(skipped))
    lines: list[int] = np.setdiff1d(every, np.array(skipped))[:rows].tolist()
    return lines


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        # Nanoseconds have no value in Python.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    cells: list[Any] = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [None if c is None or not math.isfinite(c) else c for c in cells]
    return cells


def milliseconds_of(form: TimeFormat) -> Callable[[Any], int | None]:
    """The UTC milliseconds of a cell by that form; None for what is no time of 2000 to 2100."""
    zone = dt.timezone(dt.timedelta(minutes=form.offset_minutes))

    def parsed(cell: Any) -> float:
        if isinstance(cell, dt.datetime):
            time = cell
        elif form.unit != "iso":
            return float(cell) * _PER_SECOND[form.unit]
        elif form.pattern:
            time = dt.datetime.strptime(cell, form.pattern)  # noqa: DTZ007 - the zone comes below
        else:
            time = dt.datetime.fromisoformat(cell)
        return (time if time.tzinfo else time.replace(tzinfo=zone)).timestamp() * 1_000

    def milliseconds(cell: Any) -> int | None:
        try:
            ms = parsed(cell)
        except (ValueError, TypeError, OverflowError):
            return None
        return round(ms) if TIME_MIN_MS <= ms < TIME_MAX_MS else None

    return milliseconds


def are_integers(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether every cell that is not empty is an integer, written without leading zeros."""
    return all(_is_integer(cell) for column in columns for cell in column if cell is not None)


def _is_integer(cell: Any) -> bool:
    if type(cell) is str:
        digits = cell.removeprefix("-")
        return digits.isascii() and digits.isdecimal() and str(int(cell)) == cell and _fits(cell)
    if type(cell) is float:
        return cell.is_integer() and _fits(cell)
    return type(cell) is int and _fits(cell)


def _fits(cell: Any) -> bool:
    return -(2**63) <= int(cell) < 2**63


def typed_id(cell: Any, *, integer: bool) -> int | str | None:
    """The id in a cell; None for one that is too long. The cell is not empty."""
    if integer:
        return int(cell)
    text = str(int(cell)) if type(cell) is float and cell.is_integer() else str(cell)
    return text if 0 < len(text.encode()) <= ID_BYTES_MAX else None


def typed_values(cells: Sequence[Any]) -> list[Any]:
    """Cells of a field as integers if all are, else as numbers if all are, else as they stand."""
    if are_integers([cells]):
        return [None if cell is None else int(cell) for cell in cells]
    try:
        numbers = [None if cell is None else float(cell) for cell in cells if cell is not None]
    except (ValueError, TypeError):
        return list(map(_value, cells))
    if not all(map(math.isfinite, numbers)):  # type: ignore[arg-type]  # no None among them
        return list(map(_value, cells))
    return [None if cell is None else float(cell) for cell in cells]


def _value(cell: Any) -> Any:
    """What a field may hold: text, number, truth or a list of these; else its text."""
    if isinstance(cell, list):
        return [_value(one) for one in cell]
    return cell if cell is None or isinstance(cell, str | int | float | bool) else str(cell)


def number_of(cell: Any) -> float | None:
    """The finite number or truth value in a cell; None for anything else."""
    if isinstance(cell, str) and cell.lower() in {"true", "false"}:
        return float(cell.lower() == "true")
    try:
        number = float(cell)
    except (ValueError, TypeError):
        return None
    return number if math.isfinite(number) else None
