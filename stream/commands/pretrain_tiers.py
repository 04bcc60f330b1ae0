"""`millrace pretrain tiers`: edges of SimTier's tiers from a past span. Computes nothing itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from infra.errors import InputError
from learners.modules.tiers import equal_mass
from learners.modules.tiers_file import Tiers, write_tiers
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.composition import load_config
from stream.pretraining_tiers import cosine_counts
from stream.times import time_ms


@click.command("tiers")
@common.logs
@common.until("Only impressions before (ISO time or UTC milliseconds).")
@common.out("Edges, a JSON file.")
@click.option("--tiers", "count", default=20, show_default=True, metavar="N",
              type=click.IntRange(2, 1_000), help="Number of tiers, at most.")  # fmt: skip
@click.option("--history", "histories", multiple=True, metavar="NAME", help="Histories [all].")
@click.option("--block", default="", help="Block of the item vectors [the fused one].")
@common.config("TOML file or preset of the ranker to be.")
@common.overrides
@common.as_json
def tiers(  # one parameter an option
    *,
    logs: tuple[Path, ...],
    until: str,
    out: Path,
    count: int,
    histories: tuple[str, ...],
    block: str,
    config_file: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fit tiers with equal shares of the cosines in LOGS, for `simtier.tiers_file`.

    To use no knowledge of what is evaluated, let --until be before it. The file names the version
    of the vectors: with others it is refused.
    """
    until_ms = time_ms(until)
    config = load_config(config_file, overrides)
    with progress("read") as tell:
        found = cosine_counts(
            logs, config, until_ms=until_ms, histories=histories, block=block, on_progress=tell
        )
    total = int(found.counts_K.sum())
    try:
        edges_E = equal_mass(found.counts_K, count)
    except ValueError as error:
        raise InputError(f"{', '.join(map(str, logs))}, before {until}: {error}") from error
    write_tiers(
        out,
        Tiers(
            encoder=found.encoder, edges_E=edges_E, block=block, cosines=total, until_ms=until_ms
        ),
    )
    if as_json:
        facts = {"encoder": found.encoder, "edges": edges_E.tolist(), "cosines": total}
        click.echo(json.dumps(facts | {"until_ms": until_ms, "out": str(out)}))
        return
    click.echo(
        f"{len(edges_E) + 1} tiers from {total:,} cosines of {found.encoder}, edges "
        f"{edges_E[0]:.3f} to {edges_E[-1]:.3f}\nuse: --set ranker.options.simtier.on=true "
        f"--set ranker.options.simtier.tiers_file={out}"
    )
