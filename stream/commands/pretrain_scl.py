"""`millrace pretrain scl`: a projection trained on what users take together. Computes nothing."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from embeddings.encoders.projection import Projection, write_projection
from embeddings.item_content import ItemContent
from embeddings.pretrain.pairs import PairConfig, Pairs
from embeddings.pretrain.trainer import ContrastConfig, ContrastTrainer, EpochFacts, PairRows
from infra.errors import InputError
from stream.commands import pretrain_options as common
from stream.commands.progress import progress
from stream.composition import load_config, raw_encoder_of
from stream.config import Config
from stream.interactions import read_interactions, read_shown
from stream.pretraining import (
    PairSource,
    both_ways,
    encode_items,
    known,
    later_pairs,
    read_items,
    rows_of,
    training_pairs,
)
from stream.pretraining_report import RECALL_AT, judgement
from stream.queries import query_pairs
from stream.times import time_ms


@click.command("scl")
@common.logs
@common.until("Train on what happened before; judge by what came after.")
@common.out("Projection, a safetensors file; its report has .json behind.")
@common.config("TOML file or preset that names the encoder.")
@common.overrides
@click.option("--pairs", "source", type=click.Choice(["session", "next", "nearest", "query"]),
              default="session", show_default=True, help="Which items make a pair.")  # fmt: skip
@click.option("--window-minutes", default=30.0, show_default=True, metavar="M",
              help="Longest time between the items of a session's pair; 0: any.")  # fmt: skip
@click.option("--window-items", default=5, show_default=True, metavar="N",
              help="Largest number of items from one to the other.")  # fmt: skip
@click.option("--query", default="query", show_default=True, metavar="NAME",
              help="Where an impression's context has the query, for --pairs query.")  # fmt: skip
@click.option("--objective", type=click.Choice(["queue", "batch"]), default="queue",
              show_default=True, help="Contrast with a queue, or within the batch.")  # fmt: skip
@click.option("--option", "options", multiple=True, metavar="A=B",
              help="Setting of the training, such as dim=64 or temperature=0.1.")  # fmt: skip
@click.option("--kind", "kinds", multiple=True, help="Kinds of clicks to read [all].")
@click.option("--control/--no-control", default=True, show_default=True,
              help="Train on shuffled pairs as well, to compare.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on where an earlier run was ended.")
@click.option("--device", default="cpu", show_default=True, help="Such as cuda.")
@common.threads
def scl(**given: Any) -> None:
    """Align an encoder's vectors with what users take together, for `items.projection`.

    The encoder itself stays as it is. Says how often the next item of a user, from --until on, is
    among the 10 nearest: with the raw vectors, with the trained ones, and with a control.
    """
    _run(_Given(**given))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What the command line said."""

    logs: tuple[Path, ...]
    until: str
    out: Path
    config_file: str | None
    overrides: tuple[str, ...]
    source: PairSource
    window_minutes: float
    window_items: int
    query: str
    objective: str
    options: tuple[str, ...]
    kinds: tuple[str, ...]
    control: bool
    resume: bool
    device: str
    threads: int


def _run(given: _Given) -> None:
    torch.set_num_threads(given.threads)
    settings, window = _settings(given.objective, given.options), _window(given)
    config, until_ms = load_config(given.config_file, given.overrides), time_ms(given.until)
    if not config.items.dim:
        raise InputError("pretrain scl: items have no vectors: items.dim is 0; set it")
    encoder = raw_encoder_of(config.items)
    with progress("read") as tell:
        logged = read_interactions(
            given.logs, topic=config.topics.clicks, kinds=given.kinds, on_progress=tell
        )
    past = logged.interactions.where(logged.interactions.ts_ms_n < until_ms)
    asked, contents = _asked(given, config)
    items_only = read_items(given.logs, config.topics.items)
    with progress("encode") as tell:
        items = encode_items(encoder, items_only | contents, tell)
    wants_hard = settings.objective == "queue" and settings.triplet_weight > 0
    shown = (
        read_shown(given.logs, topic=config.topics.impressions, until_ms=until_ms)
        if wants_hard
        else None
    )
    if asked is None:
        pairs = training_pairs(past, given.source, window)
        later = later_pairs(logged.interactions, items, until_ms)
    else:
        pairs, later = asked.where(asked.ts_ms_P < until_ms), known(asked, items, until_ms)
    rows = rows_of(pairs, items, shown=shown, taken=past)
    # A query finds items, but no item looks for a query.
    rows = both_ways(rows) if settings.objective == "queue" and asked is None else rows
    trainer = ContrastTrainer(items.vectors_ND, rows, settings, given.device)
    state = given.out.with_name(f"{given.out.name}.state")
    started = time.perf_counter()
    facts = _train(trainer, state, resume=given.resume)
    placebo = None
    if given.control:
        shuffled = rows.shuffled(settings.seed)
        other = ContrastTrainer(items.vectors_ND, shuffled, settings, given.device)
        _train(other, None, resume=False)
        placebo = other.vectors()
    competes_N = ~np.isin(items.items_N, np.fromiter(contents, np.int64, len(contents)))
    report = {
        "encoder": encoder.version,
        "until_ms": until_ms,
        "logs": logged.source_ids,
        "items": int(competes_N.sum()),
        "queries": int((~competes_N).sum()),
        "pairs": _counts(rows),
        "settings": asdict(settings) | {"pairs": given.source} | asdict(window),
        "epochs": [asdict(fact) for fact in facts],
        "seconds": time.perf_counter() - started,
        **judgement(items, later, trainer.vectors(), placebo, competes_N),
    }
    _write(given.out, trainer, encoder.version, report)
    state.unlink(missing_ok=True)
    _show(report, given.out)


