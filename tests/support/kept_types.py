"""What mypy has found out about libraries, kept for other clones: two thirds of a minute.

python -m tests.support.kept_types        before mypy
python -m tests.support.kept_types keep   after it

mypy takes an entry of its cache only for a file of the same content, so that an old one is slower
and never wrong. Runs no mypy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = ".mypy_cache"


def shelf() -> Path:
    """Where it stays."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "millrace" / "types"


def put(source: Path, target: Path) -> None:
    """A whole copy in the place of what is at `target`, or nothing if somebody else is at it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".types-") as folder, \
            suppress(OSError):  # fmt: skip
        shutil.copytree(source, Path(folder) / "new")
        if target.exists():
            target.rename(Path(folder) / "old")
        (Path(folder) / "new").rename(target)


def take(root: Path = ROOT) -> None:
    """From the shelf, for a clone that has none."""
    if shelf().is_dir() and not (root / NAME).exists():
        put(shelf(), root / NAME)


def keep(root: Path = ROOT) -> None:
    """Onto the shelf."""
    if (root / NAME).is_dir():
        put(root / NAME, shelf())


if __name__ == "__main__":
    keep() if sys.argv[1:] == ["keep"] else take()
