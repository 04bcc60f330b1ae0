"""Reads a RocksDB vector store whole, beside the process that writes it. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import rocksdict

from embeddings.vector_codec import BadVector, ItemVector, decode_stored
from embeddings.vectors import StoreFailed, StoreUnusable

_IDENTITY_KEY = b"millrace.store"
_FORMAT = 1
_ITEM_KEY_BYTES = 8


class StoreReader:
    """The items of a store as of its opening; raises StoreUnusable for what is no vector store."""

    def __init__(self, path: Path) -> None:
        """Opens read-only: the store's one writer goes on."""
        self._path = path
        if not (path / "CURRENT").is_file():
            raise StoreUnusable(f"vector store {path}: there is none, it has no CURRENT")
        try:
            self._db: Any = rocksdict.Rdict(
                str(path),
                rocksdict.Options(raw_mode=True),
                access_type=rocksdict.AccessType.read_only(),
            )
            format_, self.encoder_version = msgpack.unpackb(self._db[_IDENTITY_KEY])
        except Exception as error:
            raise StoreUnusable(f"vector store {path}: cannot be read: {error}") from error
        if format_ != _FORMAT:
            raise StoreUnusable(f"vector store {path}: expected format {_FORMAT}, got {format_!r}")

    def items(self) -> Iterator[ItemVector]:
        """All items, in the order of their keys; raises StoreFailed."""
        try:
            cursor = self._db.iter()
            cursor.seek_to_first()
            while cursor.valid():
                if len(cursor.key()) == _ITEM_KEY_BYTES:
                    item = decode_stored(cursor.value())
                    if isinstance(item, BadVector):
                        raise StoreFailed(f"vector store {self._path}: {item.detail}")
                    yield item
                cursor.next()
        except rocksdict.DbClosedError as error:
            raise StoreFailed(f"vector store {self._path}: {error}") from error

    def close(self) -> None:
        """Ends its use."""
        self._db.close()
