"""`millrace compare`: which configuration predicts better on the same logs. Runs nothing itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra import config as loader
from infra.errors import InputError
from stream.commands.replay import offset_minutes, package_version, time_ms, wide_console
from stream.commands.vector_notes import notes_of
from stream.composition import load_config
from stream.replay.arms import Arm, differ_in_content_only, distinct, placebos, published
from stream.replay.compare import Pass, run_passes
from stream.replay.report import write_json
from stream.report.pages import write_pages

LOG_SUFFIX = ".parquet"
DEFAULT_THREADS = 2


def arms_of(
    configs: Sequence[str], variants: Sequence[tuple[str, str]], overrides: tuple[str, ...]
) -> list[Arm]:
    """Arms of the configurations, then variants of the first one; raises InputError."""
    files = list(configs) or ["default"]
    names = distinct([_name_of(file) for file in files])
    arms = [
        Arm(name=name, config=load_config(file, overrides))
        for name, file in zip(names, files, strict=True)
    ]
    changes: dict[str, list[str]] = {}
    for name, change in variants:
        changes.setdefault(name, []).append(change)
    taken = {arm.name for arm in arms}
    for name, own in changes.items():
        if name in taken:
            raise InputError(f"--arm '{name}': a configuration has that name; choose another")
        arms.append(Arm(name=name, config=load_config(files[0], (*overrides, *own))))
    return arms


def _name_of(file: str) -> str:
    """A configuration's name: of files what is between folder and suffix, joined as they are."""
    if Path(file).is_file():
        return Path(file).stem
    return "+".join(Path(p).stem if Path(p).suffix else p for p in file.split("+"))


def report_of(
    evaluation: dict[str, Any], passes: Sequence[Pass], options: dict[str, Any]
) -> dict[str, Any]:
    """report.json of a comparison: the evaluation, each pass's counts, all configurations."""
    return {
        "evaluation": evaluation,
        "passes": [
            {
                "arms": [arm.name for arm in one.arms], "predictions": str(one.predictions),
                "counts": one.counts, "learners": one.learners, "seconds": one.seconds,
                "samples_per_s": one.samples_per_s,
                "events_per_s": one.events / max(one.seconds, 1e-9),
            }
            for one in passes
        ],
        "configs": {
            arm.name: loader.to_dict(arm.config) for one in passes for arm in one.arms
        },
        "logs": passes[0].source_ids,
        "options": options,
        "version": package_version(),
    }  # fmt: skip


def evaluated(passes: Sequence[Pass], arms: Sequence[Arm], options: dict[str, Any]) -> Any:
    """The evaluation of the passes' predictions; see docs/evaluation.md."""
    from stream.evaluation import EvaluationOptions, align, evaluate, read_rows

    config = arms[0].config
    seconds = sum(one.seconds for one in passes)
    samples_s = sum(one.samples / one.samples_per_s for one in passes if one.samples)
    return evaluate(
        align({f"pass {n}": read_rows(one.predictions) for n, one in enumerate(passes)}),
        EvaluationOptions(
            label=config.ranker.label, predict_at=config.stream.predict_at,
            window_ms=config.label[config.ranker.label].window_ms,
            end_ms=passes[0].log_end_ms, evaluate_from_ms=options["evaluate_from_ms"],
            warm_up_share=options["warm_up"], offset_ms=options["offset_minutes"] * 60_000,
            resamples=options["resamples"], block=options["block"],
            placebos={
                arm.name: (arm.name.rpartition(" placebo ")[0], arm.permutation)
                for arm in arms if arm.permutation is not None
            },
            content_treatments={
                (a.name, b.name) for a, b in combinations(arms, 2) if differ_in_content_only(a, b)
            },
            sync_ms=_waits(arms, passes[0].log_end_ms - (options["evaluate_from_ms"] or 0)),
            reference=arms[0].name if any(arm.sync_ms is not None for arm in arms) else None,
            throughput={
                "samples_per_s": sum(one.samples for one in passes) / max(samples_s, 1e-9),
                "events_per_s": sum(one.events for one in passes) / max(seconds, 1e-9),
                "seconds": seconds,
            },
        ),
    )  # fmt: skip


def _waits(arms: Sequence[Arm], span_ms: int) -> dict[str, int]:
    """How long weights wait for publication, by arm; the first arm's do not."""
    waits = {arm.name: arm.sync_ms or span_ms for arm in arms if arm.sync_ms is not None}
    return {arms[0].name: 0, **waits} if waits else {}


