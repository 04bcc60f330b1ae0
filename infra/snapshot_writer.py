"""Writes snapshots beside the training thread, one at a time. Decides neither when nor what."""

from __future__ import annotations

import concurrent.futures
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from infra.snapshot_format import Kind, SnapshotRef
from infra.snapshot_store import SnapshotStore
from infra.state import Meta, Part


class SnapshotWriter:
    """One thread and at most one snapshot under way.

    What was submitted belongs to the writer: copies, such as `export_full` gives. An error of the
    thread is raised by the next call of any method, once.
    """

    def __init__(self, store: SnapshotStore, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._under_way: Future[SnapshotRef] | None = None

    def busy(self) -> bool:
        """Whether `submit` would refuse."""
        return self._under_way is not None and not self._under_way.done()

    def submit(
        self,
        step: int,
        parts: Sequence[Part],
        meta: Meta,
        *,
        kind: Kind = "full",
        parent: SnapshotRef | None = None,
        linked_dirs: Mapping[str, Path] | None = None,
    ) -> bool:
        """False, and nothing taken, while an earlier one is under way; else True.

        `linked_dirs` become the writer's too: they are removed when the snapshot is written or has
        failed. Raises what an earlier write raised; fetch results by `finished` before.
        """
        if self.busy():
            return False
        assert self._under_way is None or self.finished() is None, "a result was not fetched"
        self._under_way = self._thread.submit(
            self._write, step, parts, meta, kind, parent, linked_dirs or {}
        )
        return True

    def finished(self) -> SnapshotRef | None:
        """The snapshot that has become durable since the last call, if one has."""
        if self._under_way is None or not self._under_way.done():
            return None
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> SnapshotRef | None:
        """The snapshot under way, once it is durable; None if there is none.

        Raises TimeoutError, and what the write raised.
        """
        if self._under_way is None:
            return None
        concurrent.futures.wait([self._under_way], timeout_s)
        if not self._under_way.done():
            raise TimeoutError(f"the snapshot is not written after {timeout_s} s")
        done, self._under_way = self._under_way, None
        return done.result()

    def close(self) -> None:
        """Wait for what is under way and end the thread; raises what the write raised."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def _write(
        self,
        step: int,
        parts: Sequence[Part],
        meta: Meta,
        kind: Kind,
        parent: SnapshotRef | None,
        linked_dirs: Mapping[str, Path],
    ) -> SnapshotRef:
        try:
            return self._store.write(
                self._epoch, step, parts, meta, kind=kind, parent=parent, linked_dirs=linked_dirs
            )
        finally:
            for folder in linked_dirs.values():
                shutil.rmtree(folder, ignore_errors=True)
