"""Tables of one's own to a record log, by a mapping of their columns.

Rows that cannot be used are left out, counted and named; nothing is guessed for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InputError
from stream.importers.import_config import ImportConfig, ImportCounts, Progress, unheard
from stream.importers.log_builder import write_log
from stream.importers.table_events import TableEvents, TableFiles
from stream.importers.table_mapping import TableMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class TableImport:
    """What was written, and rows left out: how many by reason, the first with place and words."""

    counts: ImportCounts
    rejected: Mapping[str, int]
    examples: Sequence[str]


def import_table(
    files: TableFiles,
    out: Path,
    mapping: TableMapping,
    config: ImportConfig,
    *,
    strict: bool = False,
    on_records: Progress = unheard,
) -> TableImport:
    """Write the record log `out`.

    Raises InputError when a file and the mapping do not fit, a file is absent, unreadable or lacks
    a column, no row can be used or, with `strict`, any row cannot.
    """
    _check_files(files, mapping)
    tables = TableEvents(files, mapping, config)
    impressions, clicks = tables.impressions(), tables.clicks()
    usable = clicks if mapping.impressions is None else impressions
    first_ms = min((event.ts_ms for event in (*impressions, *clicks)), default=1)
    items = list(tables.items(first_ms - 1))
    rejects = tables.rejects
    if rejects.counts and (strict or not usable):
        total = sum(rejects.counts.values())
        shown = "; ".join(rejects.examples[:5])
        raise InputError(f"{total} rows cannot be used, the first: {shown}")
    if not usable:
        raise InputError(f"{_named(files)}: no row in the span")
    streams = {"items": items, "impressions": impressions, "clicks": clicks}
    if mapping.impressions is None:
        del streams["impressions"]
    organic = sum("request_id" not in event.body for event in clicks)
    counts = write_log(out, streams, config, on_records, organic=organic)
    return TableImport(counts=counts, rejected=rejects.counts, examples=tuple(rejects.examples))


def _check_files(files: TableFiles, mapping: TableMapping) -> None:
    for name, given, wanted in (
        ("impressions", files.impressions, mapping.impressions),
        ("clicks", files.clicks, mapping.clicks),
        ("items", files.items, mapping.items),
    ):
        if given and wanted is None:
            raise InputError(f"{given[0]}: the mapping has no [{name}] for it")
        if wanted is not None and not given:
            raise InputError(f"the mapping has [{name}], but no file of {name} is given")


def _named(files: TableFiles) -> str:
    return ", ".join(map(str, (*files.impressions, *files.clicks)))
