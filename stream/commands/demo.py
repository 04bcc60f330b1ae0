"""`millrace demo`: the whole loop on the bundled log. The work is in `stream/demo`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.demo import DATA_SET, EVALUATE_FROM, PRESET, SLICE
from infra.errors import FaultError, InputError
from stream.commands.replay import table_of, wide_console
from stream.demo import Demo, DemoConfig, DemoResult, Told


@click.command("demo")
@click.option("--folder", default=Path("var/demo"), show_default=True, help="Where all is kept.",
              type=click.Path(path_type=Path, file_okay=False))  # fmt: skip
@click.option("--broker", default="", metavar="HOST:PORT",
              help="A broker with empty topics, instead of the embedded one.")  # fmt: skip
@click.option("--config", "config_file", help="TOML file or name of a preset [default].")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting.")
def command(
    *, folder: Path, broker: str, config_file: str | None, overrides: tuple[str, ...]
) -> None:
    """Run broker, embedder and worker on the bundled impressions and clicks.

    Items are sent first and embedded; then the events are streamed as fast as the worker takes
    them. It ends by itself and compares the run with a replay of the same log.
    """
    arguments = [word for text in overrides for word in ("--set", text)]
    arguments += ["--config", config_file or PRESET]
    _clear(folder)
    config = DemoConfig(
        data=SLICE,
        data_set=DATA_SET,
        folder=folder,
        broker=broker,
        arguments=tuple(arguments),
        evaluate_from=EVALUATE_FROM,
    )
    if not broker:
        click.echo("embedded broker: in memory, for trying out", err=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        result = Demo(config, _Shown(bar)).run()
    show(result, wide_console())
    if result.differences:
        raise FaultError(f"the run differs from its replay in {', '.join(result.differences)}")


class _Shown:
    """Shows the state of a run: a bar on a terminal, a line at each change elsewhere."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("demo", total=None, words="")
        self._phase = ""
        self._tenth = 0

    def __call__(self, told: Told) -> None:
        """Take the state."""
        words = _words(told.status)
        self._bar.update(
            self._task, description=told.phase, completed=told.done,
            total=told.total or None, words=words,
        )  # fmt: skip
        tenth = 10 * told.done // told.total if told.total else 0
        if self._bar.disable and (told.phase != self._phase or tenth > self._tenth):
            share = f" {10 * tenth} %: {words}" if told.total else ""
            click.echo(f"{told.phase}{share}", err=True)
        self._phase, self._tenth = told.phase, tenth


def _words(status: Mapping[str, Any]) -> str:
    """Running metrics of the worker's status in a few words."""
    counts = status.get("pipeline", {})
    metrics = counts.get("metrics", {})
    if not counts.get("samples") or metrics.get("auc") is None:
        return ""
    return (
        f"{counts['samples']:,} samples, log loss {metrics['log_loss']:.4f}, "
        f"AUC {metrics['auc']:.4f}, calibration {metrics['calibration']:.3f}"
    )


def show(result: DemoResult, console: Console) -> None:
    """The result as tables, and where everything is."""
    counts, report = result.status["pipeline"], result.report
    console.print(table_of(report))
    latency = counts.get("settle_to_update_ms") or {}
    rows = {
        "samples learned": f"{counts['samples']:,}",
        "duplicates dropped": f"{counts['duplicates']:,} impressions, "
        f"{counts['duplicate_clicks']:,} clicks",
        "positives": ", ".join(f"{kind} {n:,}" for kind, n in counts["positives"].items()),
        "late, orphan, rejected": f"{counts['late_clicks']:,}, {counts['orphan_clicks']:,}, "
        f"{counts['rejected']:,}",
        "idle advances, late vectors": f"{counts['idle_advances']}, {counts['late_vectors']}",
        "set-up": f"{result.setup_s:.1f} s (log, topics, item vectors, start of the worker)",
        "run": f"{result.run_s:.1f} s, {counts['samples'] / result.run_s:,.0f} samples/s, "
        f"{counts['events'] / result.run_s:,.0f} events/s",
        "settle to update": f"p50 {_ms(latency.get('p50'))}, p99 {_ms(latency.get('p99'))}, "
        "backlog included",
        "snapshots kept": f"{result.snapshots}",
        "against its replay": "differs in " + ", ".join(result.differences)
        if result.differences
        else "equal to its replay, bit for bit",
    }
    table = Table(title="Streamed through Kafka topics", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(f"report     {result.folder / 'replay' / 'report.html'}", soft_wrap=True)
    console.print(f"snapshots  {result.folder / 'worker' / 'snapshots'}", soft_wrap=True)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value / 1000:.2f} s"


def _clear(folder: Path) -> None:
    """Start anew; refuse a folder that holds something else."""
    if not folder.exists():
        return
    if not (folder / "log.parquet").exists() and any(folder.iterdir()):
        raise InputError(
            f"--folder {folder}: holds something that is no earlier demo; name another"
        )
    shutil.rmtree(folder)
