"""`millrace report`: the page and the text of finished runs again. Replays and scores nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stream.report.pages import PAGE, TEXT, read_content, write_pages


@click.command("report")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--title", default="", help="Headline of the page [as the run had it].")
def command(*, folders: tuple[Path, ...], title: str) -> None:
    """Make report.html and report.md of finished runs again, each from DIR/report.json."""
    contents = [(folder, read_content(folder)) for folder in folders]
    for folder, content in contents:
        place = folder if folder.is_dir() else folder.parent
        write_pages(content, place, title=title)
        click.echo(json.dumps({"page": str(place / PAGE), "text": str(place / TEXT)}))
