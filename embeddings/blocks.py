"""Item vectors of several blocks: the fused vector, and modalities' own kept beside it.

Each block is a unit vector by itself, or all zeros where the item lacks what it is made of: a
cosine has a meaning inside one block only. Fuses nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.encoders.protocol import Encoder, Loadable, read_of, refusals
from embeddings.encoders.wrapped import Wrapped
from embeddings.fusion import Means, centred, projected
from embeddings.item_content import ItemContent

F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

KEPT_VERSION_MARK: Final = "+kept-"
"""Stands between the main encoder's version and what is kept, in a version."""


class Once(Wrapped):
    """An encoder that two readers share: what it gave for the same batch is not encoded again."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self._last: tuple[Sequence[ItemContent], tuple[F32, Bools]] | None = None

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """As the encoder; of the very list that came last, what it gave then."""
        if self._last is None or self._last[0] is not items:
            self._last = (items, self._encoder.encode_many(items))
        vectors_BD, present_B = self._last[1]
        return vectors_BD.copy(), present_B.copy()


class BlockEncoder:
    """[main | kept_1 | ... | kept_n]: the main encoder's vector, then those of single encoders.

    A kept vector is its encoder's at unit length, less the frozen mean where there is one, by the
    signs of its name to `dims[name]` numbers where the encoder gives another length. An item has a
    row where any block of it has a vector.
    """

    def __init__(
        self,
        main: Encoder,
        kept: Mapping[str, Encoder],
        dims: Mapping[str, int],
        *,
        seed: int = 0,
        means: Means | None = None,
    ) -> None:
        assert kept
        assert kept.keys() == dims.keys()
        self.main = main
        self._kept, self._dims, self._seed = dict(kept), dict(dims), seed
        self._means = {name: means.means.get(name) if means else None for name in kept}
        stated = [[name, e.version, dims[name]] for name, e in kept.items()]
        of_means = means.version if means else ""
        digest = xxhash.xxh3_64_hexdigest(json.dumps([stated, seed, of_means]).encode())
        self._version = f"{main.version}{KEPT_VERSION_MARK}{digest}"

    @property
    def version(self) -> str:
        """The main encoder's, and a hash of what is kept beside it."""
        return self._version

    @property
    def dim(self) -> int:
        """Length of every vector, all blocks together."""
        return self.main.dim + sum(self._dims.values())

    def load(self) -> None:
        """Read all weights now; raises EncoderUnavailable."""
        for encoder in (self.main, *self._kept.values()):
            if isinstance(encoder, Loadable):
                encoder.load()

    def read_of(self, item: ItemContent) -> object:
        """What the encoders read."""
        return [read_of(encoder, item) for encoder in (self.main, *self._kept.values())]

    def refusals(self) -> Mapping[str, int]:
        """Contents that the main encoder could not use, of which the kept ones are parts."""
        return refusals(self.main)

    def encode_many(self, items: Sequence[ItemContent]) -> tuple[F32, Bools]:
        """`vectors_BD` float32 and `present_B`: False where no block of the item has a vector."""
        vectors_BD, present_B = self.main.encode_many(items)
        blocks = [np.where(present_B[:, None], vectors_BD, np.float32(0))]
        present_B = present_B.copy()
        for name, encoder in self._kept.items():
            part = centred(*encoder.encode_many(items), self._means[name])
            if encoder.dim != self._dims[name]:
                part = projected(part, self._dims[name], f"{self._seed} {name}")
            blocks.append(part.vectors_BD)
            present_B |= part.present_B
        return np.concatenate(blocks, axis=1), present_B
