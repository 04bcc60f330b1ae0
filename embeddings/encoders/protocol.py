"""Encoder: the contract of everything that turns item content into vectors. Implements none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from embeddings.item_content import ItemContent
from infra.errors import InputError


class EncoderUnavailable(InputError):  # reads as the state of the encoder
    """A package, file or plug-in that an encoder needs is absent, or is not what it must be."""


class Encoder(Protocol):
    """Item content to vectors. One item's vector never depends on the other items of its batch."""

    @property
    def version(self) -> str:
        """Names the vector space: vectors of two versions must never meet in one store."""
        ...

    @property
    def dim(self) -> int:
        """Length of every vector."""
        ...

    def encode_many(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`vectors_BD` float32 and `present_B`, False (a row of zeros) where there is no vector."""
        ...


@runtime_checkable
class Loadable(Protocol):
    """An encoder with weights, which it reads at its first use, or here."""

    def load(self) -> None:
        """Read the weights; raises EncoderUnavailable. A second call does nothing."""
        ...


@runtime_checkable
class Selective(Protocol):
    """An encoder that says what of an item it reads; without this, that is all but its time."""

    def read_of(self, item: ItemContent) -> object:
        """Plain values, as msgpack takes them: equal ones mean an equal vector."""
        ...


@runtime_checkable
class Refusing(Protocol):
    """An encoder that counts content which it could not use."""

    def refusals(self) -> Mapping[str, int]:
        """Such contents so far, by reason."""
        ...


def read_of(encoder: Encoder, item: ItemContent) -> object:
    """What of the item its vector depends on; all but its time where the encoder does not say."""
    if isinstance(encoder, Selective):
        return encoder.read_of(item)
    vectors = {name: v if isinstance(v, bytes) else list(v) for name, v in item.vectors.items()}
    return [item.item_id, item.title, item.text, item.image, dict(item.attributes), vectors]


def refusals(*encoders: Encoder) -> dict[str, int]:
    """Contents that these could not use, by reason, summed."""
    found: dict[str, int] = {}
    for encoder in encoders:
        if isinstance(encoder, Refusing):
            for reason, n in encoder.refusals().items():
                found[reason] = found.get(reason, 0) + n
    return found


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that also gives states of an item's tokens, for methods that attend to them."""

    @property
    def token_dim(self) -> int:
        """Length of one state."""
        ...

    def encode_tokens(
        self, items: Sequence[ItemContent]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """`states_BTD` float32 and `mask_BT`: False (zeros) behind an item's last token.

        T is the longest of the batch, 0 where no item has a token.
        """
        ...
