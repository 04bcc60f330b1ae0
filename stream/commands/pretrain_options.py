"""Options that verbs of `millrace pretrain` have in common. Does nothing with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Any], Any]  # as click types its decorators

logs = click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
overrides = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting."
)
threads = click.option("--threads", default=1, show_default=True, help="Threads of one step.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


def until(text: str) -> Option:
    """`--until TIME`, which none of these verbs that learn from events goes without."""
    return click.option("--until", required=True, metavar="TIME", help=text)


def since(text: str) -> Option:
    """`--from TIME`, as `since`."""
    return click.option("--from", "since", metavar="TIME", help=text)


def out(text: str) -> Option:
    """`--out FILE`."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--out", required=True, type=path, help=text)


def config(text: str) -> Option:
    """`--config FILE`, as `config_file`."""
    return click.option("--config", "config_file", help=text)
