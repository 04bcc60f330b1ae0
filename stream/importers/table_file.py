"""Tables of a data set from Parquet or delimited text, checked for the columns that are needed.

Knows no data set and corrects nothing: an unreadable table is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.errors import InputError
from stream.columns import I64
from stream.importers.import_config import ImportConfig
from stream.keys import combined, keys_of_ints, salt_of

_POSITIVE = np.int64(0x7FFF_FFFF_FFFF_FFFF)


def read_table(
    path: Path,
    required: Sequence[str],
    *,
    names: Sequence[str] = (),
    delimiter: str = ",",
    encoding: str = "utf8",
) -> pa.Table:
    """The table in `path`: Parquet by its suffix, else delimited text.

    `names` are those of a text without a header. Raises InputError where the file is absent or
    unreadable, or one of the columns `required` is missing or has empty cells.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; see docs/importers.md for what is read")
    try:
        table = (
            pq.read_table(path)
            if path.suffix == ".parquet"
            else _text(path, names, delimiter, encoding)
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: no column '{missing[0]}', only {', '.join(table.column_names[:12])}"
        )
    nulls = [name for name in required if table[name].null_count]
    if nulls:
        raise InputError(f"{path}: column '{nulls[0]}' has empty cells; expected none")
    return table


def first_of(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that the folder has; else the first name, for the error message."""
    found = [folder / name for name in names if (folder / name).is_file()]
    return found[0] if found else folder / names[0]


def in_span(
    table: pa.Table, ts_ms_n: I64, config: ImportConfig, what: Path
) -> tuple[pa.Table, I64]:
    """Rows whose time lies in the configured span, with their times. Raises InputError for none."""
    inside = ts_ms_n >= config.from_ms
    if config.to_ms:
        inside &= ts_ms_n < config.to_ms
    if not inside.any():
        span = f"{ts_ms_n.min()} to {ts_ms_n.max()} (UTC milliseconds)" if len(ts_ms_n) else "none"
        raise InputError(f"{what}: no row in the span; it holds {span}")
    return table.filter(pa.array(inside)), ts_ms_n[inside]


def milliseconds(column: pa.ChunkedArray) -> I64:
    """UTC milliseconds of a column of timestamps; those without a zone are taken as UTC."""
    ms: I64 = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()).to_numpy()
    return ms


def row_ids(columns: Sequence[NDArray[Any]], salt: str) -> I64:
    """Positive 63-bit hash of each row of integers: the request id where a log names none."""
    keys = [keys_of_ints(column) for column in columns]
    ids: I64 = np.maximum(combined(keys, salt_of(salt)) & _POSITIVE, 1)
    return ids


def cells(table: pa.Table, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The named cells of each row; empty ones are left out."""
    columns = [table[name].to_pylist() for name in names]
    for row in zip(*columns, strict=True):
        yield {name: cell for name, cell in zip(names, row, strict=True) if cell is not None}


def _text(path: Path, names: Sequence[str], delimiter: str, encoding: str) -> pa.Table:
    table = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(
            column_names=list(names) or None, encoding=encoding, use_threads=False
        ),
        # Publishers' texts that use another delimiter hold quotation marks that close nowhere.
        parse_options=pa_csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if delimiter == "," else False
        ),
        convert_options=pa_csv.ConvertOptions(strings_can_be_null=True, null_values=[""]),
    )
    unnamed = [name for name in table.column_names if not name]
    return table.drop_columns(unnamed) if unnamed else table
