"""An encoder around another one: what it reads and refuses is the other's. Encodes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from embeddings.encoders.protocol import Encoder, Loadable, read_of, refusals
from embeddings.item_content import ItemContent


class Wrapped:
    """All of the contract but `encode_many`, handed on to the encoder within."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def version(self) -> str:
        """The encoder's."""
        return self._encoder.version

    @property
    def dim(self) -> int:
        """The encoder's."""
        return self._encoder.dim

    def load(self) -> None:
        """Read the encoder's weights; raises EncoderUnavailable."""
        if isinstance(self._encoder, Loadable):
            self._encoder.load()

    def read_of(self, item: ItemContent) -> object:
        """What the encoder reads."""
        return read_of(self._encoder, item)

    def refusals(self) -> Mapping[str, int]:
        """Contents that the encoder could not use, by reason."""
        return refusals(self._encoder)
