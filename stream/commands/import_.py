"""`millrace import`: public data sets, or tables of one's own, to record logs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ParamSpec

import click

from infra.errors import InputError
from stream.commands import import_table
from stream.commands.import_progress import summary, with_progress
from stream.importers.globo import import_globo
from stream.importers.import_config import ImportConfig, ImportCounts
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.importers.mind import import_mind
from stream.importers.movielens import MovieLensImportConfig, import_movielens
from stream.importers.open_bandit import OpenBanditImportConfig, import_open_bandit
from stream.times import time_ms

P = ParamSpec("P")


@click.group()
def command() -> None:
    """Make a record log from a public data set or from tables of your own."""


def _options(function: Callable[P, None]) -> Callable[P, None]:
    """Arguments and options of every data set."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON."),
        click.option("--to", metavar="TIME", help="End of the span, itself not included."),
        click.option("--from", "from_", metavar="TIME", help="Start of the span (ISO 8601, UTC)."),
        click.option("--envelope", default=1, show_default=True, help="Events in a row envelope."),
        click.option("--partitions", default=4, show_default=True, help="Of each topic."),
        click.argument("out", type=click.Path(path_type=Path), metavar="OUT"),
        click.argument("source", type=click.Path(path_type=Path), metavar="DIR"),
    ):
        function = option(function)
    return function


@command.command()
@_options
def kuairand(**options: Any) -> None:
    """Write the record log OUT from KuaiRand's tables in the folder DIR.

    DIR holds impressions.parquet, videos.parquet and, if it has them, users.parquet and
    user_history_before_DATE.parquet. Licence of the data: CC BY-SA 4.0.
    """
    _run(import_kuairand, KuaiRandImportConfig, options)


@command.command()
@_options
def mind(**options: Any) -> None:
    """Write the record log OUT from MIND's requests and news in the folder DIR.

    DIR holds behaviors.tsv or impressions.parquet and, if it has them, news.tsv, news.parquet or
    news_partial.parquet. Licence of the data: Microsoft Research, non-commercial research only.
    """
    _run(import_mind, ImportConfig, options)


@command.command("open-bandit")
@_options
@click.option("--policy", default="both", type=click.Choice(["both", "random", "bts"]),
              show_default=True, help="Rows of which logging policy.")  # fmt: skip
@click.option("--campaign", default="both", type=click.Choice(["both", "all", "men", "women"]),
              show_default=True, help="Rows of which campaign.")  # fmt: skip
def open_bandit(**options: Any) -> None:
    """Write the record log OUT from Open Bandit's impressions in the folder DIR.

    DIR holds impressions.parquet and items.parquet, or folders POLICY/CAMPAIGN as published.
    Licence of the data: CC BY 4.0.
    """
    _run(import_open_bandit, OpenBanditImportConfig, options)


@command.command()
@_options
@click.option("--texts", type=click.Path(path_type=Path), metavar="FILE",
              help="Table of overviews by ml1m_movie_id.")  # fmt: skip
@click.option("--posters", type=click.Path(path_type=Path), metavar="FILE",
              help="Table of JPEG pictures by ml1m_movie_id.")  # fmt: skip
def movielens(**options: Any) -> None:
    """Write the record log OUT from MovieLens' ratings in the folder DIR, for internal tests.

    DIR holds ratings.parquet or u.data and, if it has them, items.parquet or u.item and
    users.parquet or u.user. Licence of the data: research only, no redistribution.
    """
    _run(import_movielens, MovieLensImportConfig, options)


@command.command()
@_options
def globo(**options: Any) -> None:
    """Write the record log OUT from Globo's news clicks in the folder DIR: clicks alone.

    DIR holds clicks.parquet or clicks_hour_NNN.csv. Licence of the data: education and research.
    """
    _run(import_globo, ImportConfig, options)


def _run(importer: Callable[..., ImportCounts], config_type: type[Any], given: Any) -> None:
    source, out, as_json = given.pop("source"), given.pop("out"), given.pop("as_json")
    from_, to = given.pop("from_"), given.pop("to")
    try:
        config = config_type(
            from_ms=time_ms(from_) if from_ else 0, to_ms=time_ms(to) if to else 0, **given
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    started = time.monotonic()
    counts = with_progress(out, lambda heard: importer(source, out, config, heard))
    if as_json:
        click.echo(json.dumps(asdict(counts)))
    else:
        click.echo(summary(out, counts, time.monotonic() - started))


command.add_command(import_table.command)
