"""The file system calls that change a snapshot store, as a seam for fault tests. Reads nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import safetensors.numpy
from numpy.typing import NDArray


class FileSystem(Protocol):
    """Each method is one step that may fail, or be the last one before a crash."""

    def make_dir(self, path: Path) -> None:
        """Create one directory; raises FileExistsError if it is there."""
        ...

    def write(self, path: Path, data: bytes) -> None:
        """A new file with this content, not yet durable."""
        ...

    def save_arrays(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """A new safetensors file, not yet durable."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file; a copy where the file system cannot link."""
        ...

    def sync(self, path: Path) -> None:
        """Make a file's content, or a directory's entries, durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Move atomically; raises OSError if `target` is a directory that is not empty."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all it holds; nothing happens if it is not there."""
        ...


class PosixFileSystem:
    """The real calls."""

    def make_dir(self, path: Path) -> None:
        """Create one directory; raises FileExistsError if it is there."""
        path.mkdir()

    def write(self, path: Path, data: bytes) -> None:
        """A new file with this content, not yet durable."""
        with path.open("xb") as file:
            file.write(data)

    def save_arrays(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """A new safetensors file, not yet durable; the GIL is free while it is written."""
        try:
            safetensors.numpy.save_file(dict(arrays), path)
        except safetensors.SafetensorError as error:
            # The library wraps what the system said ("No space left on device").
            raise OSError(errno.EIO, str(error), str(path)) from error

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file; a copy where the file system cannot link."""
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
                raise
            shutil.copyfile(source, target)

    def sync(self, path: Path) -> None:
        """Make a file's content, or a directory's entries, durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Move atomically; raises OSError if `target` is a directory that is not empty."""
        source.rename(target)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all it holds; nothing happens if it is not there."""
        if path.is_dir():
            shutil.rmtree(path)
