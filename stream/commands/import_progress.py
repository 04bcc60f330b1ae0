"""What the importers' commands show: records so far, and one line at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.errors import InputError
from stream.importers.import_config import ImportCounts, Progress, unheard


def summary(out: Path, counts: ImportCounts, seconds: float) -> str:
    """One line for a person."""
    return (
        f"{out}: {sum(counts.records.values()):,} records in {seconds:.1f} s "
        f"({counts.impressions:,} impressions, {counts.clicks:,} clicks, "
        f"{counts.organic:,} organic events, {counts.items:,} items)"
    )


def with_progress(out: Path, work: Callable[[Progress], Any]) -> Any:
    """What `work` returns; it is told whom to report to. Raises InputError if unwritable."""
    try:
        if not sys.stderr.isatty():
            return work(unheard)
        with Console(stderr=True).status("reading the tables …") as status:
            return work(lambda n: status.update(f"{n:,} records written …"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error})") from error
