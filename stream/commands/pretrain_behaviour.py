"""`millrace pretrain behaviour`: item vectors from who took what. Computes nothing itself."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from embeddings.pretrain.behaviour import BehaviourConfig, behaviour_vectors
from embeddings.pretrain.pairs import PairConfig
from embeddings.vector_file import VectorFile, content_version, write_vector_file
from infra.errors import InputError
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.interactions import read_interactions
from stream.times import time_ms


@click.command("behaviour")
@common.logs
@common.until("Only what happened before (ISO time or UTC milliseconds).")
@common.since("Only what happened from then on.")
@common.out("Item vectors, a Parquet file.")
@click.option("--dim", default=64, show_default=True, help="Length of a vector.")
@click.option("--kind", "kinds", multiple=True, help="Kinds of clicks to read [all].")
@click.option("--window-minutes", default=0.0, metavar="M",
              help="Longest time between the items of a pair [any].")  # fmt: skip
@click.option("--window-items", default=50, show_default=True, metavar="N",
              help="Largest number of a user's items from one to the other.")  # fmt: skip
@click.option("--users-min", default=5, show_default=True, metavar="N",
              help="An item that fewer users took gets no vector.")  # fmt: skip
@click.option("--topic", default="clicks", show_default=True, help="Topic of the clicks.")
@common.as_json
def behaviour(  # one parameter an option
    *,
    logs: tuple[Path, ...],
    until: str,
    since: str | None,
    out: Path,
    dim: int,
    kinds: tuple[str, ...],
    window_minutes: float,
    window_items: int,
    users_min: int,
    topic: str,
    as_json: bool,
) -> None:
    """Make vectors of the items in LOGS whose users overlap, for `items.vectors_file`.

    To predict nothing with knowledge of its own future, let --until be the time of the first
    impression that is predicted.
    """
    try:
        pair_config = PairConfig(
            window_ms=round(window_minutes * 60_000), window_items=window_items
        )
        config = BehaviourConfig(dim=dim, users_min=users_min)
    except ValueError as error:
        raise InputError(str(error)) from error
    until_ms = time_ms(until)
    started = time.perf_counter()
    with progress("read") as tell:
        logged = read_interactions(
            logs, topic=topic, kinds=kinds, from_ms=time_ms(since) if since else None,
            until_ms=until_ms, on_progress=tell,
        )  # fmt: skip
    found = behaviour_vectors(logged.named(), pair_config, config)
    item_ids = [logged.item_ids[key] for key in found.items_N.tolist()]
    if len({type(item_id) for item_id in item_ids}) > 1:
        raise InputError("item ids are both integers and strings: a file holds one of the two")
    facts = {
        "until_ms": until_ms,
        "logs": logged.source_ids,
        "kinds": logged.kinds,
        "interactions": len(logged.interactions),
        "pairs": found.pairs,
        "settings": asdict(config) | asdict(pair_config),
    }
    version = content_version("behaviour", item_ids, found.vectors_ND)
    write_vector_file(
        out,
        VectorFile(item_ids=item_ids, vectors_ND=found.vectors_ND, version=version, facts=facts),
    )
    facts |= {"version": version, "items": len(item_ids), "out": str(out)}
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{len(item_ids):,} vectors of {dim} from {len(logged.interactions):,} interactions and "
        f"{found.pairs:,} pairs in {time.perf_counter() - started:.1f} s: {version}\n"
        f"use: --set items.vectors_file={out} --set items.dim={dim}"
    )
