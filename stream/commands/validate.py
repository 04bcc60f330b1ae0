"""`millrace validate`: a record log's report, as tables or JSON."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from infra import config as loader
from stream.events import TopicRole
from stream.record_log import RecordLog
from stream.validate import ValidateConfig, validate


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Windows, lateness, topics and features to check the log against.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(*, log: Path, config_file: Path | None, as_json: bool) -> None:
    """Say what is in the record log LOG: rejects, duplicates, orphans, disorder, labels."""
    config = ValidateConfig() if config_file is None else _configured(config_file)
    opened = RecordLog(log)
    with _progress(len(opened)) as step:
        report = validate(opened, config, step.take)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(report)


def _configured(file: Path) -> ValidateConfig:
    # Here, because a configuration names encoders, and those import torch: seconds.
    from stream.config import Config

    config = loader.load(Config, [file])
    topics = config.topics
    return ValidateConfig(
        lateness_ms=config.stream.lateness_ms,
        windows_ms={kind: label.window_ms for kind, label in config.label.items()},
        default_window_ms=config.window_ms,
        max_future_ms=config.stream.max_future_ms,
        max_jump_ms=config.stream.max_jump_ms,
        paths=tuple(feature.path for feature in config.feature),
        topics={
            topics.impressions: TopicRole.IMPRESSIONS,
            topics.clicks: TopicRole.CLICKS,
            topics.items: TopicRole.ITEMS,
            topics.item_vectors: TopicRole.ITEM_VECTORS,
        },
    )


class _Steps:
    """Hears of progress; shows it on a terminal only."""

    def __init__(self, total: int) -> None:
        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("reading the log", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def take(self, records: int) -> None:
        """Some records more."""
        self._bar.advance(self._task, records)


class _Silent:
    def take(self, records: int) -> None:
        """Nothing to show."""


def _progress(total: int) -> Any:  # one of two context managers
    return _Steps(total) if sys.stderr.isatty() else nullcontext(_Silent())


def _show(report: dict[str, Any]) -> None:
    console = Console()
    log, shown = report["log"], report["impressions"]
    console.print(f"{log['path']}  source {log['source_id']}", markup=False)
    console.print(_table("events", _event_rows(report), ("topic", "kind", "events")))
    if report["rejected"]["total"]:
        console.print(_table("rejected", _reject_rows(report), ("topic", "reason", "events")))
        for e in report["rejected"]["examples"][:5]:
            place = f"{e['topic']}/{e['partition']} offset {e['offset']}"
            console.print(f"  {place}: {e['reason']}: {e['detail']}", markup=False)
    console.print(_table("impressions and clicks", _join_rows(report), ("what", "number")))
    columns = ("kind", "distinct", "join rate", "outside window", "positives", "label share")
    console.print(_table("labels", _label_rows(report), columns))
    title = f"disorder (late: {report['disorder']['lateness_ms']} ms behind the partition's clock)"
    columns = ("partition", "events", "behind", "lag max ms", "late", "late share")
    console.print(_table(title, _disorder_rows(report), columns))
    if report["jumps"]["advice"]:
        console.print(f"warning: {report['jumps']['advice']}", markup=False, style="yellow")
    positions = ", ".join(f"{p}: {n:,}" for p, n in list(shown["positions"].items())[:10])
    console.print(f"positions  {positions}", markup=False)
    console.print(f"fields     {', '.join(report['fields']) or 'none'}", markup=False)
    for name, n in report["unknown_fields"].items():
        console.print(f"unknown field {name}: in {n:,} events", markup=False)
    for path in report["missing_fields"]:
        console.print(f"configured field {path}: in no event", markup=False)


def _reject_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    by_topic = report["rejected"]["by_topic"]
    return [(topic, r, n) for topic, reasons in by_topic.items() for r, n in reasons.items()]


def _label_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            kind,
            facts["distinct"],
            f"{facts['join_rate']:.4f}",
            facts["outside_window"],
            facts["positives"],
            "-" if facts["label_share"] is None else f"{facts['label_share']:.4f}",
        )
        for kind, facts in report["clicks"]["by_kind"].items()
    ]


def _disorder_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            facts["events"],
            facts["behind"],
            facts["lag_max_ms"],
            facts["late"],
            f"{facts['late_share']:.5f}",
        )
        for name, facts in report["disorder"]["by_partition"].items()
    ]


def _event_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows = [(t, kind, n) for t, kinds in report["events"].items() for kind, n in kinds.items()]
    return [*rows, *((t, "not read", n) for t, n in report["ignored_topics"].items())]


def _join_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    shown, clicks, items = report["impressions"], report["clicks"], report["items"]
    return [
        ("impressions, distinct", shown["distinct"]),
        ("impressions, duplicates", shown["duplicates"]),
        ("requests", shown["requests"]),
        ("users", shown["users"]),
        ("clicks, distinct", clicks["distinct"]),
        ("clicks, duplicates", clicks["duplicates"]),
        ("clicks, orphans", clicks["orphans"]),
        ("organic events", clicks["organic"]),
        ("organic events, duplicates", clicks["organic_duplicates"]),
        ("users with organic events", clicks["organic_users"]),
        ("items with organic events", clicks["organic_items"]),
        ("items shown", items["shown"]),
        ("items shown without description", items["shown_without_description"]),
    ]


def _table(title: str, rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        # Names come from the log: they must not be read as markup.
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else escape(cell) for cell in row))
    return table
