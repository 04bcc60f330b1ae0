"""Which item vectors a live worker got late, and from when on they counted, on disk.

A worker writes it, a replay of its record follows it: then both learn from the same vectors. Knows
neither the pipeline nor Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import InputError
from stream.item_pending import LateUpdate, Place
from stream.table_parts import TableParts

FILE: Final = "late_vectors.parquet"
_PARTS: Final = "late_vectors.parts"
_ROWS_PER_PART: Final = 50_000
_SCHEMA: Final = pa.schema([pa.field(name, pa.int64(), nullable=False)
                            for name in LateUpdate._fields])  # fmt: skip


class LateVectorLog:
    """Appends late updates below a folder; `finish` makes `late_vectors.parquet` of them."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder cannot be written."""
        self._parts = TableParts(folder, _PARTS)
        self._waiting: list[LateUpdate] = []

    def append(self, late: LateUpdate) -> None:
        """Keep one; full parts are written."""
        self._waiting.append(late)
        if len(self._waiting) >= _ROWS_PER_PART:
            self.flush()

    def flush(self) -> list[str]:
        """Write what waits as a part, durably; the names of the parts so far."""
        if self._waiting:
            self._parts.write(_table(self._waiting))
            self._waiting.clear()
        return list(self._parts.names)

    def begin(self, epoch: int, parts: Sequence[str]) -> None:
        """Continue behind the parts that a snapshot counts, and drop all others.

        Raises InputError where a part is missing.
        """
        self._parts.begin(epoch, parts)

    def finish(self) -> Path:
        """Join the parts to `late_vectors.parquet`, atomically; a later run goes on behind them."""
        self.flush()
        return self._parts.publish(
            pa.concat_tables([_SCHEMA.empty_table(), *self._parts.read()]), FILE
        )


def read_late_vectors(path: Path) -> Mapping[Place, int]:
    """By their places: the event time in ms behind which late updates count.

    `path` is the file or a worker's folder. Raises InputError.
    """
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise InputError(
            f"late vectors {file}: there is no such file; a worker with --predictions writes it "
            "when it stops"
        )
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"late vectors {file}: cannot be read ({error})") from error
    if table.schema.names != _SCHEMA.names:
        raise InputError(
            f"late vectors {file}: expected columns {', '.join(_SCHEMA.names)}, got "
            f"{', '.join(table.schema.names[:8])}; name the file that the worker wrote, or its "
            "folder"
        )
    columns = [table[name].to_pylist() for name in LateUpdate._fields]
    return {Place(*place): after for *place, after in zip(*columns, strict=True)}


def _table(rows: Sequence[LateUpdate]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, pa.int64()) for column in columns], schema=_SCHEMA)
