"""A table on disk that grows by parts: durable files in a folder, counted by snapshots.

Knows nothing of columns. A run that continues from a snapshot keeps the parts which that counts and
drops all later ones.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import InputError


class TableParts:
    """Parquet files below `folder`/`name`, in the order in which they were written."""

    def __init__(self, folder: Path, name: str) -> None:
        """Makes the folder. Raises InputError where that cannot be."""
        self._folder, self._parts = folder, folder / name
        self._epoch = 0
        self.names: list[str] = []
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"report directory '{folder}': cannot be written ({error})") from error

    def write(self, table: pa.Table) -> None:
        """Add a part; it is durable when this returns."""
        path = self._parts / f"{self._epoch:06d}-{len(self.names):08d}.parquet"
        pq.write_table(table, path.with_suffix(".tmp"))
        with path.with_suffix(".tmp").open("rb") as file:
            os.fsync(file.fileno())
        path.with_suffix(".tmp").rename(path)
        folder = os.open(self._parts, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.names.append(path.name)

    def begin(self, epoch: int, names: Sequence[str]) -> int:
        """Continue behind the parts that a snapshot counts, and drop all others; their rows.

        Parts are named by `epoch`: an earlier owner that wakes up again writes beside the point.
        Raises InputError where a part is missing.
        """
        self._epoch, self.names = epoch, list(names)
        rows = 0
        for name in self.names:
            path = self._parts / name
            if not path.exists():
                raise InputError(
                    f"report directory '{self._folder}': part {name} of {len(names)} is missing; "
                    "resume with the directory that the snapshot was taken with"
                )
            rows += pq.read_metadata(path).num_rows
        for path in self._parts.iterdir():
            if path.name not in self.names:
                path.unlink()
        return rows

    def read(self) -> list[pa.Table]:
        """All parts, in order."""
        return [pq.read_table(self._parts / name) for name in self.names]

    def publish(self, table: pa.Table, file: str) -> Path:
        """Write `table` as `file` beside the parts' folder, atomically; its path."""
        path = self._folder / file
        pq.write_table(table, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
        return path

    def remove(self) -> None:
        """Remove the parts: no run goes on behind them."""
        shutil.rmtree(self._parts)
