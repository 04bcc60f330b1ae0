"""Codebook releases: one safetensors file, its manifest within. Fits nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from embeddings.codes.codebook import Codebook
from infra.array_file import FileKind, array_file, check_format, write_array_file
from infra.errors import InputError

_FORMAT: Final = 1
_KEY: Final = "millrace.codebook"


class CodebookUnusable(InputError):  # reads as the state of the file
    """The file holds no codebook; the message says what was expected."""


_KIND: Final = FileKind(what="codebook", maker="`millrace codes fit`", error=CodebookUnusable)


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
    write_array_file(path, arrays, {_KEY: json.dumps(manifest_of(book))})


def read_codebook(path: Path) -> Codebook:
    """The codebook in `path`, its version checked against its content; raises CodebookUnusable."""
    with array_file(path, _KIND) as (arrays, header):
        manifest = json.loads(header[_KEY])
        check_format(manifest["format"], _FORMAT)
        book = Codebook(
            encoder_version=manifest["encoder_version"],
            normalisation=manifest["normalisation"],
            levels=tuple(arrays[f"level{i}"] for i in range(1, len(manifest["sizes"]) + 1)),
            anchors_PD=arrays["anchors"],
            anchors_of_vector=manifest["anchors_of_vector"],
            born_K=arrays["born"],
            radius=manifest["radius"],
            slots=manifest["slots"],
            facts=manifest["facts"],
        )
        if book.version != manifest["version"]:
            raise ValueError(
                f"its content is of version {book.version}, its manifest says "
                f"{manifest['version']}: the file was changed or damaged"
            )
    return book
