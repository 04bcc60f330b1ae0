"""Globo's news clicks to a record log. The only module that knows this data set.

The data has clicks alone: every one becomes an organic click. Such a log can be validated, it fills
histories, and pairs of items clicked by one user can be mined from it; it has nothing to predict.
What the publisher says of device, region and referrer has no place in a click and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa

from stream.codec_write import click_body, encode_key
from stream.columns import I64
from stream.importers.import_config import ImportConfig, ImportCounts, Progress, unheard
from stream.importers.log_builder import Outgoing, write_log
from stream.importers.table_file import in_span, read_table

_COLUMNS: Final = ("user_id", "click_article_id", "click_timestamp")
_HOURS: Final = "clicks_hour_*.csv"


def import_globo(
    source: Path, out: Path, config: ImportConfig, on_records: Progress = unheard
) -> ImportCounts:
    """Write the record log `out` from the tables in the folder `source`.

    Needs clicks.parquet, or the publisher's clicks_hour_NNN.csv, also in a folder clicks/. Raises
    InputError when they are absent, unreadable or lack a column, or no click lies in the span.
    """
    table, ts_ms_n = _clicks(source, config)
    streams = {"clicks": _events(table, ts_ms_n)}
    return write_log(out, streams, config, on_records, organic=len(table))


def _clicks(source: Path, config: ImportConfig) -> tuple[pa.Table, I64]:
    hours = sorted(source.glob(_HOURS)) or sorted((source / "clicks").glob(_HOURS))
    files = hours or [source / "clicks.parquet"]
    table = pa.concat_tables([read_table(file, _COLUMNS).select(_COLUMNS) for file in files])
    return in_span(table, table["click_timestamp"].to_numpy(), config, source)


def _events(table: pa.Table, ts_ms_n: I64) -> Iterator[Outgoing]:
    columns = (table["user_id"].to_pylist(), table["click_article_id"].to_pylist())
    for user, article, ts_ms in zip(*columns, ts_ms_n.tolist(), strict=True):
        body = click_body(item_id=article, user_id=user, ts_ms=ts_ms, kind="click")
        yield Outgoing(ts_ms, encode_key(user), "click", body)
