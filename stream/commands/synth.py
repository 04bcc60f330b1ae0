"""`millrace synth`: a synthetic record log with known truth. Simulates nothing itself."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from rich.console import Console

from infra.errors import InputError
from stream.importers.synthetic_config import SyntheticConfig
from stream.importers.synthetic_log import SyntheticCounts, write_synthetic
from stream.times import time_ms

_HELP = {
    "seed": "Equal seeds and settings give equal events.",
    "users": "Users.",
    "items": "Items at the start.",
    "impressions": "Items shown.",
    "days": "Length of the stream.",
    "slate": "Items of a request.",
    "new_items_per_hour": "Items that join each hour.",
    "item_life_hours": "Mean time until an item is hardly shown.",
    "drift": "Tastes and popularity correlate by exp(-DRIFT) after a day; 0: no drift.",
    "trend": "Spread of popularity on the logit.",
    "break_at": "Share of the span after which tastes and popularity are others; 0: never.",
    "position_exponent": "Examined with (1 + position)^-EXPONENT; 0: no position bias.",
    "delay_mean_ms": "Mean delay of most clicks.",
    "tail_share": "Share of clicks whose delay has a long tail.",
    "window_ms": "Label window that the truth is about.",
    "duplicates": "Share of events that are sent twice.",
    "disorder_ms": "How much later than others an event may be sent.",
    "content": "Content of items: their own, that of others (a placebo), or none.",
    "content_dim": "Length of the items' vectors.",
    "content_noise": "Noise of the vectors, per number; the signal's spread is about 1.",
    "partitions": "Partitions of each topic.",
    "envelope": "Rows of a columnar envelope; 1: one event a record.",
}


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each setting that has a help line, in that order."""
    hints = get_type_hints(SyntheticConfig)
    known = {f.name: f for f in fields(SyntheticConfig)}
    for name, text in reversed(_HELP.items()):
        default = known[name].default
        assert default is not MISSING, name
        choices = get_args(hints[name])
        kind = click.Choice(choices) if choices else hints[name]
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=kind, default=default, show_default=True, help=text)(
            command
        )
    return command


@click.command("synth")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@_options
@click.option("--start", metavar="TIME", help="First hour (ISO 8601, UTC) [2024-01-01].")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(*, out: Path, start: str | None, as_json: bool, **settings: Any) -> None:
    """Write the record log OUT of a synthetic stream, and beside it OUT.truth.parquet.

    The truth file has the probability of a click for each impression; no event has it.
    """
    if out.suffix != ".parquet":
        raise InputError(f"{out}: expected a name that ends in .parquet")
    try:
        if start:
            settings["start_ms"] = time_ms(start)
        config = SyntheticConfig(**settings)
    except ValueError as error:
        raise InputError(str(error)) from error
    started = time.monotonic()
    counts = _with_progress(out, config)
    if as_json:
        click.echo(json.dumps(asdict(counts)))
        return
    click.echo(
        f"{out}: {sum(counts.records.values()):,} records in {time.monotonic() - started:.1f} s "
        f"({counts.impressions:,} impressions, {counts.clicks:,} clicks, "
        f"{counts.items:,} items, {counts.duplicates:,} duplicates); truth: {counts.truth}"
    )


def _with_progress(out: Path, config: SyntheticConfig) -> SyntheticCounts:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not sys.stderr.isatty():
            return write_synthetic(out, config)
        with Console(stderr=True).status("simulating …") as status:
            return write_synthetic(out, config, lambda n: status.update(f"{n:,} records written …"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error})") from error
