"""ItemContent: what is known of one item, as the embedder reads it. Knows no wire and no stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1

Scalar = int | float | str | bool | None
"""One attribute value; integers are within 64 bits, as the wire has them."""

AttributeValue = Scalar | list[Scalar]
Attributes = Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemContent:
    """One item event: its content, or its deletion.

    `vectors` holds vectors that the sender made, by name: numbers, or float32 little-endian bytes.
    `title`, `text` and `image` (a file's bytes or a URI) are None where the item has none.
    """

    item_id: int | str
    ts_ms: int
    title: str | None = None
    text: str | None = None
    image: bytes | str | None = None
    attributes: Mapping[str, object] = field(default_factory=dict)
    vectors: Mapping[str, Sequence[float] | bytes] = field(default_factory=dict)
    deleted: bool = False


def is_scalar(value: object) -> bool:
    """True for a value that one attribute, or one element of a list, may have."""
    kind = type(value)
    if kind is int:
        return _INT_MIN <= value <= _INT_MAX  # type: ignore[operator]  # an int
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]  # a float
    return kind is str or kind is bool or value is None


def usable_attributes(attributes: Mapping[str, object]) -> dict[str, AttributeValue]:
    """The attributes that are scalars or flat lists of scalars, in their order, and no others.

    Left out are maps, bytes, nested lists, NaN and infinities, and integers beyond 64 bits.
    """
    kept: dict[str, AttributeValue] = {}
    for name, value in attributes.items():
        if isinstance(value, list | tuple):
            kept[name] = [element for element in value if is_scalar(element)]
        elif is_scalar(value):
            kept[name] = value  # type: ignore[assignment]  # is_scalar has proved it
    return kept
