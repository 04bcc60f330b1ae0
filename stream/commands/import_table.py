"""`millrace import table`: CSV or Parquet files of one's own to a record log, by a mapping."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from infra import config as loader
from infra.errors import InputError
from stream.commands.import_progress import summary, with_progress
from stream.importers.import_config import ImportConfig
from stream.importers.table import TableImport, import_table
from stream.importers.table_events import TableFiles
from stream.importers.table_mapping import TableMapping
from stream.times import time_ms

_FILE = click.Path(path_type=Path)


@click.command("table")
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE]...")
@click.argument("out", type=_FILE, metavar="OUT")
@click.option("--mapping", required=True, type=_FILE, metavar="FILE",
              help="TOML file that says which column is what.")  # fmt: skip
@click.option("--clicks", multiple=True, type=_FILE, metavar="FILE", help="Table of clicks.")
@click.option("--items", multiple=True, type=_FILE, metavar="FILE", help="Table of items.")
@click.option("--partitions", default=4, show_default=True, help="Of each topic.")
@click.option("--envelope", default=1, show_default=True, help="Events in a row envelope.")
@click.option("--from", "from_", metavar="TIME", help="Start of the span (ISO 8601, UTC).")
@click.option("--to", metavar="TIME", help="End of the span, itself not included.")
@click.option("--strict", is_flag=True, help="Refuse tables with rows that cannot be used.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(  # one parameter an option
    *,
    files: tuple[Path, ...],
    out: Path,
    mapping: Path,
    clicks: tuple[Path, ...],
    items: tuple[Path, ...],
    partitions: int,
    envelope: int,
    from_: str | None,
    to: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Write the record log OUT from tables of impressions (CSV, or Parquet by suffix).

    Rows that cannot be used are left out, counted by reason, and the first ones named.
    """
    columns = loader.load(TableMapping, [mapping])
    try:
        config = ImportConfig(
            partitions=partitions,
            envelope=envelope,
            from_ms=time_ms(from_) if from_ else 0,
            to_ms=time_ms(to) if to else 0,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    tables = TableFiles(impressions=files, clicks=clicks, items=items)
    started = time.monotonic()
    made: TableImport = with_progress(
        out,
        lambda heard: import_table(tables, out, columns, config, strict=strict, on_records=heard),
    )
    if as_json:
        rejected = {"rejected": dict(made.rejected), "examples": list(made.examples)}
        click.echo(json.dumps(asdict(made.counts) | rejected))
        return
    click.echo(summary(out, made.counts, time.monotonic() - started))
    for reason, n in sorted(made.rejected.items()):
        click.echo(f"left out: {n:,} rows, {reason}", err=True)
    for example in made.examples[:5]:
        click.echo(f"  {example}", err=True)
