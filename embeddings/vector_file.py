"""Item vectors as a Parquet file: columns `item_id` and `vector`. Knows no store and no log."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from infra.errors import InputError

_META_KEY: Final = b"millrace.item_vectors"
_FORMAT: Final = 1


class VectorFileUnusable(InputError):  # reads as the state of the file
    """The file holds no item vectors; the message says what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorFile:
    """Vectors float32 [N, D] of the items `item_ids`; `version` names their space.

    `facts`: what made them, such as settings and the end of the behaviour that they know of.
    """

    item_ids: Sequence[int | str]
    vectors_ND: NDArray[np.float32]
    version: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return int(self.vectors_ND.shape[1])


def content_version(
    kind: str, item_ids: Sequence[int | str], vectors_ND: NDArray[np.float32]
) -> str:
    """`kind`, dimension and a hash of the vectors: equal for equal files only."""
    digest = xxhash.xxh3_64()
    digest.update(msgpack.packb(list(item_ids)))
    digest.update(np.ascontiguousarray(vectors_ND, "<f4").tobytes())
    return f"{kind}-{vectors_ND.shape[1]}-{digest.hexdigest()}"


def write_vector_file(path: Path, file: VectorFile) -> None:
    """Write `file`, whole or not at all. Raises OSError, and ValueError for ids of both types."""
    kinds = {type(item_id) for item_id in file.item_ids}
    if len(kinds) > 1:
        raise ValueError("item ids are both integers and strings: a file holds one of the two")
    flat = pa.array(np.ascontiguousarray(file.vectors_ND, np.float32).ravel())
    ids = pa.array(file.item_ids, pa.string() if kinds == {str} else pa.int64())
    meta = {"format": _FORMAT, "version": file.version, "facts": dict(file.facts)}
    table = pa.table(
        {"item_id": ids, "vector": pa.FixedSizeListArray.from_arrays(flat, file.dim)}
    ).replace_schema_metadata({_META_KEY: msgpack.packb(meta)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_vector_file(path: Path) -> VectorFile:
    """The vectors in `path`, without rows that have none; raises VectorFileUnusable.

    A file that something else wrote needs the two columns only; its version is its content's hash.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VectorFileUnusable(f"item vectors {path}: cannot be read ({what})") from error
    missing = {"item_id", "vector"} - set(table.schema.names)
    if missing:
        raise VectorFileUnusable(
            f"item vectors {path}: expected columns item_id and vector, got "
            f"{', '.join(table.schema.names[:8])}"
        )
    table = table.select(["item_id", "vector"]).drop_null()
    ids = table["item_id"].to_pylist()
    if not all(type(item_id) in (int, str) for item_id in ids) or len(set(ids)) != len(ids):
        raise VectorFileUnusable(
            f"item vectors {path}: item_id must be integers or strings, each of them once"
        )
    vectors_ND = _vectors(path, table["vector"])
    meta = _meta(path, table.schema.metadata or {})
    version = meta.get("version") or content_version("file", ids, vectors_ND)
    return VectorFile(
        item_ids=ids, vectors_ND=vectors_ND, version=version, facts=meta.get("facts", {})
    )


def _vectors(path: Path, column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Rows of equal length, finite, float32 [N, D]."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)):  # fmt: skip
        raise VectorFileUnusable(f"item vectors {path}: vector must be a list of numbers: {kind}")
    lengths = np.unique(pc.list_value_length(column).to_numpy())
    if len(lengths) != 1 or lengths[0] < 1:
        raise VectorFileUnusable(
            f"item vectors {path}: expected vectors of one length, got lengths "
            f"{lengths[:5].tolist()}"
        )
    try:
        numbers = pc.list_flatten(column).cast(pa.float32()).to_numpy()
    except pa.ArrowException as error:
        raise VectorFileUnusable(f"item vectors {path}: vector: {error}") from error
    if not np.isfinite(numbers).all():
        raise VectorFileUnusable(f"item vectors {path}: a vector holds a NaN, null or infinity")
    vectors_ND: NDArray[np.float32] = numbers.reshape(len(column), int(lengths[0]))
    return vectors_ND


def _meta(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    packed = metadata.get(_META_KEY)
    if packed is None:
        return {}
    try:
        meta: dict[str, Any] = msgpack.unpackb(packed)
        known = meta["format"] == _FORMAT and isinstance(meta["version"], str)
    except (ValueError, TypeError, KeyError) as error:
        raise VectorFileUnusable(f"item vectors {path}: its metadata is unreadable") from error
    if not known:
        raise VectorFileUnusable(
            f"item vectors {path}: expected format {_FORMAT}, got {meta['format']!r}; "
            "a newer millrace wrote it"
        )
    return meta
