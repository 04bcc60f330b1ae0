"""`millrace replay`: record logs through the pipeline, to a report. Runs nothing itself."""

from __future__ import annotations

import datetime as dt
import json
import sys
import zoneinfo
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra import config as loader
from infra.config_text import render
from infra.errors import InputError
from stream.commands.vector_notes import notes_of
from stream.composition import load_config
from stream.config import Config
from stream.evaluation import EvaluationOptions
from stream.partition_clock import advice
from stream.replay.report import counts_of, evaluation_of, write_json
from stream.replay.runner import Replay, ReplayConfig, ReplayResult
from stream.report.pages import write_pages

LEARNER_SEED = "seed"


def offset_minutes(text: str | None, config: Config) -> int:
    """Minutes ahead of UTC of `+08:00` or an IANA name (its offset today), or the configured ones.

    Raises InputError.
    """
    if text is None:
        return config.stream.timezone_offset_minutes
    try:
        if text[0] in "+-":
            zone = dt.datetime.fromisoformat(f"2000-01-01T00:00{text}").utcoffset()
        else:
            zone = dt.datetime.now(zoneinfo.ZoneInfo(text)).utcoffset()
    except (ValueError, IndexError, zoneinfo.ZoneInfoNotFoundError) as error:
        raise InputError(
            f"--timezone '{text}': expected an offset such as +08:00 or a name such as "
            "Asia/Shanghai"
        ) from error
    return int(zone.total_seconds() // 60) if zone else 0


def time_ms(text: str | None, offset: int) -> int | None:
    """Milliseconds of an ISO time, at `offset` minutes where it has none. Raises InputError."""
    if text is None:
        return None
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"--evaluate-from '{text}': expected an ISO time such as 2022-04-30T00:00"
        ) from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=dt.timezone(dt.timedelta(minutes=offset)))
    return int(time.timestamp() * 1_000)


def package_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("millrace")
    except PackageNotFoundError:
        return "0+unknown"


def full_report(
    result: ReplayResult, *, evaluate_from_ms: int | None, offset: int
) -> dict[str, Any]:
    """report.json of a replay."""
    pipeline, config = result.composition.pipeline, result.composition.config
    throughput = {
        "samples_per_s": result.samples_per_s,
        "events_per_s": result.events_run / max(result.seconds, 1e-9),
    }
    return {
        **counts_of(pipeline),
        "predict_at": config.stream.predict_at,
        **evaluation_of(
            result.predictions,
            EvaluationOptions(
                label=config.ranker.label, predict_at=config.stream.predict_at,
                window_ms=config.label[config.ranker.label].window_ms, end_ms=result.log_end_ms,
                evaluate_from_ms=evaluate_from_ms, offset_ms=offset * 60_000,
                throughput=throughput | {"seconds": result.seconds},
            ),
        ),
        "items_rejected_by_reason": result.items_rejected_by_reason,
        "learner": dict(pipeline.learner.counts()),
        **throughput,
        "seconds": result.seconds,
        "snapshots": result.snapshots,
        "resumed_from": str(result.restored.ref) if result.restored.ref else None,
        "logs": result.source_ids,
        "options": {"evaluate_from_ms": evaluate_from_ms, "offset_minutes": offset},
        "config": loader.to_dict(config),
        "seed": config.ranker.options.get(LEARNER_SEED, 1),
        "version": package_version(),
    }  # fmt: skip


def wide_console() -> Console:
    """A console for tables: as wide as the terminal, or 100 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else 100)


def table_of(report: dict[str, Any]) -> Table:
    """The metrics by day and over the evaluated span, for a person."""
    at = report["predict_at"]
    table = Table(title=f"{report['config']['ranker']['label']}, predicted at {at}")
    for name in ("day", "samples", "log loss", "NE", "AUC", "calibr.", "CTR"):
        table.add_column(name, justify="left" if name == "day" else "right", no_wrap=True)
    total = {"date": "all", **report["evaluated"], **report["metrics"]}
    for row in (*report["daily"], total):
        if row is total:
            table.add_section()
        values = [row[n] for n in ("log_loss", "ne", "auc", "calibration", "ctr")]
        cells = ["-" if v is None else f"{v:.4f}" for v in values]
        table.add_row(row["date"], f"{row['samples']:,}", *cells)
    return table


def _warn_of_jumps(config: Config, content: dict[str, Any]) -> None:
    line = advice(content["clock_jumps"], content["events"], config.stream.max_jump_ms)
    if line is not None:
        click.echo(f"warning: {line}", err=True)


@click.command("replay")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--report", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for report.json and predictions.parquet.")  # fmt: skip
@click.option("--config", "config_file", help="TOML file or name of a preset [default].")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting.")
@click.option("--print-config", is_flag=True, help="Print the configuration and stop.")
@click.option("--evaluate-from", metavar="TIME", help="Metrics from this time on (ISO).")
@click.option("--timezone", metavar="ZONE", help="Of days and times, such as +08:00.")
@click.option("--snapshot-every", default=0, metavar="N", help="Snapshot each N samples.")
@click.option("--resume", is_flag=True, help="Continue from the newest snapshot in REPORT.")
@click.option("--new-log", is_flag=True,
              help="With --resume: keep model and user state for another log.")  # fmt: skip
@click.option("--late-vectors", metavar="FOLDER", type=click.Path(path_type=Path),
              help="Of the recorded worker: item vectors count as late as there.")  # fmt: skip
def command(  # one parameter an option
    *,
    logs: tuple[Path, ...],
    report: Path,
    config_file: str | None,
    overrides: tuple[str, ...],
    print_config: bool,
    evaluate_from: str | None,
    timezone: str | None,
    snapshot_every: int,
    resume: bool,
    new_log: bool,
    late_vectors: Path | None,
) -> None:
    """Replay record LOGS, one after the other, and report how well the model predicted."""
    config = load_config(config_file, overrides)
    if print_config:
        click.echo(render(config), nl=False)
        return
    offset = offset_minutes(timezone, config)
    start = time_ms(evaluate_from, offset)
    if snapshot_every:
        merged = loader.to_dict(config)
        config = loader.build(
            Config,
            merged | {"snapshot": merged["snapshot"] | {"every_samples": snapshot_every}},
        )
    options = ReplayConfig(
        logs=logs, report=report, snapshot_every=snapshot_every, resume=resume, new_log=new_log,
        late_vectors=late_vectors,
    )  # fmt: skip
    replay = Replay(config, options)
    for damage in replay.restored.damaged:
        click.echo(f"damaged {damage}; an earlier one is used", err=True)
    for note in replay.restored.notes:
        click.echo(note, err=True)
    with Progress(
        TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("replay", total=None)
        result = replay.run(lambda done, total: bar.update(task, completed=done, total=total))
    try:
        content = full_report(result, evaluate_from_ms=start, offset=offset)
    finally:
        result.composition.close()
    content["title"] = f"Replay of {logs[0].name}"
    write_json(report / "report.json", content)
    for line in notes_of(config, content["evaluation"]):
        click.echo(f"warning: {line}", err=True)
    _warn_of_jumps(config, content)
    write_pages(content, report)
    wide_console().print(table_of(content))
    click.echo(
        f"{content['samples']:,} samples from {content['events']:,} events, "
        f"{content['duplicates']:,} duplicates dropped, {content['rejected']:,} rejected; "
        f"{content['samples_per_s']:,.0f} samples/s"
    )
    click.echo(json.dumps({"report": str(report / "report.json"),
                           "page": str(report / "report.html"),
                           "predictions": str(result.predictions)}))  # fmt: skip
