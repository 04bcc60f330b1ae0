"""Compiles the loops of the pipeline into numba's cache, once, before test processes all would.

python -m tests.support.compile_loops        before the tests
python -m tests.support.compile_loops keep   after them

What is compiled, by the tests too, is put on a shelf of the user's, by the content of its source:
another clone, or this one after `make clean`, compiles what has changed. The shelf keeps a few
versions of a file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numba
from numba.core.caching import UserProvidedCacheLocator

ROOT = Path(__file__).parents[2]
PACKAGES = ("stream", "learners", "embeddings")
VERSIONS_MAX = 3


def shelf() -> Path:
    """Where compiled loops stay for other clones."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "millrace" / "loops"


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Every file with loops; all that a loop calls is in its file."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if "numba" in path.read_text():
                yield path


def places(source: Path, root: Path = ROOT) -> tuple[Path, Path]:
    """The folder of numba's cache for this file, and that of the shelf for this content of it."""
    text = numba.__version__.encode() + source.read_bytes()
    name = ".".join(source.relative_to(root).with_suffix("").parts)
    own = Path(numba.config.CACHE_DIR) / UserProvidedCacheLocator.get_suitable_cache_subpath(
        str(source)
    )
    return own, shelf() / name / hashlib.sha256(text).hexdigest()[:16]


def take(root: Path = ROOT) -> None:
    """From the shelf into numba's cache: files that have nothing there. Numba checks the rest."""
    for source in sources(root):
        own, kept = places(source, root)
        if kept.is_dir() and not any(own.glob(f"{source.stem}.*")):
            own.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # somebody else tidies the shelf
                # Indexes last: whatever they name is then there.
                for path in sorted(kept.iterdir(), reverse=True, key=lambda p: p.suffix == ".nbc"):
                    shutil.copy2(path, own)
                os.utime(kept)


def keep(root: Path = ROOT) -> None:
    """From numba's cache onto the shelf: whole sets, each once, and the newest versions of each."""
    for source in sources(root):
        own, kept = places(source, root)
        compiled = list(own.glob(f"{source.stem}.*.nb?"))
        if kept.is_dir() or not compiled:
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as folder:
            whole = Path(folder) / "set"
            whole.mkdir()
            for path in compiled:
                shutil.copy2(path, whole)
            with suppress(OSError):  # somebody else was first
                whole.rename(kept)
        versions = [path for path in kept.parent.iterdir() if not path.name.startswith(".")]
        for old in sorted(versions, key=lambda p: p.stat().st_mtime)[:-VERSIONS_MAX]:
            shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """The pipeline's loops ready in numba's cache, or what it has kept."""
    if sys.argv[1:] == ["keep"]:
        keep()
        return
    from stream.warm_up import warm_up
    from tests.support.replays import ranked_config

    take()
    warm_up(ranked_config())


if __name__ == "__main__":
    main()
