"""`millrace codes`: fits codebooks. The work is in `embeddings/codes`."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from embeddings.codebook_file import manifest_of, read_codebook, write_codebook
from embeddings.codes.codebook import CODES_VERSION_MARK, Codebook
from embeddings.codes.fit import FitConfig, churn, fit, grow, refresh
from embeddings.codes.measures import measures
from infra.errors import InputError
from stream.catalogue import Catalogue, read_catalogue
from stream.composition import load_config
from stream.times import time_ms


@click.group("codes")
def command() -> None:
    """Turn item vectors into discrete codes, which a ranker learns rows of."""


@command.command("fit")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The codebook's release, a safetensors file.")  # fmt: skip
@click.option("--until", metavar="TIME", help="Only items as of before (ISO time or UTC ms).")
@click.option("--levels", default=3, show_default=True, help="Residual codes of an item.")
@click.option("--size", default=256, show_default=True, help="Centroids of a level.")
@click.option("--anchors", default=1_024, show_default=True, help="Items kept as anchors; 0: none.")
@click.option("--anchors-of-item", default=25, show_default=True, help="Nearest anchors an item.")
@click.option("--iterations", default=50, show_default=True, help="Of k-means, at most.")
@click.option("--not-unit", is_flag=True, help="Leave vectors at their length.")
@click.option("--seed", default=0, show_default=True, help="Of samples and starts.")
@click.option("--refresh", "old", type=click.Path(path_type=Path, dir_okay=False), metavar="BOOK",
              help="Start from this book; its ids keep their meaning.")  # fmt: skip
@click.option("--cold", is_flag=True, help="With --refresh: new centroids, matched to the old.")
@click.option("--frozen-levels", default=0, show_default=True, help="With --refresh: as they are.")
@click.option("--grow", "grown", type=click.Path(path_type=Path, dir_okay=False), metavar="BOOK",
              help="Only add codes to this book for items too far from all.")  # fmt: skip
@click.option("--config", "config_file", help="For a record log: TOML file, or name of a preset.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def fit_codes(  # one parameter an option
    *, source: Path, out: Path, until: str | None, levels: int, size: int, anchors: int,
    anchors_of_item: int, iterations: int, not_unit: bool, seed: int, old: Path | None, cold: bool,
    frozen_levels: int, grown: Path | None, config_file: str | None, overrides: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Fit codes to the items in SOURCE: a vector store, a file of item vectors or a record log.

    To predict nothing with knowledge of its own future, let --until be the time of the first
    impression that is predicted. Use with `items.codebook`.
    """
    if old and grown:
        raise InputError("codes: --refresh and --grow exclude each other")
    try:
        config = FitConfig(
            levels=levels, size=size, anchors=anchors,
            anchors_of_vector=anchors_of_item if anchors else 0, iterations=iterations,
            normalisation="none" if not_unit else "unit", seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    catalogue = read_catalogue(
        source, load_config(config_file, overrides), time_ms(until) if until else None
    )
    before = read_codebook(old or grown) if old or grown else None  # type: ignore[arg-type]
    version = catalogue.encoder_version.partition(CODES_VERSION_MARK)[0]
    if before is not None and before.encoder_version != version:
        raise InputError(
            f"codebook {old or grown}: is for vectors of encoder '{before.encoder_version}', but "
            f"{source} has those of '{version}'; fit a new book"
        )
    vectors_ND = catalogue.vectors_ND[catalogue.present_N]
    facts = {"from_ms": catalogue.from_ms, "until_ms": catalogue.until_ms,
             "limit_ms": time_ms(until) if until else None, "items": len(vectors_ND)}  # fmt: skip
    replaced: list[int] | None = None
    if before is None:
        book = fit(vectors_ND, version, config, facts)
    elif grown:
        book = grow(before, vectors_ND, config, facts=facts)
    else:
        fresh = refresh(
            before, vectors_ND, config, cold=cold, frozen_levels=frozen_levels, facts=facts
        )
        book, replaced = fresh.book, [len(ids) for ids in fresh.replaced]
    write_codebook(out, book)
    _tell(out, book, before, replaced, catalogue, as_json=as_json)


@command.command("adopt")
@click.argument("snapshots", type=click.Path(path_type=Path, file_okay=False))
@click.option("--book", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The codebook that the model is to use from now on.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def adopt_codes(*, snapshots: Path, book: Path, as_json: bool) -> None:
    """Give a stopped worker's model another codebook, as a new snapshot in SNAPSHOTS.

    Its items are coded anew, and each code takes the row of the code that most of its items had.
    The older snapshots stay: with the older book the worker goes on from them.
    """
    # Here, because it brings the pipeline and with it torch: seconds.
    from stream.code_adoption import adopt

    scratch = snapshots / f".adopting-{uuid.uuid4().hex}"
    try:
        done = adopt(snapshots, book.resolve(), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(asdict(done) | {"ref": str(done.ref), "parent": str(done.parent)}))
        return
    click.echo(f"snapshot {done.ref} from {done.parent}: {done.items:,} items coded anew")
    for name, share in done.changed.items():
        told = "no item" if share is None else f"{share:.1%} of the items have another"
        click.echo(f"{name:10} {told}")
    for name, rows in done.rows.items():
        click.echo(f"{name:20} {rows:,} rows carried over")
    if done.counters:
        click.echo(f"counters by codes stay as they were: {', '.join(done.counters)}")
    click.echo(f"use: --set items.codebook={book.resolve()}")


def _tell(
    out: Path, book: Codebook, before: Codebook | None, replaced: list[int] | None,
    catalogue: Catalogue, *, as_json: bool,
) -> None:  # fmt: skip
    codes = book.encode_many(catalogue.vectors_ND, catalogue.present_N)
    found: dict[str, Any] = measures(book, codes, catalogue.vectors_ND)
    if before is not None:
        old = before.encode_many(catalogue.vectors_ND, catalogue.present_N)
        found |= {"churn": churn(old, codes), "replaced": replaced}
    if as_json:
        click.echo(json.dumps({"out": str(out), "book": manifest_of(book), "figures": found}))
        return
    sizes = " x ".join(str(len(level)) for level in book.levels)
    click.echo(f"codebook {book.version}: {sizes} codes for {found['items']:,} items")
    for name, words in (
        ("energy_left", "energy left after each level"), ("unique", "items alone with their path"),
        ("perplexity", "codes in even use"), ("unused", "codes of no item"),
        ("churn", "items whose path changed"), ("replaced", "codes of another meaning"),
    ):  # fmt: skip
        if found.get(name):
            click.echo(f"{words:32}" + "  ".join(f"{value:.4g}" for value in found[name]))
    click.echo(f"use: --set items.codebook={out}")
