"""A trained projection as the last stage of an encoder. Trains nothing.

The file is safetensors: `weight`, `bias`, with hidden units also `inner`, `inner_bias`, `outer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.encoders.protocol import Encoder
from embeddings.encoders.wrapped import Wrapped
from embeddings.item_content import ItemContent
from infra.array_file import FileKind, array_file, check_format, write_array_file
from infra.errors import InputError

F32 = NDArray[np.float32]
_FORMAT: Final = "1"
_LINEAR: Final = {"weight", "bias"}
_HIDDEN: Final = {"inner", "inner_bias", "outer"}


class ProjectionUnusable(InputError):  # reads as the state of the file
    """The file holds no projection, or one of another encoder."""


_KIND: Final = FileKind(
    what="projection", maker="`millrace pretrain scl`", error=ProjectionUnusable
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """normalize(W x + b [+ V relu(U x + c)]): arrays by name, and what it was trained on.

    `encoder`: version of the encoder whose vectors it takes. `facts`: settings and figures.
    """

    arrays: Mapping[str, F32]
    encoder: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and shapes; raises ValueError."""
        names = set(self.arrays)
        if names not in (_LINEAR, _LINEAR | _HIDDEN):
            raise ValueError(f"projection: expected arrays {sorted(_LINEAR)}, got {sorted(names)}")
        out, given = self.arrays["weight"].shape
        expected: dict[str, tuple[int, ...]] = {"bias": (out,)}
        if names > _LINEAR:
            hidden = len(self.arrays["inner"])
            expected |= {"inner": (hidden, given), "inner_bias": (hidden,), "outer": (out, hidden)}
        for name, shape in expected.items():
            if self.arrays[name].shape != shape:
                got = self.arrays[name].shape
                raise ValueError(f"projection: {name}: expected shape {shape}, got {got}")

    @property
    def given_dim(self) -> int:
        """Length of the vectors that it takes."""
        return int(self.arrays["weight"].shape[1])

    @property
    def dim(self) -> int:
        """Length of the vectors that it gives."""
        return int(self.arrays["weight"].shape[0])

    @property
    def version(self) -> str:
        """The dimension and a hash of the encoder's version and all weights."""
        digest = xxhash.xxh3_64(self.encoder.encode())
        for name in sorted(self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name], "<f4").tobytes())
        return f"projected-{self.dim}-{digest.hexdigest()}"

    def apply(self, vector_D: F32) -> F32 | None:
        """The unit vector float32 [dim] of one vector, None where it comes out as zero.

        Sums run along rows, not through BLAS, whose bits depend on how many vectors it is given.
        """
        arrays, x_D = self.arrays, vector_D.astype(np.float64)
        out_O = (arrays["weight"] * x_D).sum(axis=1) + arrays["bias"]
        if "inner" in arrays:
            hidden_H = (arrays["inner"] * x_D).sum(axis=1) + arrays["inner_bias"]
            out_O = out_O + (arrays["outer"] * np.maximum(hidden_H, 0)).sum(axis=1)
        norm = float(np.sqrt((out_O**2).sum()))
        if norm < 1e-12:
            return None
        unit_O: F32 = (out_O / norm).astype(np.float32)
        return unit_O


class ProjectedEncoder(Wrapped):
    """An encoder whose vectors pass through a projection; an item without one still has none."""

    def __init__(self, encoder: Encoder, projection: Projection) -> None:
        """Raises ProjectionUnusable where the projection was trained on another encoder."""
        if (encoder.version, encoder.dim) != (projection.encoder, projection.given_dim):
            raise ProjectionUnusable(
                f"projection: it was trained on encoder '{projection.encoder}' of dimension "
                f"{projection.given_dim}, but the configured one is '{encoder.version}' of "
                f"dimension {encoder.dim}; configure that encoder, or train the projection anew"
            )
        super().__init__(encoder)
        self._projection = projection

    @property
    def version(self) -> str:
        """The projection's, which contains the encoder's."""
        return self._projection.version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._projection.dim

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, NDArray[np.bool_]]:
        """`vectors_BD` float32 of unit length and `present_B`."""
        raw_BD, present_B = self._encoder.encode_many(items)
        vectors_BD = np.zeros((len(items), self.dim), np.float32)
        present_B = present_B.copy()
        for row in np.flatnonzero(present_B).tolist():
            vector = self._projection.apply(raw_BD[row])
            present_B[row] = vector is not None
            if vector is not None:
                vectors_BD[row] = vector
        return vectors_BD, present_B


def write_projection(path: Path, projection: Projection) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    meta = {"format": _FORMAT, "encoder": projection.encoder, "facts": json.dumps(projection.facts)}
    arrays = {name: np.asarray(array, np.float32) for name, array in projection.arrays.items()}
    write_array_file(path, arrays, meta)


def read_projection(path: Path) -> Projection:
    """The projection in `path`; raises ProjectionUnusable."""
    with array_file(path, _KIND) as (arrays, header):
        check_format(header.get("format"), _FORMAT)
        facts = json.loads(header["facts"])
        return Projection(arrays=arrays, encoder=header["encoder"], facts=facts)
