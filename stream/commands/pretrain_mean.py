"""`millrace pretrain mean`: the means that fusion takes off vectors. Computes nothing itself."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from embeddings.encoders import catalog
from embeddings.fusion import fit_means, write_means
from infra.errors import InputError
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.composition import load_config
from stream.pretraining import read_items
from stream.times import time_ms


@click.command("mean")
@common.logs
@common.out("Means by encoder, a safetensors file.")
@common.config("TOML file or preset that names the encoders.")
@common.overrides
@click.option("--until", metavar="TIME", help="Only items whose last event is older [all].")
@click.option("--items-max", default=10_000, show_default=True, metavar="N",
              type=click.IntRange(min=1), help="Encode a sample of so many.")  # fmt: skip
@click.option("--topic", default="items", show_default=True, help="Topic of the items.")
@common.as_json
def mean(
    *,
    logs: tuple[Path, ...],
    out: Path,
    config_file: str | None,
    overrides: tuple[str, ...],
    until: str | None,
    items_max: int,
    topic: str,
    as_json: bool,
) -> None:
    """Fit the mean vector of each encoder to the items in LOGS, for `items.mean_file`."""
    items = load_config(config_file, overrides).items
    encoders = catalog.build_all(items.encoders, items.encoder_options, items.encoder())
    found = read_items(logs, topic)
    until_ms = time_ms(until) if until else None
    keys = [k for k in sorted(found) if until_ms is None or found[k].ts_ms < until_ms]
    # Keys are hashes, so that equal steps through them are a random sample.
    places = np.linspace(0, len(keys), min(items_max, len(keys)), endpoint=False).astype(int)
    sample = [found[keys[place]] for place in places.tolist()]
    with progress("encode") as tell:
        means = fit_means(encoders, sample, tell)
    if not means.means:
        raise InputError(
            f"none of {len(sample)} items has anything that {', '.join(items.encoders)} reads"
        )
    write_means(out, means)
    lengths = {name: float(np.linalg.norm(m)) for name, m in means.means.items()}
    facts = {"version": means.version, "items": len(sample), "length": lengths, "out": str(out)}
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, length in lengths.items():
        click.echo(f"{name}: mean cosine of two items about {length**2:.3f}")
    click.echo(f"{len(sample):,} items: {means.version}\nuse: --set items.mean_file={out}")
