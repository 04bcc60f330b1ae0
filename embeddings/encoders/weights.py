"""Files of pre-trained weights: where a package put them, and whether they are the pinned ones.

Imports no package that holds weights, downloads nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from embeddings.encoders.protocol import EncoderUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file of an installed package, pinned by its SHA-256. `extra`: millrace's extra for it."""

    package: str
    inside: str
    sha256: str
    extra: str

    def path(self, folder: str = "") -> Path:
        """Where the file is: in `folder`, or in its package; raises EncoderUnavailable."""
        if folder:
            return Path(folder) / Path(self.inside).name
        spec = find_spec(self.package)
        if spec is None or not spec.origin:
            raise EncoderUnavailable(
                f"weights of {self.package}: the package is not installed; install "
                f"'millrace[{self.extra}]', or name a folder that holds {Path(self.inside).name} "
                "by the encoder's option 'folder'"
            )
        return Path(spec.origin).parent / self.inside

    def read(self, folder: str = "") -> bytes:
        """The file's bytes; raises EncoderUnavailable where it is absent or not the pinned one."""
        path = self.path(folder)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise EncoderUnavailable(f"weights {path}: cannot be read: {error.strerror}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise EncoderUnavailable(
                f"weights {path}: expected SHA-256 {self.sha256}, got {found}; install the version "
                f"that 'millrace[{self.extra}]' names"
            )
        return data


def device_of(name: str) -> torch.device:
    """The torch device `cpu` or `cuda`, or for `auto` a GPU where there is one.

    Raises EncoderUnavailable where there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EncoderUnavailable("encoder option device: no GPU is there; use 'cpu' or 'auto'")
    return torch.device(name)
