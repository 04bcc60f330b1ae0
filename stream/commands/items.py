"""`millrace items`: looks at the vectors of items. Changes none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np

from embeddings.codebook_file import read_codebook
from embeddings.codes.codebook import CODES_PREFIX, CODES_VERSION_MARK, attributes_of
from embeddings.neighbours import nearest_by_cosine, plane
from infra.errors import InputError
from stream.catalogue import Catalogue, read_catalogue, titles_of
from stream.commands.items_migrate import migrate
from stream.composition import load_config
from stream.report.item_map import MapPoint, map_section
from stream.report.page import assembled
from stream.report.words import escape

_NAMES = ("title", "name")


@click.group("items")
def command() -> None:
    """Look at the vectors of items."""


command.add_command(migrate)

_SOURCE = (
    click.option("--store", "source", required=True, type=click.Path(path_type=Path),
                 help="Directory of a vector store, which its worker may have open; a file of item "
                 "vectors; or a record log, whose items are encoded."),
    click.option("--codebook", type=click.Path(path_type=Path, dir_okay=False),
                 help="Codes of this release, where the items have none."),
    click.option("--titles", "log", type=click.Path(path_type=Path, dir_okay=False), metavar="LOG",
                 help="A record log whose items have titles."),
    click.option("--config", "config_file", help="TOML file, or name of a preset."),
    click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting."),
)  # fmt: skip


def _with_source(function: Any) -> Any:
    for option in reversed(_SOURCE):
        function = option(function)
    return function


@command.command("show")
@click.argument("item_id")
@_with_source
@click.option("--neighbours", default=10, show_default=True, help="How many of the nearest items.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def show(
    *, item_id: str, source: Path, codebook: Path | None, log: Path | None,
    config_file: str | None, overrides: tuple[str, ...], neighbours: int, as_json: bool,
) -> None:  # fmt: skip
    """Attributes, vector, codes and nearest neighbours of the item ITEM_ID."""
    looked = _Looked(source, codebook, log, config_file, overrides)
    facts = looked.facts(looked.catalogue.place_of(item_id), neighbours)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key in ("item", "title", "encoder", "ts_ms", "norm"):
        click.echo(f"{key:12}{'-' if facts[key] is None else facts[key]}")
    for title in ("attributes", "codes"):
        click.echo(f"{title}:" + ("" if facts[title] else " none"))
        for name, value in facts[title].items():
            click.echo(f"  {name:22} {value}")
    click.echo("neighbours:" + (f" {facts['reason']}" if facts["reason"] else ""))
    for one in facts["neighbours"]:
        shared = "" if one["shared_path"] is None else f"  path shared: {one['shared_path']}"
        click.echo(f"  {one['cosine']:.4f}  {one['item']!s:16} {one['title'] or ''}{shared}")


@command.command("map")
@_with_source
@click.option("--html", "out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              help="The page; it needs no network.")  # fmt: skip
@click.option("--group", help="Attribute to colour by [codes.rq1].")
@click.option("--limit", default=5_000, show_default=True, help="Items drawn; a sample of more.")
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
def draw(
    *, source: Path, codebook: Path | None, log: Path | None, config_file: str | None,
    overrides: tuple[str, ...], out: Path, group: str | None, limit: int, seed: int,
) -> None:  # fmt: skip
    """Draw the items on the plane in which their vectors differ most."""
    looked = _Looked(source, codebook, log, config_file, overrides)
    catalogue = looked.catalogue
    places = np.flatnonzero(catalogue.present_N)
    if not len(places) or limit < 1:
        raise InputError(f"{source}: no item has a vector; nothing to draw")
    if len(places) > limit:
        places = np.sort(np.random.default_rng(seed).choice(places, limit, replace=False))
    by = group or f"{CODES_PREFIX}rq1"
    xy_N2, shares = plane(catalogue.vectors_ND[places])
    points = [
        looked.point(place, by, float(x), float(y))
        for place, (x, y) in zip(places.tolist(), xy_N2, strict=True)
    ]
    if group and all(point.group is None for point in points):
        raise InputError(f"--group '{group}': none of the items drawn has this attribute")
    page = assembled(
        [map_section(points, grouped_by=by, shares=shares)], title=f"Items of {source.name}",
        meta=f"<b>{len(points):,}</b> of <b>{len(catalogue.item_ids):,}</b> items · encoder "
        f"<b>{escape(catalogue.encoder_version)}</b>",
        footer=f"Made by millrace {escape(_version())}.", brand="items",
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.rename(out)
    click.echo(f"{len(points):,} items by {by}: {out}")


class _Looked:
    """A catalogue with the titles and codes of its items."""

    def __init__(
        self, source: Path, codebook: Path | None, log: Path | None, config_file: str | None,
        overrides: tuple[str, ...],
    ) -> None:  # fmt: skip
        config = load_config(config_file, overrides)
        self.catalogue: Catalogue = read_catalogue(source, config)
        self._titles = titles_of(log, config.topics.items) if log else {}
        self._book = read_codebook(codebook) if codebook else None
        version = self.catalogue.encoder_version.partition(CODES_VERSION_MARK)[0]
        if self._book is not None and self._book.encoder_version != version:
            raise InputError(
                f"codebook {codebook}: is for vectors of encoder '{self._book.encoder_version}', "
                f"but {source} has those of '{version}'"
            )

    def title(self, place: int) -> str | None:
        """What a person calls the item, where that is known."""
        attributes = self.catalogue.attributes[place]
        own = next((attributes[name] for name in _NAMES if attributes.get(name)), None)
        title = self._titles.get(self.catalogue.item_ids[place], own)
        return None if title is None else str(title)

    def codes(self, place: int) -> Mapping[str, Any]:
        """The codes by name, without their prefix; none where there are none."""
        found: Mapping[str, Any] = self.catalogue.attributes[place]
        if self._book is not None:
            rows = slice(place, place + 1)
            coded = self._book.encode_many(
                self.catalogue.vectors_ND[rows], self.catalogue.present_N[rows]
            )
            found = attributes_of(coded, 0)
        return {k.removeprefix(CODES_PREFIX): v for k, v in found.items()
                if k.startswith(CODES_PREFIX)}  # fmt: skip

    def own_attributes(self, place: int) -> dict[str, Any]:
        """All attributes but codes."""
        attributes = self.catalogue.attributes[place]
        return {k: v for k, v in attributes.items() if not k.startswith(CODES_PREFIX)}

    def facts(self, place: int, k: int) -> dict[str, Any]:
        """What `show` tells of the item at `place`."""
        catalogue = self.catalogue
        present = bool(catalogue.present_N[place])
        places, cosines = nearest_by_cosine(catalogue.vectors_ND, place, k)
        mine = self.codes(place)
        return {
            "item": catalogue.item_ids[place],
            "title": self.title(place),
            "encoder": catalogue.encoder_version,
            "ts_ms": catalogue.ts_ms[place] if catalogue.ts_ms else None,
            "norm": float(np.linalg.norm(catalogue.vectors_ND[place])) if present else None,
            "attributes": self.own_attributes(place),
            "codes": mine,
            "neighbours": [
                {"item": catalogue.item_ids[n], "title": self.title(n), "cosine": float(cosine),
                 "shared_path": _shared(mine, self.codes(n)) if mine else None}
                for n, cosine in zip(places.tolist(), cosines.tolist(), strict=True)
            ],
            "reason": "" if present else "the item has no vector",
        }  # fmt: skip

    def point(self, place: int, by: str, x: float, y: float) -> MapPoint:
        """The item on the map."""
        codes, own = self.codes(place), self.own_attributes(place)
        group = (codes.get(by.removeprefix(CODES_PREFIX)) if by.startswith(CODES_PREFIX)
                 else own.get(by))  # fmt: skip
        path = "-".join(str(codes[f"rq{i}"]) for i in range(1, 100) if f"rq{i}" in codes)
        lines = [str(self.title(place) or ""), f"item {self.catalogue.item_ids[place]}"]
        lines += [f"codes {path}"] if path else []
        lines += [f"{k}: {v}"[:80] for k, v in list(own.items())[:6] if k not in _NAMES]
        return MapPoint(
            x=x, y=y, group=None if group is None else str(group), lines=[s for s in lines if s]
        )


def _shared(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> int:
    """Levels from the first on in which two items have the same code."""
    shared = 0
    while f"rq{shared + 1}" in mine and mine[f"rq{shared + 1}"] == theirs.get(f"rq{shared + 1}"):
        shared += 1
    return shared


def _version() -> str:
    try:
        return metadata.version("millrace")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"