def _asked(given: _Given, config: Config) -> tuple[Pairs | None, dict[int, ItemContent]]:
    """Pairs with queries and the queries' contents, where these are asked for."""
    if given.source != "query":
        return None, {}
    topics = config.topics
    return query_pairs(
        given.logs, impressions=topics.impressions, clicks=topics.clicks, field=given.query,
        kinds=given.kinds,
    )  # fmt: skip


def _write(out: Path, trainer: ContrastTrainer, encoder: str, report: dict[str, Any]) -> None:
    """The projection, and beside it the report."""
    projection = Projection(arrays=trainer.arrays(), encoder=encoder, facts=report)
    write_projection(out, projection)
    content = {"version": projection.version, **report}
    out.with_name(f"{out.name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _window(given: _Given) -> PairConfig:
    try:
        return PairConfig(
            window_ms=round(given.window_minutes * 60_000), window_items=given.window_items
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _settings(objective: str, options: tuple[str, ...]) -> ContrastConfig:
    """The training's settings; raises InputError for an unknown or unfit one."""
    fields = ContrastConfig.__dataclass_fields__
    chosen: dict[str, Any] = {"objective": objective}
    for option in options:
        name, _, value = option.partition("=")
        if name not in fields or name == "objective":
            raise InputError(f"--option {option}: expected one of {', '.join(sorted(fields))}")
        kind = int if fields[name].type == "int" else float
        try:
            chosen[name] = kind(value)
        except ValueError as error:
            raise InputError(f"--option {option}: expected {kind.__name__}") from error
    try:
        return ContrastConfig(**chosen)
    except ValueError as error:
        raise InputError(str(error)) from error


def _counts(rows: PairRows) -> dict[str, int]:
    return {"all": len(rows.left_P), "with_hard_negative": int((rows.hard_P >= 0).sum())}


def _train(trainer: ContrastTrainer, state: Path | None, *, resume: bool) -> list[EpochFacts]:
    """Train to the end; after each epoch `state` holds where it stands."""
    if resume and state is not None and state.exists():
        trainer.restore(state.read_bytes())
    facts: list[EpochFacts] = []
    with progress("train" if state is not None else "train control") as tell:
        while trainer.step < trainer.steps:
            facts.append(trainer.run_epoch(tell))
            if state is not None:
                temporary = state.with_name(f"{state.name}.tmp")
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(trainer.to_bytes())
                temporary.replace(state)
    return facts


def _show(report: dict[str, Any], out: Path) -> None:
    click.echo(f"{report['items']:,} items, {report['pairs']['all']:,} pairs")
    for fact in report["epochs"][-1:]:
        click.echo(
            f"epoch {fact['epoch']}: contrast {fact['contrast']:.3f}, "
            f"ln of the keys {fact['ln_keys']:.3f}, triplet {fact['triplet']:.3f}"
        )
    if report["later_pairs"]:
        for name in ("raw", "trained", "control"):
            if name in report["recall"]:
                found, lift = report["recall"][name], report["lift"].get(name)
                over = f", over raw {_interval(lift)}" if lift else ""
                click.echo(f"recall@{RECALL_AT} of the next item, {name}: {found:.4f}{over}")
    else:
        click.echo(f"not judged: {report['reason']}")
    click.echo(f"use: --set items.projection={out} --set items.dim={report['settings']['dim']}")


def _interval(lift: dict[str, float]) -> str:
    return f"{lift['mean']:+.4f} [{lift['low']:+.4f}, {lift['high']:+.4f}]"
