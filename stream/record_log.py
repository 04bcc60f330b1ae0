"""Record logs: Parquet files of Kafka records, byte for byte. Knows nothing of what records mean.

A log is one file. Its records stand in the order in which the pipeline reads them: within a
partition by offset; if `ordered`, over all partitions in the order of the sequencer's key.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import InputError
from stream.records import RecordBatch, TopicPartition

FORMAT_VERSION: Final = 1
GROUP_ROWS: Final = 65_536
GROUP_BYTES: Final = 64 << 20
_META_KEY: Final = b"millrace.record_log"
_FIELDS: Final = (
    pa.field("topic", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("timestamp_ms", pa.int64(), nullable=False),
    pa.field("key", pa.binary()),
    pa.field("value", pa.binary()),
)


class RecordLogUnusable(InputError):  # reads as the state of the file
    """The file is no record log, or a damaged one; the message says what to do."""


class LogRecord(NamedTuple):
    """One record with its place."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """What a log says of itself: identity, partitions by topic, and whether it is ordered."""

    source_id: str
    partitions: Mapping[str, int]
    ordered: bool


class RecordLogWriter:
    """Writes a log under a temporary name; it appears as `path` when the `with` block ends well.

    Keeps at most one row group in memory (65,536 records or 64 MiB). Raises OSError where the
    folder cannot be written, ValueError when offsets of a partition do not rise.
    """

    def __init__(
        self,
        path: Path,
        partitions: Mapping[str, int],
        *,
        ordered: bool,
        source_id: str | None = None,
    ) -> None:
        """`partitions` is the number of partitions of each topic, also of those without records."""
        self.path = path
        self.source_id = str(uuid.uuid4()) if source_id is None else source_id
        self._partitions = dict(partitions)
        self._next_offset: dict[tuple[str, int], int] = {}
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        header = {
            "format": FORMAT_VERSION,
            "source_id": self.source_id,
            "partitions": self._partitions,
            "ordered": ordered,
        }
        self._schema = pa.schema(_FIELDS, metadata={_META_KEY: msgpack.packb(header)})
        self._columns: tuple[list[Any], ...] = tuple([] for _ in _FIELDS)
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        """Create the folder and the temporary file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        return self

    def write(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
    ) -> None:
        """Add one record."""
        if not 0 <= partition < self._partitions.get(topic, 0):
            raise ValueError(f"record log has no partition {partition} of topic '{topic}'")
        if offset < self._next_offset.get((topic, partition), 0):
            raise ValueError(f"record log: offset {offset} of {topic}/{partition} does not rise")
        self._next_offset[topic, partition] = offset + 1
        record = (topic, partition, offset, timestamp_ms, key, value)
        for column, cell in zip(self._columns, record, strict=True):
            column.append(cell)
        self._bytes += len(value or b"") + len(key or b"")
        if len(self._columns[0]) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Finish, fsync and rename; after an exception only remove the temporary file."""
        assert self._writer is not None
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                _sync(self._temporary)
                self._temporary.rename(self.path)
                _sync(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        assert self._writer is not None
        if not self._columns[0]:
            return
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(self._columns, _FIELDS, strict=True)
        ]
        self._writer.write_table(
            pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=GROUP_ROWS
        )
        for column in self._columns:
            column.clear()
        self._bytes = 0


class RecordLog:
    """Reads a log. Raises RecordLogUnusable when `path` is none, or a damaged one."""

    def __init__(self, path: Path) -> None:
        """Reads the footer only."""
        self.path = path
        self._header = _read_header(path)

    @property
    def source_id(self) -> str:
        """Identity of the log, for positions."""
        return self._header.source_id

    @property
    def partitions(self) -> Mapping[str, int]:
        """Number of partitions by topic, silent ones included."""
        return self._header.partitions

    @property
    def ordered(self) -> bool:
        """True when records stand in the order of the sequencer's key."""
        return self._header.ordered

    @property
    def topic_partitions(self) -> tuple[TopicPartition, ...]:
        """All partitions of all topics."""
        return tuple(
            TopicPartition(topic, p) for topic, n in self.partitions.items() for p in range(n)
        )

    def __len__(self) -> int:
        """Number of records."""
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            return int(file.metadata.num_rows)

    @property
    def mean_record_bytes(self) -> float:
        """Mean size of a record as stored in memory, by the file's footer; 1 or more."""
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            nbytes = sum(group.total_byte_size for group in groups)
            return max(1.0, float(nbytes) / max(1, int(file.metadata.num_rows)))

    def batches_of(self, topic: str) -> Iterator[list[RecordBatch]]:
        """The records of one topic, a row group at a time, grouped by partition."""
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                table = table.filter(pc.equal(table["topic"].cast(pa.string()), topic))
                if len(table):
                    yield _by_partition(table, self.path)

    def batches(self, rows: int) -> Iterator[list[RecordBatch]]:
        """Chunks of `rows` consecutive records, the last one shorter, grouped by partition.

        Groups stand in the order of their first record. `rows` only sets memory and speed.
        """
        if rows < 1:
            raise ValueError(f"a chunk needs at least 1 record, got {rows}")
        rest: pa.Table | None = None
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                table = table if rest is None else pa.concat_tables([rest, table])
                whole = len(table) - len(table) % rows
                for start in range(0, whole, rows):
                    yield _by_partition(table.slice(start, rows), self.path)
                rest = table.slice(whole) if whole < len(table) else None
            if rest is not None:
                yield _by_partition(rest, self.path)

    def last_offsets(self) -> dict[TopicPartition, int]:
        """Last offset of each partition that has records; reads three columns."""
        last: dict[TopicPartition, int] = {}
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["topic", "partition", "offset"])
                found = table.group_by(["topic", "partition"]).aggregate([("offset", "max")])
                for row in found.to_pylist():
                    tp = TopicPartition(row["topic"], row["partition"])
                    last[tp] = max(last.get(tp, -1), row["offset_max"])
        return last

    def find(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        """The record at that offset, or None where the log has none."""
        with _unusable(self.path), pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                places = file.read_row_group(group, columns=["topic", "partition", "offset"])
                hit = pc.and_(
                    pc.equal(places["topic"].cast(pa.string()), topic),
                    pc.and_(
                        pc.equal(places["partition"], partition),
                        pc.equal(places["offset"], offset),
                    ),
                )
                row = pc.index(hit, value=True).as_py()
                if row >= 0:
                    table = file.read_row_group(group).slice(row, 1)
                    return LogRecord(*(table[field.name][0].as_py() for field in _FIELDS))
        return None


class _unusable:  # noqa: N801  # used as a `with` word
    """Turns what pyarrow and the system raise into RecordLogUnusable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if isinstance(error, (pa.ArrowException, OSError)):
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecordLogUnusable(
                f"record log {self._path}: cannot be read ({what}); "
                "is it truncated, or not made by `millrace import` or `millrace record`?"
            ) from error


def _read_header(path: Path) -> LogHeader:
    if path.is_dir():
        raise RecordLogUnusable(
            f"record log {path}: expected one .parquet file, got a folder; name the file in it"
        )
    if not path.exists():
        raise RecordLogUnusable(f"record log {path}: there is no such file")
    with _unusable(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    packed = (schema.metadata or {}).get(_META_KEY)
    names = [field.name for field in _FIELDS]
    if packed is None or schema.names != names:
        raise RecordLogUnusable(
            f"record log {path}: expected columns {', '.join(names)} and a log's identity, "
            f"got {', '.join(schema.names[:8])}; make one with `millrace import`"
        )
    try:
        header: dict[str, Any] = msgpack.unpackb(packed)
        version = header["format"]
        if version != FORMAT_VERSION:
            raise RecordLogUnusable(
                f"record log {path}: expected format {FORMAT_VERSION}, got {version}; "
                "a newer millrace wrote it"
            )
        return LogHeader(
            source_id=str(header["source_id"]),
            partitions={str(t): int(n) for t, n in header["partitions"].items()},
            ordered=bool(header["ordered"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordLogUnusable(f"record log {path}: its identity is unreadable") from error


def _by_partition(table: pa.Table, path: Path) -> list[RecordBatch]:
    # Row groups have dictionaries of their own, which combine_chunks alone would not merge.
    topics = table["topic"].unify_dictionaries().combine_chunks()
    names = topics.dictionary.to_pylist()
    code_n = topics.indices.to_numpy().astype(np.int64)
    place_n = (code_n << 32) | table["partition"].to_numpy()
    order = np.argsort(place_n, kind="stable")
    starts = np.flatnonzero(np.diff(place_n[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    offset_n, timestamp_n = table["offset"].to_numpy(), table["timestamp_ms"].to_numpy()
    keys = table["key"].to_pylist()
    values = table["value"].to_pylist()
    batches: list[tuple[int, RecordBatch]] = []
    for start, end in zip(starts, ends, strict=True):
        rows = order[start:end]
        offsets = offset_n[rows]
        where = TopicPartition(names[code_n[rows[0]]], int(place_n[rows[0]] & 0xFFFFFFFF))
        if np.any(np.diff(offsets) <= 0):
            raise RecordLogUnusable(
                f"record log {path}: offsets of {where.topic}/{where.partition} do not rise "
                f"from {offsets[0]} on; make the log again"
            )
        batch = RecordBatch(
            tp=where,
            offset_n=offsets,
            timestamp_ms_n=timestamp_n[rows],
            keys=[keys[row] for row in rows],
            values=[values[row] for row in rows],
        )
        batches.append((int(rows[0]), batch))
    return [batch for _, batch in sorted(batches, key=lambda first: first[0])]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
