"""Arrays with a header in one safetensors file, written whole or not at all. Interprets neither."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from infra.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file in words: what it is, who makes it, and the error where it cannot be used."""

    what: str
    maker: str
    error: type[InputError]


class ArrayFile(NamedTuple):
    """The arrays by name, all of them finite, and the texts of the header by key."""

    arrays: dict[str, NDArray[Any]]
    header: dict[str, str]


def write_array_file(
    path: Path, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, str]
) -> None:
    """Write the file in one step, and the directories above it. Raises OSError."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(contiguous, metadata=dict(header))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def array_file(path: Path, kind: FileKind) -> Iterator[ArrayFile]:
    """The file's content, to be interpreted inside of the `with` block.

    Raises the kind's error where the file cannot be read, an array is not finite, or the block
    raises ValueError, KeyError or TypeError: then its content is not what was expected.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"array '{name}' is not finite")
        yield ArrayFile(arrays, header)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise kind.error(
            f"{kind.what} {path}: cannot be used ({why}); {kind.maker} makes one"
        ) from error


def check_format(stated: object, ours: object) -> None:
    """Raises ValueError unless a file's format is the one that is known."""
    if stated != ours:
        raise ValueError(f"expected format {ours}, got {stated}: a newer millrace wrote it")
