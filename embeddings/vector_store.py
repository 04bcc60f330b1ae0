"""The vector store of record, on RocksDB: one writer a directory. Does not read its values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgpack
import rocksdict

from embeddings.vectors import (
    I64,
    StoreFailed,
    StoreLocked,
    StoreMismatch,
    StoreUnusable,
    check_identity,
    check_write,
)

FORMAT = 1
# Item keys are 8 bytes; everything else is longer, so the two can never meet.
_IDENTITY_KEY = b"millrace.store"
_POSITION_PREFIX = b"millrace.position/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RocksVectorStoreConfig:
    """`block_cache_mb` and `write_buffer_mb` bound the memory that RocksDB takes.

    Indexes and filters come on top, some 5 bytes an item.
    """

    path: Path
    block_cache_mb: int = 64
    write_buffer_mb: int = 32

    def __post_init__(self) -> None:
        if self.block_cache_mb < 1 or self.write_buffer_mb < 1:
            raise ValueError("vector store: block_cache_mb and write_buffer_mb must be at least 1")


class RocksVectorStore:
    """A VectorStore in one RocksDB directory, made where there is none.

    Raises StoreMismatch for a directory of another format or encoder version, StoreLocked where
    it is open already, StoreUnusable where it cannot be read or written. Writes go to the
    operating system before `put_many` returns: they outlive the process, and after a power cut the
    store is at some earlier write, its positions with it.
    """

    def __init__(self, config: RocksVectorStoreConfig, encoder_version: str) -> None:
        self._path = config.path
        self._encoder_version = encoder_version
        self._db: rocksdict.Rdict | None = _open(config)
        try:
            self._claim(self._db)
        except BaseException:
            self.close()
            raise

    @property
    def encoder_version(self) -> str:
        """The encoder version of all vectors."""
        return self._encoder_version

    def get_many(self, keys: I64) -> list[bytes | None]:
        """The values of `keys`, in their order; None where there is none.

        Sorted keys are read fastest: neighbours are in one block.
        """
        if not len(keys):
            return []
        names: list[Any] = list(_names(keys))  # the library's stub wants an invariant union
        try:
            found: Any = self._open_db().get(names)
        except Exception as error:
            raise StoreFailed(f"vector store {self._path}: cannot be read: {error}") from error
        return cast("list[bytes | None]", found)

    def put_many(
        self, keys: I64, values: Sequence[bytes], deletes: I64, positions: Mapping[str, bytes]
    ) -> None:
        """Upserts, deletions and positions in one atomic write; raises StoreFailed."""
        check_write(keys, values, deletes)
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in zip(_names(keys), values, strict=True):
            batch.put(key, value)
        for key in _names(deletes):
            batch.delete(key)
        for name, position in positions.items():
            batch.put(_POSITION_PREFIX + name.encode(), position)
        try:
            self._open_db().write(batch)
        except Exception as error:
            raise StoreFailed(f"vector store {self._path}: cannot be written: {error}") from error

    def positions(self) -> dict[str, bytes]:
        """All positions by name, as last written."""
        found = {}
        cursor = self._open_db().iter()
        cursor.seek(_POSITION_PREFIX)
        while cursor.valid() and cursor.key().startswith(_POSITION_PREFIX):
            found[cursor.key()[len(_POSITION_PREFIX) :].decode()] = cursor.value()
            cursor.next()
        return found

    def checkpoint(self, path: Path) -> None:
        """A consistent copy at `path`, hard links where the file system is the same.

        `path` must not exist; raises StoreFailed.
        """
        try:
            rocksdict.Checkpoint(self._open_db()).create_checkpoint(str(path))
        except Exception as error:
            raise StoreFailed(
                f"vector store {self._path}: no checkpoint at {path}: {error}"
            ) from error

    def close(self) -> None:
        """Releases the directory; a second call does nothing."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open_db(self) -> rocksdict.Rdict:
        assert self._db is not None, "the vector store is closed"
        return self._db

    def _claim(self, db: rocksdict.Rdict) -> None:
        """Writes the identity of a new store, or checks that of an old one."""
        stated = db.get(_IDENTITY_KEY)
        if stated is None:
            if db.latest_sequence_number():
                raise StoreMismatch(
                    f"vector store {self._path}: a RocksDB that is not a vector store; "
                    "use another directory"
                )
            db.put(_IDENTITY_KEY, msgpack.packb([FORMAT, self._encoder_version]))
            return
        try:
            format_, encoder = msgpack.unpackb(stated)
        except (ValueError, TypeError) as error:
            raise StoreMismatch(f"vector store {self._path}: unreadable identity") from error
        check_identity(str(self._path), format_, encoder, FORMAT, self._encoder_version)


def restore_checkpoint(checkpoint: Path, path: Path) -> None:
    """Makes the store directory `path` from a checkpoint, which stays as it is.

    Table files never change, so they are linked; all others are copied. What was at `path` is
    replaced. Raises StoreUnusable, and then there is nothing at `path`.
    """
    if not (checkpoint / "CURRENT").is_file():
        raise StoreUnusable(f"vector store checkpoint {checkpoint}: is none, it has no CURRENT")
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for source in sorted(checkpoint.iterdir()):
            if source.suffix in (".sst", ".blob"):
                _link(source, path / source.name)
            elif source.name != "LOCK":
                shutil.copyfile(source, path / source.name)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise StoreUnusable(f"vector store {path}: not restored: {error}") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _names(keys: I64) -> list[bytes]:
    """The 8 bytes, big-endian, of each key."""
    blob = keys.astype(">i8").tobytes()
    return [blob[i : i + 8] for i in range(0, len(blob), 8)]


def _open(config: RocksVectorStoreConfig) -> rocksdict.Rdict:
    try:
        config.path.mkdir(parents=True, exist_ok=True)
        return rocksdict.Rdict(str(config.path), _options(config))
    except OSError as error:
        raise StoreUnusable(f"vector store {config.path}: cannot be made: {error}") from error
    except Exception as error:
        if "lock" in str(error).lower():
            raise StoreLocked(
                f"vector store {config.path}: open in another place ({error}); "
                "stop the process that has it, or use another directory"
            ) from error
        raise StoreUnusable(f"vector store {config.path}: cannot be opened: {error}") from error


def _options(config: RocksVectorStoreConfig) -> rocksdict.Options:
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)
    table.set_block_cache(rocksdict.Cache(config.block_cache_mb << 20))
    # Outside of the cache they take some 5 bytes an item, and no block of items evicts them.
    table.set_cache_index_and_filter_blocks(v=False)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(create_if_missing=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(config.write_buffer_mb << 20)
    options.set_max_background_jobs(2)
    # Vectors hardly shrink (lz4: 8 %), and each look-up would unpack a block.
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    return options
