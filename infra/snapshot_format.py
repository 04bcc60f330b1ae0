"""What the files of a snapshot contain: manifest, part files, names. Changes no file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import msgpack
import numpy as np
from numpy.typing import NDArray

from infra.errors import FaultError, InputError
from infra.state import Meta, Part, PartClass

FORMAT_VERSION = 1
MANIFEST = "manifest.msgpack"
MANIFEST_BYTES_MAX = 64 << 20
META_BYTES_MAX = 1 << 30
Kind = Literal["full", "delta"]

_STEP_NAME = re.compile(r"(\d{12})(?:-(\d{3}))?")
_LINKED_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class SnapshotCorrupt(FaultError):
    """A snapshot is damaged, and no valid one can take its place."""


class SnapshotMissing(InputError):
    """What was asked for is not in the store."""


class SnapshotVersionMismatch(InputError):
    """A snapshot was written in a format that this version does not read."""


class SnapshotRef(NamedTuple):
    """Where a snapshot is. Order is age: epoch, then learn step, then repetition of that step."""

    epoch: int
    step: int
    repeat: int = 0

    @property
    def folder(self) -> str:
        """The directory's name inside its epoch."""
        return f"{self.step:012d}" + (f"-{self.repeat:03d}" if self.repeat else "")

    def __str__(self) -> str:
        """Its path below `epochs/`, which is also how the command line names it."""
        return f"{self.epoch}/{self.folder}"


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with a snapshot."""

    snapshot: str
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        """One line: what, where, expected, got."""
        return f"snapshot {self.snapshot}: {self.what}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of a snapshot, its name relative to the snapshot."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """A part in a manifest: one msgpack file, and one safetensors file if it has arrays."""

    name: str
    part_class: PartClass
    delta: bool
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a snapshot without reading its parts. `linked`: files by directory."""

    ref: SnapshotRef
    kind: Kind
    parent: SnapshotRef | None
    created_ms: int
    parts: tuple[PartEntry, ...]
    linked: Mapping[str, tuple[FileEntry, ...]] = field(default_factory=dict)
    meta: Meta = field(default_factory=dict)

    def files(self) -> list[FileEntry]:
        """Every file but the manifest itself."""
        entries = [entry for part in self.parts for entry in part.files]
        return entries + [entry for group in self.linked.values() for entry in group]

    def size_bytes(self) -> int:
        """Bytes of all parts and linked files."""
        return sum(entry.size for entry in self.files())


def parse_folder(epoch: int, name: str) -> SnapshotRef | None:
    """The snapshot a directory's name stands for, or None for any other directory."""
    match = _STEP_NAME.fullmatch(name)
    return match and SnapshotRef(epoch, int(match[1]), int(match[2] or 0))


def part_file(name: str, suffix: str) -> str:
    """The file name of a part; raises ValueError for a name that cannot be one."""
    text = quote(name, safe="+ ")
    if not 0 < len(text) <= 200 or text.startswith(".") or text == "manifest":
        raise ValueError(f"part '{name}': expected a name of 1 to 200 letters, not 'manifest'")
    return f"{text}.{suffix}"


def check_linked_name(name: str) -> str:
    """The name, if a linked directory may have it; else ValueError."""
    if not _LINKED_NAME.fullmatch(name):
        raise ValueError(f"linked directory '{name}': expected lower-case letters and digits")
    return name


def plain_arrays(part: Part) -> dict[str, NDArray[Any]]:
    """The part's arrays as safetensors takes them: C-ordered, little-endian, plain types.

    Raises TypeError for objects, text and structured types. (safetensors writes the memory of a
    transposed array as if it were in order, without an error: hence the copy.)
    """
    result = {}
    for name, array in part.arrays.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise TypeError(
                f"part '{part.name}', array '{name}': expected bool, integers or floats, "
                f"got {array.dtype}"
            )
        little = array.dtype.newbyteorder("<")
        result[name] = np.asarray(array, dtype=little, order="C")
    return result


def encode_part_meta(part: Part) -> bytes:
    """The msgpack file of a part. Shapes are in it because they are cheap and tell much."""
    shapes = {name: [str(a.dtype), list(a.shape)] for name, a in part.arrays.items()}
    return pack({"name": part.name, "meta": part.meta, "arrays": shapes})


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest file: the packed manifest and its own sha256."""
    body = pack(
        {
            "version": FORMAT_VERSION,
            "ref": list(manifest.ref),
            "kind": manifest.kind,
            "parent": list(manifest.parent) if manifest.parent else None,
            "created_ms": manifest.created_ms,
            "parts": [
                [p.name, p.part_class, p.delta, [_entry(f) for f in p.files]]
                for p in manifest.parts
            ],
            "linked": {name: [_entry(f) for f in files] for name, files in manifest.linked.items()},
            "meta": manifest.meta,
        }
    )
    return pack({"millrace": "snapshot", "sha256": hashlib.sha256(body).digest(), "body": body})


def decode_manifest(data: bytes, ref: SnapshotRef) -> Manifest | Damage:
    """The manifest, or what is wrong with its bytes.

    Raises SnapshotVersionMismatch if it is sound but of another version: skipping it would
    silently go back in time.
    """
    try:
        outer = unpack(data)
        body = outer["body"]
        expected, got = bytes(outer["sha256"]), hashlib.sha256(body).digest()
        if outer["millrace"] != "snapshot" or expected != got:
            return Damage(str(ref), MANIFEST, f"sha256 {expected.hex()[:16]}…", got.hex()[:16])
        fields = unpack(body)
        version = fields["version"]
        manifest = _manifest_of(fields) if version == FORMAT_VERSION else None
    except Exception as error:  # noqa: BLE001 - whatever damaged bytes provoke
        return Damage(str(ref), MANIFEST, "a manifest", f"{type(error).__name__}: {error}"[:200])
    if manifest is None:
        raise SnapshotVersionMismatch(
            f"snapshot {ref}: expected format version {FORMAT_VERSION}, got {version}; "
            "read it with the version of millrace that wrote it"
        )
    if manifest.ref != ref:
        return Damage(str(ref), MANIFEST, f"place {ref}", str(manifest.ref))
    return manifest


def pack(value: Any) -> bytes:
    """Msgpack bytes; raises TypeError for what msgpack has no form for."""
    data = msgpack.packb(value, use_bin_type=True)
    assert isinstance(data, bytes)
    return data


def unpack(data: bytes) -> Any:
    """The value of msgpack bytes. The library bounds every length by the bytes there are."""
    return msgpack.unpackb(data, raw=False, strict_map_key=False)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex; the GIL is free while it is computed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_of(fields: Meta) -> Manifest:
    return Manifest(
        ref=SnapshotRef(*fields["ref"]),
        kind=fields["kind"],
        parent=SnapshotRef(*fields["parent"]) if fields["parent"] else None,
        created_ms=fields["created_ms"],
        parts=tuple(
            PartEntry(name=n, part_class=c, delta=d, files=tuple(_file(f) for f in files))
            for n, c, d, files in fields["parts"]
        ),
        linked={name: tuple(_file(f) for f in fs) for name, fs in fields["linked"].items()},
        meta=fields["meta"],
    )


def _entry(entry: FileEntry) -> list[Any]:
    return [entry.name, entry.size, entry.sha256]


def _file(fields: list[Any]) -> FileEntry:
    name, size, sha256 = fields
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file '{name}' lies outside the snapshot")
    return FileEntry(name=name, size=size, sha256=sha256)
