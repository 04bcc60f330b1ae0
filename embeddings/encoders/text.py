"""The text of an item, as all text encoders read it. Encodes nothing."""

from __future__ import annotations

from typing import Final

from embeddings.item_content import ItemContent

TEXT_CHARACTERS_MAX: Final = 20_000
"""Characters of one item's text that count; encoders may read fewer."""


def text_of(item: ItemContent) -> str:
    """Title and text in one; empty where the item has neither.

    A title that already ends a sentence gets no second full stop.
    """
    title, body = (item.title or "").strip(), (item.text or "").strip()
    if title and body:
        title += " " if title[-1] in ".!?:;" else ". "
    return (title + body)[:TEXT_CHARACTERS_MAX]
