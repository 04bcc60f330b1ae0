"""Progress of a back-fill: a bar on a terminal, a line now and then elsewhere. Embeds nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_LINE_EVERY_S: Final = 5.0

Told = Callable[[int, int, int], None]
"""Is told records done, records in all, and items done."""


@contextmanager
def embed_progress(clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """A function to be told how far it is."""
    began = last = clock()
    if not sys.stderr.isatty():

        def tell(done: int, total: int, items: int) -> None:
            nonlocal last
            if clock() - last >= _LINE_EVERY_S or done == total:
                last = clock()
                click.echo(f"embed: {line(done, total, items, last - began)}", err=True)

        yield tell
        return
    columns = (TextColumn("embed"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=None, text="")
        yield lambda done, total, items: bar.update(
            task, completed=done, total=total, text=line(done, total, items, clock() - began)
        )


def line(done: int, total: int, items: int, seconds: float) -> str:
    """Items, share of the records, items a second, time left."""
    share = done / total if total else 1.0
    rate = items / seconds if seconds > 0 else 0.0
    left_s = seconds * (1 - share) / share if share else 0.0
    left = f", {int(left_s // 60)}:{int(left_s % 60):02} left" if share else ""
    return f"{items:,} items, {share:.1%}, {rate:,.1f} items/s{left}"
