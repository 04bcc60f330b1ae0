"""Snapshots in a directory, durable and fenced by epochs. Knows no domain type, starts no thread.

    DIR/epochs/<epoch>/claim.msgpack                     the snapshot this epoch started from
    DIR/epochs/<epoch>/<step>/manifest.msgpack           sizes, checksums, parent, meta
    DIR/epochs/<epoch>/<step>/<part>.safetensors|.msgpack
    DIR/epochs/<epoch>/<step>/<linked directory>/…       hard links, such as a store's checkpoint

Crash protocol: parts are written and made durable in a hidden directory, then the manifest, then
one rename shows them. A crash at any instant leaves the old or the new snapshot. A writer that
lost its place writes only below its own epoch, where nobody looks any more: no check-then-act.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.clock import Clock, SystemClock
from infra.errors import FaultError, InputError
from infra.file_system import FileSystem, PosixFileSystem
from infra.snapshot_format import (
    MANIFEST,
    Damage,
    FileEntry,
    Kind,
    Manifest,
    PartEntry,
    SnapshotCorrupt,
    SnapshotRef,
    check_linked_name,
    encode_manifest,
    encode_part_meta,
    pack,
    part_file,
    plain_arrays,
    sha256_of,
)
from infra.snapshot_reader import SnapshotReader
from infra.state import Meta, Part

__all__ = ["Damage", "EpochFenced", "Found", "SnapshotRef", "SnapshotStore", "StoreUnwritable"]

CLAIM = "claim.msgpack"
_DIGESTS_MAX = 100_000


class StoreUnwritable(InputError):
    """The store's directory cannot be written: which, and what the system said."""


class EpochFenced(FaultError):
    """A later epoch exists: another process has taken over, this one must stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest valid snapshot, None in a store that never had one, and what was damaged."""

    ref: SnapshotRef | None
    damaged: tuple[Damage, ...] = ()


