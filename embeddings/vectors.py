"""VectorStore: the contract of the store of record for item vectors, and one in memory.

Values are opaque bytes here; `vector_codec` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgpack
import numpy as np
from numpy.typing import NDArray

from infra.errors import FaultError, InputError

I64 = NDArray[np.int64]
NO_KEYS: I64 = np.empty(0, np.int64)
_CHECKPOINT_FILE = "vectors.msgpack"
_FORMAT = 1


class StoreMismatch(InputError):
    """The store holds vectors of another encoder version, or is of another format."""


class StoreLocked(InputError):
    """The store already has its one writer."""


class StoreUnusable(InputError):
    """The store's place cannot be read or written."""


class StoreFailed(FaultError):
    """A store that was in use could not read, write or copy itself."""


class VectorStore(Protocol):
    """Values by 64-bit item key, of one encoder version, with positions of where they came from."""

    @property
    def encoder_version(self) -> str:
        """The encoder version of all vectors, fixed when the store was made."""
        ...

    def get_many(self, keys: I64) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none; raises StoreFailed."""
        ...

    def put_many(
        self, keys: I64, values: Sequence[bytes], deletes: I64, positions: Mapping[str, bytes]
    ) -> None:
        """Upserts, deletions and positions in one atomic write; raises StoreFailed.

        No key may occur twice.
        """
        ...

    def positions(self) -> dict[str, bytes]:
        """All positions by name, as last written."""
        ...

    def checkpoint(self, path: Path) -> None:
        """Writes a consistent copy to `path`, which must not exist; raises StoreFailed."""
        ...

    def close(self) -> None:
        """Ends its use; a second call does nothing."""
        ...


class MemoryVectorStore:
    """A VectorStore in a dictionary: for tests and small catalogues. Gone with the process."""

    def __init__(self, encoder_version: str, rows_max: int = 10_000_000) -> None:
        self._encoder_version = encoder_version
        self._rows_max = rows_max
        self._values: dict[int, bytes] = {}
        self._positions: dict[str, bytes] = {}

    @classmethod
    def from_checkpoint(cls, path: Path, encoder_version: str) -> MemoryVectorStore:
        """The store that `checkpoint` wrote; raises StoreUnusable or StoreMismatch."""
        try:
            state = msgpack.unpackb((path / _CHECKPOINT_FILE).read_bytes(), strict_map_key=False)
        except (OSError, ValueError) as error:
            raise StoreUnusable(
                f"vector store checkpoint {path}: cannot be read: {error}"
            ) from error
        check_identity(str(path), state["format"], state["encoder"], _FORMAT, encoder_version)
        store = cls(encoder_version)
        store._values = state["values"]
        store._positions = state["positions"]
        return store

    @property
    def encoder_version(self) -> str:
        """The encoder version of all vectors."""
        return self._encoder_version

    def get_many(self, keys: I64) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none."""
        return [self._values.get(key) for key in keys.tolist()]

    def put_many(
        self, keys: I64, values: Sequence[bytes], deletes: I64, positions: Mapping[str, bytes]
    ) -> None:
        """Upserts, deletions and positions; raises StoreFailed, unchanged, over `rows_max`."""
        check_write(keys, values, deletes)
        new = sum(key not in self._values for key in keys.tolist())
        if len(self._values) + new > self._rows_max:
            raise StoreFailed(f"vector store in memory: over its limit of {self._rows_max} rows")
        self._values.update(zip(keys.tolist(), values, strict=True))
        for key in deletes.tolist():
            self._values.pop(key, None)
        self._positions.update(positions)

    def positions(self) -> dict[str, bytes]:
        """All positions by name."""
        return dict(self._positions)

    def checkpoint(self, path: Path) -> None:
        """Writes one file below `path`, which must not exist; raises StoreFailed."""
        state = {
            "format": _FORMAT,
            "encoder": self._encoder_version,
            "values": self._values,
            "positions": self._positions,
        }
        try:
            path.mkdir()
            (path / _CHECKPOINT_FILE).write_bytes(msgpack.packb(state))
        except OSError as error:
            raise StoreFailed(f"vector store checkpoint {path}: {error}") from error

    def close(self) -> None:
        """Does nothing."""


def check_write(keys: I64, values: Sequence[bytes], deletes: I64) -> None:
    """Assert what every `put_many` demands of its caller."""
    assert len(keys) == len(values), (len(keys), len(values))
    touched = np.concatenate([keys, deletes])
    assert len(np.unique(touched)) == len(touched), "a key occurs twice in one write"


def check_identity(
    where: str, format_: object, encoder: object, format_ours: int, ours: str
) -> None:
    """Raises StoreMismatch, naming both sides, unless format and encoder version are ours."""
    if format_ != format_ours:
        raise StoreMismatch(
            f"vector store {where}: expected format {format_ours}, got {format_!r}; "
            "use another directory, or remove it to have it rebuilt"
        )
    if encoder != ours:
        raise StoreMismatch(
            f"vector store {where}: holds vectors of encoder '{encoder}', but the configuration "
            f"makes vectors of encoder '{ours}'; use another directory, or set the encoder back"
        )
