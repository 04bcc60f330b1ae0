"""Reading a snapshot store: list, verify, load, follow parents. Writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors.numpy

from infra.snapshot_format import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    META_BYTES_MAX,
    Damage,
    FileEntry,
    Manifest,
    PartEntry,
    SnapshotCorrupt,
    SnapshotMissing,
    SnapshotRef,
    decode_manifest,
    parse_folder,
    sha256_of,
    unpack,
)
from infra.state import Meta, Part


class SnapshotReader:
    """The snapshots below one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs = folder / "epochs"

    def epoch_numbers(self) -> list[int]:
        """Claimed epochs, lowest first."""
        if not self.epochs.is_dir():
            return []
        return sorted(int(p.name) for p in self.epochs.iterdir() if p.name.isdecimal())

    def refs(self, epoch: int | None = None) -> list[SnapshotRef]:
        """All snapshots, or those of one epoch, oldest first; valid or not."""
        epochs = self.epoch_numbers() if epoch is None else [epoch]
        found = []
        for number in epochs:
            home = self.epochs / str(number)
            if home.is_dir():
                named = (parse_folder(number, path.name) for path in home.iterdir())
                found += [ref for ref in named if ref is not None]
        return sorted(found)

    def path(self, ref: SnapshotRef) -> Path:
        """The snapshot's directory."""
        return self.epochs / str(ref.epoch) / ref.folder

    def find(self, text: str) -> SnapshotRef:
        """The snapshot that `epoch/step` or `latest` names; raises SnapshotMissing."""
        refs = self.refs()
        if text == "latest" and refs:
            return refs[-1]
        epoch, _, name = text.partition("/")
        ref = parse_folder(int(epoch), name.zfill(12)) if epoch.isdecimal() else None
        if ref not in refs:
            some = ", ".join(str(one) for one in refs[-5:]) or "none"
            raise SnapshotMissing(f"store '{self.folder}': no snapshot '{text}'; newest: {some}")
        assert ref is not None
        return ref

    def manifest(self, ref: SnapshotRef) -> Manifest:
        """What the snapshot contains; raises SnapshotMissing, SnapshotCorrupt."""
        found = self._manifest(ref)
        if isinstance(found, Damage):
            raise SnapshotCorrupt(str(found))
        return found

    def verify(self, ref: SnapshotRef) -> list[Damage]:
        """All that is wrong with a snapshot, or with what it is a delta on; empty if it is sound.

        Reads every byte. Raises SnapshotVersionMismatch.
        """
        manifest = self._manifest(ref)
        if isinstance(manifest, Damage):
            return [manifest]
        damaged = [d for entry in manifest.files() if (d := self._check(ref, entry))]
        if manifest.parent is not None:
            if manifest.parent not in self.refs(manifest.parent.epoch):
                damaged.append(Damage(str(ref), "parent", f"snapshot {manifest.parent}", "none"))
            else:
                damaged += self.verify(manifest.parent)
        return damaged

    def load(self, ref: SnapshotRef, *, verified: bool = False) -> tuple[dict[str, Part], Meta]:
        """Parts by name, and the meta map given to `write`; for a delta only its own parts.

        Every file's checksum is verified first, unless the caller just did so (`latest_valid`).
        Raises SnapshotMissing, SnapshotCorrupt, SnapshotVersionMismatch.
        """
        manifest = self.manifest(ref)
        if not verified:
            for part in manifest.parts:
                for file in part.files:
                    if damage := self._check(ref, file):
                        raise SnapshotCorrupt(str(damage))
        return {entry.name: self._part(ref, entry) for entry in manifest.parts}, manifest.meta

    def chain(self, ref: SnapshotRef) -> list[SnapshotRef]:
        """From the full snapshot to `ref`, in the order in which their parts apply.

        Stops early, without an error, where a manifest cannot be read: `verify` tells.
        """
        refs = [ref]
        while not isinstance(found := self._manifest(refs[0]), Damage) and found.parent:
            assert found.parent < refs[0], "a parent is older than its delta"
            refs.insert(0, found.parent)
        return refs

    def copy_linked(
        self, ref: SnapshotRef, name: str, target: Path, *, link_suffixes: tuple[str, ...] = ()
    ) -> None:
        """A linked directory as a new directory `target`, verified, for a process to write in.

        Files whose suffix says that they never change are hard-linked, all others copied. Raises
        SnapshotMissing if the snapshot has no such directory, SnapshotCorrupt.
        """
        manifest = self.manifest(ref)
        if name not in manifest.linked:
            raise SnapshotMissing(f"snapshot {ref}: no linked directory '{name}'")
        target.mkdir(parents=True)
        for entry in manifest.linked[name]:
            if damage := self._check(ref, entry):
                raise SnapshotCorrupt(str(damage))
            source = self.path(ref) / entry.name
            place = target / Path(entry.name).relative_to(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.suffix in link_suffixes:
                try:
                    place.hardlink_to(source)
                except OSError:
                    shutil.copyfile(source, place)
            else:
                shutil.copyfile(source, place)

    def claimed_parent(self, epoch: int) -> SnapshotRef | None:
        """The snapshot that the owner of an epoch had loaded; raises SnapshotCorrupt."""
        path = self.epochs / str(epoch) / "claim.msgpack"
        try:
            with path.open("rb") as file:
                parent = unpack(file.read(4096))["parent"]
            ref = SnapshotRef(*parent) if parent else None
            if ref is not None and ref.epoch >= epoch:
                raise ValueError(f"expected a snapshot of an earlier epoch, got {ref}")
            return ref
        except FileNotFoundError:
            if epoch in self.epoch_numbers():
                raise SnapshotCorrupt(f"epoch {epoch} of '{self.folder}': no claim") from None
            return None
        except Exception as error:
            raise SnapshotCorrupt(f"epoch {epoch} of '{self.folder}': claim: {error}") from error

    def _candidates(self, damaged: list[Damage]) -> Iterator[SnapshotRef]:
        """Snapshots of the highest epoch, newest first, then along the recorded parents."""
        numbers = self.epoch_numbers()
        epoch, newest = max(numbers, default=0), None
        while epoch:
            for ref in reversed(self.refs(epoch)):
                if newest is None or ref <= newest:
                    yield ref
            try:
                newest = self.claimed_parent(epoch)
                epoch = newest.epoch if newest else 0
            except SnapshotCorrupt as error:
                damaged.append(Damage(f"{epoch}/", "claim", "the snapshot loaded", str(error)))
                epoch = max((n for n in numbers if n < epoch), default=0)
                newest = None

    def _manifest(self, ref: SnapshotRef) -> Manifest | Damage:
        path = self.path(ref) / MANIFEST
        try:
            if (size := path.stat().st_size) > MANIFEST_BYTES_MAX:
                limit = f"at most {MANIFEST_BYTES_MAX} bytes"
                return Damage(str(ref), MANIFEST, limit, f"{size}")
            return decode_manifest(path.read_bytes(), ref)
        except OSError as error:
            if not self.path(ref).is_dir():
                raise SnapshotMissing(f"store '{self.folder}': no snapshot {ref}") from error
            return Damage(str(ref), MANIFEST, "a file", str(error.strerror))

    def _check(self, ref: SnapshotRef, entry: FileEntry) -> Damage | None:
        path = self.path(ref) / entry.name
        try:
            if (size := path.stat().st_size) != entry.size:
                return Damage(str(ref), entry.name, f"{entry.size} bytes", f"{size}")
            if (digest := sha256_of(path)) != entry.sha256:
                return Damage(
                    str(ref), entry.name, f"sha256 {entry.sha256[:16]}…", f"{digest[:16]}…"
                )
        except OSError as error:
            return Damage(str(ref), entry.name, "a file", str(error.strerror))
        return None

    def _part(self, ref: SnapshotRef, entry: PartEntry) -> Part:
        meta_file, *array_files = (self.path(ref) / file.name for file in entry.files)
        if (size := meta_file.stat().st_size) > META_BYTES_MAX:
            limit = f"at most {META_BYTES_MAX} bytes"
            raise SnapshotCorrupt(str(Damage(str(ref), meta_file.name, limit, f"{size}")))
        meta = unpack(meta_file.read_bytes())["meta"]
        arrays = safetensors.numpy.load_file(array_files[0]) if array_files else {}
        return Part(
            name=entry.name,
            part_class=entry.part_class,
            arrays=arrays,
            meta=meta,
            delta=entry.delta,
        )
