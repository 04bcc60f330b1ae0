"""The file of fitted tiers: edges with the version of the vectors that they are for. Fits none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError

_FORMAT = "millrace-tiers/1"
_COMMAND = "`millrace pretrain tiers`"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """JSON."""

    format: str
    encoder: str
    block: str
    edges: list[float]
    cosines: int
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Inner edges, rising, float64 [E], fitted to so many cosines of what came before `until_ms`.

    `encoder`: the version of the vectors; `block`: which of their blocks.
    """

    encoder: str
    edges_E: NDArray[np.float64]
    block: str = ""
    cosines: int = 0
    until_ms: int = 0

    def check(self, encoder: str) -> None:
        """Raises InputError where vectors are of another version than the edges."""
        if encoder != self.encoder:
            raise InputError(
                f"simtier: the tiers were fitted to vectors '{self.encoder}', but these are "
                f"'{encoder}'; fit them again ({_COMMAND}) or use the vectors they are for"
            )


def write_tiers(path: Path, tiers: Tiers) -> None:
    """Write the file."""
    file = _File(
        format=_FORMAT, encoder=tiers.encoder, block=tiers.block, edges=tiers.edges_E.tolist(),
        cosines=tiers.cosines, until_ms=tiers.until_ms,
    )  # fmt: skip
    path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1))


def read_tiers(path: Path) -> Tiers:
    """The tiers of a file; raises InputError where it is none, or its edges do not rise."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"tiers file {path}: {error}; make one with {_COMMAND}") from error
    edges = np.array(file.edges, np.float64)
    if file.format != _FORMAT:
        raise InputError(f"tiers file {path}: expected format {_FORMAT}, got '{file.format}'")
    if not len(edges) or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise InputError(f"tiers file {path}: edges must be one or more finite, rising numbers")
    return Tiers(
        encoder=file.encoder, edges_E=edges, block=file.block, cosines=file.cosines,
        until_ms=file.until_ms,
    )  # fmt: skip
