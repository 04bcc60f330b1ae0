"""Compiles the loops of the pipeline into numba's cache, once, before test processes all would.

python -m tests.support.compile_loops        before the tests
python -m tests.support.compile_loops keep   after them

What is compiled, by the tests too, is put on a shelf of the user's, by the content of its source:
another clone, or this one after `make clean`, compiles what has changed, and nothing is imported
where nothing has. The shelf keeps a few versions of a file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
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
    """Every file with loops that are kept; all that a loop calls is in its file."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            text = path.read_text()
            if "njit" in text and "cache=True" in text:
                yield path


def places(source: Path, root: Path = ROOT) -> tuple[Path, Path]:
    """The folder of numba's cache for this file, and that of the shelf for this content of it."""
    text = numba.__version__.encode() + source.read_bytes()
    name = ".".join(source.relative_to(root).with_suffix("").parts)
    own = Path(numba.config.CACHE_DIR) / UserProvidedCacheLocator.get_suitable_cache_subpath(
        str(source)
    )
    return own, shelf() / name / hashlib.sha256(text).hexdigest()[:16]


def compiled(folder: Path, source: Path) -> list[Path]:
    """What lies in a folder and was made of the source as it is now: data, then the indexes.

    An index holds the digest of the source that it is for; numba takes no other.
    """
    digest = hashlib.sha256(source.read_bytes()).digest()
    indexes = [p for p in sorted(folder.glob(f"{source.stem}.*.nbi")) if digest in p.read_bytes()]
    return [p for one in indexes for p in sorted(folder.glob(f"{one.stem}.*.nbc"))] + indexes


def names(paths: Iterable[Path]) -> set[str]:
    """Names of files."""
    return {path.name for path in paths}


def take(root: Path = ROOT) -> bool:
    """From the shelf into numba's cache, what is not there; whether all is there then."""
    whole = True
    for source in sources(root):
        own, kept = places(source, root)
        wanted = compiled(kept, source)
        if not names(wanted) <= names(compiled(own, source)):
            own.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # somebody else tidies the shelf
                for path in wanted:
                    shutil.copy2(path, own)
                os.utime(kept)
        whole &= bool(wanted) and names(wanted) <= names(compiled(own, source))
    return whole


def keep(root: Path = ROOT) -> None:
    """From numba's cache onto the shelf: sets that are new or larger, the newest few of each."""
    for source in sources(root):
        own, kept = places(source, root)
        found = compiled(own, source)
        if names(found) <= names(compiled(kept, source)):
            continue
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as folder:
            whole = Path(folder) / "set"
            whole.mkdir()
            for path in found:
                shutil.copy2(path, whole)
            with suppress(OSError):  # somebody else was first
                if kept.is_dir():
                    kept.rename(Path(folder) / "smaller")
                whole.rename(kept)
        versions = [path for path in kept.parent.iterdir() if not path.name.startswith(".")]
        for old in sorted(versions, key=lambda p: p.stat().st_mtime)[:-VERSIONS_MAX]:
            shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """The pipeline's loops ready in numba's cache, or what it has kept."""
    if not numba.config.CACHE_DIR:
        sys.exit("compile_loops: NUMBA_CACHE_DIR is not set; the Makefile does")
    if sys.argv[1:] == ["keep"]:
        keep()
        return
    if take():
        return
    from stream.warm_up import warm_up
    from tests.support.replays import ranked_config

    warm_up(ranked_config())


if __name__ == "__main__":
    main()