def table_of(evaluation: dict[str, Any]) -> Table:
    """Metrics by arm, for a person."""
    columns = ("log_loss", "ne", "auc", "gauc_user_batch", "calibration")
    table = Table(
        title=f"{evaluation['label']}, predicted at {evaluation['predict_at']}, "
        f"{evaluation['rows']:,} rows"
    )
    table.add_column("arm", overflow="fold")
    for name in ("log loss", "NE", "AUC", "GAUC u-batch", "calibr."):
        table.add_column(name, justify="right", no_wrap=True)
    for arm in evaluation["arms"]:
        values = [arm["metrics"][name] for name in columns]
        table.add_row(arm["name"], *("-" if v is None else f"{v:.4f}" for v in values))
    return table


def _tell_of_vectors(arms: Sequence[Arm], evaluation: dict[str, Any]) -> None:
    """Once each: arms often have the same vectors."""
    lines = {
        line: None for arm in arms if arm.permutation is None
        for line in notes_of(arm.config, evaluation)
    }  # fmt: skip
    for line in lines:
        click.echo(f"warning: {line}", err=True)


@click.command("compare")
@click.argument("inputs", nargs=-1, required=True, metavar="CONFIG... LOG...")
@click.option("--report", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="Folder for report.html, report.md, report.json and predictions.")  # fmt: skip
@click.option("--arm", "variants", nargs=2, multiple=True, metavar="NAME A.B=C",
              help="One more arm: the first CONFIG with a setting changed.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override in all arms.")
@click.option("--evaluate-from", metavar="TIME", help="Score impressions from this time on (ISO).")
@click.option("--warm-up", default=0.0, metavar="SHARE",
              help="Leave out the first share of rows, where no time is given.")  # fmt: skip
@click.option("--timezone", metavar="ZONE", help="Of days and times, such as +08:00.")
@click.option("--sync-every", metavar="T,…",
              help="Also the first CONFIG with weights published every 10m, never, ….")  # fmt: skip
@click.option("--placebo", type=click.Choice(["content"]),
              help="Also each arm with item vectors permuted among the items.")  # fmt: skip
@click.option("--permutations", default=3, show_default=True, help="Permutations of a placebo.")
@click.option("--resamples", default=1_000, show_default=True, help="Of the bootstrap.")
@click.option("--block", type=click.Choice(["user", "user_day", "hour"]), default="user",
              show_default=True, help="What the bootstrap draws as a whole.")  # fmt: skip
@click.option("--threads", default=DEFAULT_THREADS, show_default=True,
              help="Arms that learn at the same time.")  # fmt: skip
def command(  # one parameter an option
    *,
    inputs: tuple[str, ...],
    report: Path,
    variants: tuple[tuple[str, str], ...],
    overrides: tuple[str, ...],
    evaluate_from: str | None,
    warm_up: float,
    timezone: str | None,
    sync_every: str | None,
    placebo: str | None,
    permutations: int,
    resamples: int,
    block: str,
    threads: int,
) -> None:
    """Replay LOGs with each CONFIG and say which one predicts better, and how sure that is.

    A CONFIG is a .toml file or the name of a preset, a LOG a .parquet file. Configurations that
    differ in [ranker] only share one pass over the logs.
    """
    logs = [Path(one) for one in inputs if one.endswith(LOG_SUFFIX)]
    configs = [one for one in inputs if not one.endswith(LOG_SUFFIX)]
    if not logs:
        raise InputError(f"compare: name at least one record log (*{LOG_SUFFIX})")
    arms = arms_of(configs, variants, overrides)
    offset = offset_minutes(timezone, arms[0].config)
    start = time_ms(evaluate_from, offset)
    first = arms[0]
    if sync_every and start is None:
        raise InputError(
            "compare: --sync-every needs --evaluate-from, the time from which copies are published"
        )
    if sync_every:
        arms += [
            published(first, one.strip(), start_ms=start or 0, offset_ms=offset * 60_000)
            for one in sync_every.split(",")
        ]
    if placebo:
        arms += placebos([arm for arm in arms if arm.sync_ms is None], permutations)
    if len(arms) == 1:
        raise InputError("compare: give two configurations, --arm, --sync-every or --placebo")
    with Progress(
        TextColumn("replay"), BarColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("replay", total=None)
        passes = run_passes(
            arms, logs, report / "passes", threads=threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    options = {
        "evaluate_from_ms": start, "warm_up": warm_up, "offset_minutes": offset,
        "resamples": resamples, "block": block,
    }  # fmt: skip
    evaluation = evaluated(passes, arms, options)
    content = report_of(evaluation, passes, options)
    write_json(report / "report.json", content)
    _tell_of_vectors(arms, evaluation)
    write_pages(content, report)
    console = wide_console()
    console.print(table_of(evaluation))
    for pair in evaluation["pairs"]:
        console.print(pair["decision"]["words"], highlight=False)
    click.echo(json.dumps({"report": str(report / "report.json"),
                           "page": str(report / "report.html")}))  # fmt: skip
