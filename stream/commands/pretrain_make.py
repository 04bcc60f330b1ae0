"""`millrace pretrain make`: a content-only extractor trained on a window of the past."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch

from infra.errors import InputError
from learners.modules.make_net import ExtractorConfig
from learners.modules.make_release import MakeRelease, read_release, release_of, write_release
from learners.modules.make_training import (
    ContentTable,
    EpochScore,
    MakeTrainingConfig,
    curve_of,
    new_net,
    train,
    warm,
)
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.composition import load_config
from stream.pretraining_make import content_samples
from stream.times import time_ms


@click.command("make")
@common.logs
@common.until("Labels known before (ISO time or UTC milliseconds).")
@common.since("Only impressions from then on.")
@common.out("Release, a safetensors file.")
@common.config("TOML file or preset of the ranker to be.")
@common.overrides
@click.option("--warm-start", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Release to start from.")  # fmt: skip
@click.option("--epochs", default=4, show_default=True, help="Passes over the window.")
@click.option("--lr", default=1e-3, show_default=True, help="Adam's rate.")
@click.option("--decay", default=0.0, show_default=True, help="Of the weights, as in AdamW.")
@click.option("--batch-size", default=512, show_default=True, help="Rows of a step.")
@click.option("--seed", default=1, show_default=True, help="Of first weights and order.")
@click.option("--attention", default=32, show_default=True, help="Length of queries and keys.")
@click.option("--hidden", default="64,32", show_default=True, help="Widths of the hidden layers.")
@click.option("--product/--no-product", default=True, show_default=True,
              help="The product of target and interest is an input.")  # fmt: skip
@click.option("--block", default="", help="Block of the item vectors [the fused one].")
@click.option("--judge", default=0.1, show_default=True, metavar="SHARE",
              help="Last share of the rows that each epoch is judged by; 0: none.")  # fmt: skip
@click.option("--rows-max", default=1_000_000, show_default=True, metavar="N",
              help="Keep the newest so many rows.")  # fmt: skip
@common.threads
@common.as_json
def make(**given: Any) -> None:
    """Train MAKE's extractor on LOGS, for `ranker.options.make.releases`.

    A ranker uses the release for impressions after --until alone. The epochs are judged by the last
    rows of the window, in a run that does not learn from them; the release is of all rows.
    """
    _run(_Given(**given))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the command line said."""

    logs: tuple[Path, ...]
    until: str
    since: str | None
    out: Path
    config_file: str | None
    overrides: tuple[str, ...]
    warm_start: Path | None
    epochs: int
    lr: float
    decay: float
    batch_size: int
    seed: int
    attention: int
    hidden: str
    product: bool
    block: str
    judge: float
    rows_max: int
    threads: int
    as_json: bool


def _run(given: _Given) -> None:
    torch.set_num_threads(given.threads)
    try:
        settings = MakeTrainingConfig(
            epochs=given.epochs, lr=given.lr, decay=given.decay, batch_size=given.batch_size,
            seed=given.seed,
        )  # fmt: skip
        extractor = ExtractorConfig(
            attention=given.attention,
            hidden=tuple(int(width) for width in given.hidden.split(",")),
            product=given.product,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if not 0 <= given.judge < 1:
        raise InputError(f"--judge {given.judge}: expected a share from 0 to less than 1")
    earlier = read_release(given.warm_start) if given.warm_start else None
    config = load_config(given.config_file, given.overrides)
    from_ms = time_ms(given.since) if given.since else 0
    until_ms = time_ms(given.until)
    started = time.perf_counter()
    with progress("read") as tell:
        samples = content_samples(
            given.logs, config, from_ms=from_ms, until_ms=until_ms, block=given.block,
            rows_max=given.rows_max, on_progress=tell,
        )  # fmt: skip
    table = samples.rows()
    if earlier is not None:
        _check_warm_start(earlier, table)
        extractor = earlier.extractor
    judged = int(len(table) * given.judge)
    curve: list[EpochScore] = []
    if judged:
        curve = _trained(table, extractor, settings, earlier, len(table) - judged)[1]
    net, final = _trained(table, extractor, settings, earlier, len(table))
    facts = {
        "rows": len(table), "dropped": samples.dropped, "positives": int(table.label_N.sum()),
        "vectors": len(table.rows.table_VC) - 1, "judged_rows": judged, "curve": curve_of(curve),
        "train_loss": [score.train_loss for score in final], "settings": asdict(settings),
        "warm_start": earlier.version if earlier else "", "label": config.ranker.label,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    release = release_of(
        net, encoder=table.rows.encoder, from_ms=int(table.ts_ms_N.min()), until_ms=until_ms,
        facts=facts,
    )  # fmt: skip
    write_release(given.out, release)
    _show(release, given)


def _trained(
    table: ContentTable,
    extractor: ExtractorConfig,
    settings: MakeTrainingConfig,
    earlier: MakeRelease | None,
    last: int,
) -> tuple[Any, list[EpochScore]]:
    net = new_net(table, extractor, settings.seed)
    if earlier is not None:
        warm(net, earlier)
    with progress("train" if last == len(table) else "judge") as tell:
        return net, list(train(table, net, settings, last=last, on_progress=tell))


def _check_warm_start(earlier: MakeRelease, table: ContentTable) -> None:
    """Raises InputError where it is for other inputs."""
    shape = (table.rows.table_VC.shape[1], len(table.rows.bags_BL))
    if earlier.encoder != table.rows.encoder or (earlier.dim, earlier.histories) != shape:
        raise InputError(
            f"--warm-start: the release is of encoder '{earlier.encoder}' ({earlier.dim} numbers, "
            f"{earlier.histories} histories), the items' vectors are of '{table.rows.encoder}' "
            f"({shape[0]} numbers, {shape[1]} histories); leave it out"
        )


def _show(release: MakeRelease, given: _Given) -> None:
    facts = dict(release.facts)
    if given.as_json:
        click.echo(json.dumps({"version": release.version, "out": str(given.out), **facts}))
        return
    for score in facts["curve"]:
        found = ", ".join(
            f"{word} {score[name]:.4f}" if score[name] is not None else f"{word} undefined"
            for name, word in (("log_loss", "log loss"), ("auc", "AUC"), ("gauc", "GAUC"))
        )
        click.echo(f"epoch {score['epoch']}: {found} (of {facts['judged_rows']:,} later rows)")
    click.echo(
        f"{facts['rows']:,} rows, {facts['vectors']:,} vectors, {facts['seconds']:.0f} s: "
        f"{release.version}\nuse: --set ranker.options.make.on=true "
        "--set ranker.options.make.mode=frozen "
        f"--set 'ranker.options.make.releases=[\"{given.out}\"]'"
    )
