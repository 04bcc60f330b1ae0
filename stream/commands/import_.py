"""`millrace import`: public data sets to record logs. One subcommand a data set."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from infra.errors import InputError
from stream.importers.import_config import ImportCounts
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.times import time_ms


@click.group()
def command() -> None:
    """Make a record log from a public data set."""


@command.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--partitions", default=4, show_default=True, help="Partitions of each topic.")
@click.option("--envelope", default=1, show_default=True, help="Events in a row envelope.")
@click.option("--from", "from_", metavar="TIME", help="First impression (ISO 8601, UTC).")
@click.option("--to", metavar="TIME", help="End of the impressions, itself not included.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def kuairand(
    *, source: Path, out: Path, partitions: int, envelope: int, from_: str | None, to: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write the record log OUT from KuaiRand's tables in the folder DIR.

    DIR holds impressions.parquet, videos.parquet and, if it has them, users.parquet and
    user_history_before_DATE.parquet.
    """
    try:
        config = KuaiRandImportConfig(
            partitions=partitions,
            envelope=envelope,
            from_ms=time_ms(from_) if from_ else 0,
            to_ms=time_ms(to) if to else 0,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    started = time.monotonic()
    counts = _with_progress(source, out, config)
    if as_json:
        click.echo(json.dumps(asdict(counts)))
        return
    click.echo(
        f"{out}: {sum(counts.records.values()):,} records in {time.monotonic() - started:.1f} s "
        f"({counts.impressions:,} impressions, {counts.clicks:,} clicks, "
        f"{counts.organic:,} organic events, {counts.items:,} items)"
    )


def _with_progress(source: Path, out: Path, config: KuaiRandImportConfig) -> ImportCounts:
    try:
        if not sys.stderr.isatty():
            return import_kuairand(source, out, config)
        with Console(stderr=True).status("reading the tables …") as status:
            return import_kuairand(
                source, out, config, lambda n: status.update(f"{n:,} records written …")
            )
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error})") from error