class SnapshotStore(SnapshotReader):
    """Writes and reads the snapshots below one directory."""

    def __init__(
        self, folder: Path, *, files: FileSystem | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(folder)
        self._files = files or PosixFileSystem()
        self._clock = clock or SystemClock()
        # Digests of linked files by (inode, mtime, size): a store's files live through many
        # snapshots and never change, so only new ones are hashed.
        self._digests: dict[tuple[int, int, int], str] = {}

    def claim_epoch(self, parent: SnapshotRef | None) -> int:
        """A new epoch, higher than all, that records the snapshot its owner has loaded.

        Atomic: a directory that already holds the record is renamed into place, which fails if
        another process was first; then the next number is tried. Raises StoreUnwritable.
        """
        claim = pack({"parent": list(parent) if parent else None})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.epochs.is_dir():
                with contextlib.suppress(FileExistsError):  # another process was first
                    self._files.make_dir(self.epochs)
                self._files.sync(self.folder)
            hidden = self.epochs / f".claim-{uuid.uuid4().hex}"
            self._files.make_dir(hidden)
            self._files.write(hidden / CLAIM, claim)
            self._files.sync(hidden / CLAIM)
            self._files.sync(hidden)
            while True:
                epoch = max(self.epoch_numbers(), default=0) + 1
                try:
                    self._files.rename(hidden, self.epochs / str(epoch))
                except OSError:
                    if not (self.epochs / str(epoch)).is_dir():
                        raise
                else:
                    break
            self._files.sync(self.epochs)
        except OSError as error:
            raise self._unwritable(error) from error
        return epoch

    def fenced(self, epoch: int) -> bool:
        """Whether a later epoch exists, so that the owner of this one must stop."""
        return max(self.epoch_numbers(), default=0) > epoch

    def write(
        self,
        epoch: int,
        step: int,
        parts: Sequence[Part],
        meta: Meta,
        *,
        kind: Kind = "full",
        parent: SnapshotRef | None = None,
        linked_dirs: Mapping[str, Path] | None = None,
    ) -> SnapshotRef:
        """The place of the new snapshot, durable on return.

        `linked_dirs` are taken in by hard links and must not change any more. Raises EpochFenced,
        StoreUnwritable (nothing half-written stays visible), ValueError and TypeError for parts
        that cannot be written.
        """
        assert len({part.name for part in parts}) == len(parts), "part names must differ"
        assert (kind == "delta") == (parent is not None), "a delta, and only a delta, has a parent"
        if self.fenced(epoch):
            raise EpochFenced(f"epoch {epoch} of '{self.folder}' is over: a later one exists")
        home = self.epochs / str(epoch)
        ref = self._next_ref(epoch, step)
        hidden = home / f".writing-{ref.folder}"
        try:
            self._files.remove_tree(hidden)
            self._files.make_dir(hidden)
            manifest = Manifest(
                ref=ref,
                kind=kind,
                parent=parent,
                created_ms=self._clock.now_ms(),
                parts=tuple(self._write_part(hidden, part) for part in parts),
                linked={
                    name: self._link_in(hidden / check_linked_name(name), source)
                    for name, source in (linked_dirs or {}).items()
                },
                meta=meta,
            )
            self._write_file(hidden / MANIFEST, encode_manifest(manifest))
            self._files.sync(hidden)
            self._files.rename(hidden, home / ref.folder)
            self._files.sync(home)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._files.remove_tree(hidden)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        return ref

    def latest_valid(self) -> Found:
        """The newest valid snapshot of the highest epoch, else along the recorded parents.

        Every damaged one on the way is reported. Raises SnapshotCorrupt if there are snapshots
        but none is valid (never an empty state in silence), SnapshotVersionMismatch.
        """
        damaged: list[Damage] = []
        for ref in self._candidates(damaged):
            found = self.verify(ref)
            if not found:
                return Found(ref=ref, damaged=tuple(damaged))
            damaged += found
        if damaged:
            lines = "; ".join(str(one) for one in damaged[:5])
            raise SnapshotCorrupt(
                f"store '{self.folder}': no valid snapshot: {lines}; restore a copy, or start anew "
                "in another directory"
            )
        return Found(ref=None)

    def prune(self, keep: int) -> list[SnapshotRef]:
        """Remove old snapshots, and say which.

        Kept are the newest `keep`, the parents these need, and what a resume of the highest epoch
        would fall back to. A snapshot disappears at once, never by halves.
        """
        assert keep >= 1, keep
        refs = self.refs()
        kept = set(refs[-keep:])
        highest = max(self.epoch_numbers(), default=0)
        for ref in [*kept]:
            kept.update(self.chain(ref))
        if claimed := self.claimed_parent(highest):
            kept.update(self.chain(claimed) if not any(r.epoch == highest for r in kept) else ())
        removed = [ref for ref in refs if ref not in kept]
        try:
            for ref in removed:
                self._drop(self.path(ref), self.epochs / str(ref.epoch))
            for epoch in self.epoch_numbers():
                if epoch < highest and not any(ref.epoch == epoch for ref in kept):
                    self._drop(self.epochs / str(epoch), self.epochs)
            left = [*self.epochs.glob(".trash-*"), *self.epochs.glob("*/.trash-*")]
            left += [p for p in self.epochs.glob("*/.writing-*") if p.parent.name != str(highest)]
            for path in left:
                self._files.remove_tree(path)
        except OSError as error:
            raise self._unwritable(error) from error
        return removed

    def _drop(self, path: Path, home: Path) -> None:
        trash = home / f".trash-{uuid.uuid4().hex}"
        self._files.rename(path, trash)
        self._files.remove_tree(trash)

    def _next_ref(self, epoch: int, step: int) -> SnapshotRef:
        taken = [ref.repeat for ref in self.refs(epoch) if ref.step == step]
        return SnapshotRef(epoch, step, max(taken, default=-1) + 1)

    def _write_part(self, folder: Path, part: Part) -> PartEntry:
        files = [self._write_file(folder / part_file(part.name, "msgpack"), encode_part_meta(part))]
        if part.arrays:
            path = folder / part_file(part.name, "safetensors")
            self._files.save_arrays(path, plain_arrays(part))
            files.append(self._finish(path, folder))
        return PartEntry(
            name=part.name, part_class=part.part_class, delta=part.delta, files=tuple(files)
        )

    def _write_file(self, path: Path, data: bytes) -> FileEntry:
        self._files.write(path, data)
        return self._finish(path, path.parent)

    def _finish(self, path: Path, folder: Path) -> FileEntry:
        self._files.sync(path)
        return FileEntry(
            name=str(path.relative_to(folder)), size=path.stat().st_size, sha256=sha256_of(path)
        )

    def _link_in(self, target: Path, source: Path) -> tuple[FileEntry, ...]:
        self._files.make_dir(target)
        entries = []
        for path in sorted(source.rglob("*")):
            place = target / path.relative_to(source)
            if path.is_dir():
                self._files.make_dir(place)
                continue
            self._files.link(path, place)
            self._files.sync(place)
            status = place.stat()
            key = (status.st_ino, status.st_mtime_ns, status.st_size)
            if (digest := self._digests.get(key)) is None:
                digest = sha256_of(place)
                if len(self._digests) >= _DIGESTS_MAX:
                    self._digests.clear()
                self._digests[key] = digest
            name = str(place.relative_to(target.parent))
            entries.append(FileEntry(name=name, size=status.st_size, sha256=digest))
        for folder in [p for p in target.rglob("*") if p.is_dir()]:
            self._files.sync(folder)
        self._files.sync(target)
        return tuple(entries)

    def _unwritable(self, error: OSError) -> StoreUnwritable:
        place = error.filename or self.folder
        return StoreUnwritable(f"snapshot store '{self.folder}': '{place}': {error.strerror}")
