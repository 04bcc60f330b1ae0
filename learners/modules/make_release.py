"""MAKE releases: a trained extractor in a safetensors file with what it was made of. Trains none.

A release is of one encoder's vectors and knows labels until a time: both stand in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from infra.array_file import FileKind, array_file, check_format, write_array_file
from infra.errors import InputError
from learners.modules.make_net import ExtractorConfig, MakeNet

_FORMAT: Final = 1
_KEY: Final = "millrace.make"


class MakeReleaseUnusable(InputError):  # reads as the state of the file
    """The file holds no extractor; the message says what was expected."""


_KIND: Final = FileKind(
    what="make release", maker="`millrace pretrain make`", error=MakeReleaseUnusable
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeRelease:
    """An extractor's weights, and the span whose labels they know: [from_ms, until_ms), UTC.

    `encoder`: version of the vectors. A ranker may use it for impressions after `until_ms` alone.
    """

    arrays: Mapping[str, NDArray[np.float32]]
    extractor: ExtractorConfig
    dim: int
    histories: int
    encoder: str
    from_ms: int
    until_ms: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """A hash of the weights, the encoder and the window."""
        digest = xxhash.xxh3_64(f"{self.encoder} {self.from_ms} {self.until_ms}".encode())
        for name in sorted(self.arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.arrays[name], "<f4").tobytes())
        return f"make-{self.dim}-{digest.hexdigest()}"

    def net(self) -> MakeNet:
        """The extractor. Raises ValueError where the weights do not fit its settings."""
        net = MakeNet(self.dim, self.histories, self.extractor)
        load_net(net, self.arrays)
        return net


def load_net(net: MakeNet, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Take weights by name. Raises ValueError where names or shapes differ."""
    own = dict(net.named_parameters())
    shapes = {name: tuple(a.shape) for name, a in arrays.items()}
    expected = {name: tuple(p.shape) for name, p in own.items()}
    if shapes != expected:
        differs = sorted(set(shapes.items()) ^ set(expected.items()))
        raise ValueError(f"make: another extractor: {differs[:4]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name], np.float32)))


def release_of(
    net: MakeNet, *, encoder: str, from_ms: int, until_ms: int, facts: Mapping[str, Any]
) -> MakeRelease:
    """The net as it is."""
    return MakeRelease(
        arrays={n: p.detach().cpu().numpy().copy() for n, p in net.named_parameters()},
        extractor=net.config, dim=net.dim, histories=net.histories, encoder=encoder,
        from_ms=from_ms, until_ms=until_ms, facts=facts,
    )  # fmt: skip


def write_release(path: Path, release: MakeRelease) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    manifest = {
        "format": _FORMAT, "version": release.version, "extractor": asdict(release.extractor),
        "dim": release.dim, "histories": release.histories, "encoder": release.encoder,
        "from_ms": release.from_ms, "until_ms": release.until_ms, "facts": dict(release.facts),
    }  # fmt: skip
    arrays = {n: np.asarray(a, np.float32) for n, a in release.arrays.items()}
    write_array_file(path, arrays, {_KEY: json.dumps(manifest)})


def read_release(path: Path) -> MakeRelease:
    """The release in `path`, its version checked against its content; raises MakeReleaseUnusable.

    Also where a weight is not finite.
    """
    with array_file(path, _KIND) as (arrays, header):
        manifest = json.loads(header[_KEY])
        check_format(manifest["format"], _FORMAT)
        extractor = dict(manifest["extractor"])
        release = MakeRelease(
            arrays=arrays,
            extractor=ExtractorConfig(**{**extractor, "hidden": tuple(extractor["hidden"])}),
            dim=manifest["dim"], histories=manifest["histories"], encoder=manifest["encoder"],
            from_ms=manifest["from_ms"], until_ms=manifest["until_ms"], facts=manifest["facts"],
        )  # fmt: skip
        if release.version != manifest["version"]:
            raise ValueError(f"its weights are not those of version {manifest['version']}")
        release.net()
    return release
