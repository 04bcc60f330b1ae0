"""Codebook releases: one safetensors file, its manifest within. Fits nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from embeddings.codes.codebook import Codebook
from infra.errors import InputError

_FORMAT: Final = 1
_KEY: Final = "millrace.codebook"


class CodebookUnusable(InputError):  # reads as the state of the file
    """The file holds no codebook; the message says what was expected."""


def manifest_of(book: Codebook) -> dict[str, Any]:
    """What a release says of itself."""
    return {
        "format": _FORMAT,
        "version": book.version,
        "encoder_version": book.encoder_version,
        "normalisation": book.normalisation,
        "dim": book.dim,
        "sizes": [len(level) for level in book.levels],
        "slots": book.slots,
        "radius": book.radius,
        "anchors": len(book.anchors_PD),
        "anchors_of_vector": book.anchors_of_vector,
        "facts": dict(book.facts),
    }


def write_codebook(path: Path, book: Codebook) -> None:
    """Write a release, whole or not at all. Raises OSError."""
    arrays: dict[str, NDArray[Any]] = {f"level{i}": level for i, level in enumerate(book.levels, 1)}
    arrays |= {"anchors": book.anchors_PD, "born": book.born_K}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(arrays, metadata={_KEY: json.dumps(manifest_of(book))})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_codebook(path: Path) -> Codebook:
    """The codebook in `path`, its version checked against its content; raises CodebookUnusable."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            manifest = json.loads((file.metadata() or {})[_KEY])
            if manifest["format"] != _FORMAT:
                raise CodebookUnusable(
                    f"codebook {path}: expected format {_FORMAT}, got {manifest['format']!r}; "
                    "a newer millrace wrote it"
                )
            book = Codebook(
                encoder_version=manifest["encoder_version"],
                normalisation=manifest["normalisation"],
                levels=tuple(
                    file.get_tensor(f"level{i}") for i in range(1, len(manifest["sizes"]) + 1)
                ),
                anchors_PD=file.get_tensor("anchors"),
                anchors_of_vector=manifest["anchors_of_vector"],
                born_K=file.get_tensor("born"),
                radius=manifest["radius"],
                slots=manifest["slots"],
                facts=manifest["facts"],
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CodebookUnusable(
            f"codebook {path}: cannot be read ({what}); expected what `millrace codes fit` writes"
        ) from error
    if book.version != manifest["version"]:
        raise CodebookUnusable(
            f"codebook {path}: its content is of version {book.version}, its manifest says "
            f"{manifest['version']}: the file was changed or damaged"
        )
    return book
