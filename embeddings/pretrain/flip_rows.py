"""Items as FLIP reads them: a row of value ids, and a text in which each value's tokens are known.

Fields are the item itself, whose text is its title and text, and chosen attributes. Nothing of what
happened to an item is in a row. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.encoders.text import text_of
from embeddings.encoders.wordpiece import WordPiece
from embeddings.item_content import ItemContent

ATTRIBUTE_TOKENS_MAX = 12
"""Of one attribute's value: the rest of the room is the title's and the text's."""
TEMPLATE = -1
"""Span of a token that is no part of a value."""
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipRows:
    """N items of F fields: `values_NF` ids from 0 in each field, `sizes_F` how many there are.

    `tokens_NT` padded with 0, `spans_NT` the field whose value a token belongs to, or TEMPLATE;
    `lengths_N` tokens without padding. `names` of the fields, the item's first.
    """

    names: tuple[str, ...]
    values_NF: I64
    sizes_F: tuple[int, ...]
    tokens_NT: I64
    spans_NT: I64
    lengths_N: I64

    def __len__(self) -> int:
        """N."""
        return len(self.values_NF)


def flip_rows(
    items: Sequence[ItemContent], attributes: Sequence[str], pieces: WordPiece, tokens_max: int
) -> FlipRows:
    """Rows of items; an item without text, or without an attribute, has no token of that value.

    The text is one clause a field, `name : value .`, the item's last. Values are cut so that the
    whole has at most `tokens_max` tokens: no field is lost to the end of the room.
    """
    names = ("item", *attributes)
    values = [[_value(item, name) for name in names] for item in items]
    index = [{v: i for i, v in enumerate(sorted({row[f] for row in values}))}
             for f in range(len(names))]  # fmt: skip
    written = [_written(item, names, row, pieces, tokens_max)
               for item, row in zip(items, values, strict=True)]  # fmt: skip
    longest = max(len(tokens) for tokens, _ in written)
    tokens_NT = np.zeros((len(items), longest), np.int64)
    spans_NT = np.full((len(items), longest), TEMPLATE, np.int64)
    for n, (tokens, spans) in enumerate(written):
        tokens_NT[n, : len(tokens)], spans_NT[n, : len(spans)] = tokens, spans
    return FlipRows(
        names=names,
        values_NF=np.array([[index[f][v] for f, v in enumerate(row)] for row in values], np.int64),
        sizes_F=tuple(map(len, index)),
        tokens_NT=tokens_NT,
        spans_NT=spans_NT,
        lengths_N=np.array([len(tokens) for tokens, _ in written], np.int64),
    )


def _value(item: ItemContent, name: str) -> str:
    if name == "item":
        return str(item.item_id)
    value = item.attributes.get(name)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _written(
    item: ItemContent, names: Sequence[str], row: Sequence[str], pieces: WordPiece, room: int
) -> tuple[list[int], list[int]]:
    """Tokens and spans; the order is attributes, then the item's own text."""
    first, last = pieces.encode("", 2)
    tokens, spans = [first], [TEMPLATE]

    def clause(field: int, value: str, most: int) -> None:
        name = pieces.encode(f"{names[field].replace('_', ' ')}:", 12)[1:-1]
        inside = pieces.encode(value, max(most - len(name) - 1, 0) + 2)[1:-1]
        tokens.extend([*name, *inside, *stop])
        spans.extend([TEMPLATE] * len(name) + [field] * len(inside) + [TEMPLATE] * len(stop))

    stop = pieces.encode(".", 3)[1:-1]
    for f in range(1, len(names)):
        clause(f, row[f], ATTRIBUTE_TOKENS_MAX)
    clause(0, text_of(item), room - len(tokens) - 1)
    return [*tokens, last], [*spans, TEMPLATE]


def masked_text(
    tokens_BT: Tensor, spans_BT: Tensor, hidden_BF: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    """Tokens with every token of a hidden field's value as `mask`, and which they are, bool.

    Whole values: with single tokens hidden the rest of a value would give them away.
    """
    inside = spans_BT.clamp(min=0)
    hidden_BT = hidden_BF.gather(1, inside) & (spans_BT != TEMPLATE)
    return torch.where(hidden_BT, mask, tokens_BT), hidden_BT
