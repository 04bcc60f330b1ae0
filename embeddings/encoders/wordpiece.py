"""BERT's uncased WordPiece tokenizer, from its vocabulary file. Knows no network.

Written out because the library for it brings a hub client and 16 packages; tests hold it against
known ids.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

_WORD_CHARACTERS_MAX: Final = 100
_WORDS_REMEMBERED: Final = 1 << 16
_CJK: Final = re.compile(
    "([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef"
    "\uf900-\ufaff\U0002f800-\U0002fa1f])"
)


class WordPiece:
    """Text to token ids: lower case, no accents, punctuation apart, longest pieces first.

    Devlin et al. 2019 (arXiv:1810.04805), section 3, with the vocabulary's own pieces.
    """

    def __init__(self, vocabulary: bytes) -> None:
        """`vocabulary`: UTF-8, one piece a line. Raises KeyError without [CLS], [SEP], [UNK]."""
        pieces = vocabulary.decode().splitlines()
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._unknown = self._ids["[UNK]"]
        self._first, self._last = self._ids["[CLS]"], self._ids["[SEP]"]
        self._pieces = lru_cache(_WORDS_REMEMBERED)(self._split)

    @property
    def mask(self) -> int:
        """Id of [MASK]; raises KeyError where the vocabulary has none."""
        return self._ids["[MASK]"]

    def encode(self, text: str, tokens_max: int) -> list[int]:
        """[CLS] … [SEP], at most `tokens_max` ids; only these two for a text without words."""
        ids = [self._first]
        for word in _words(text):
            ids += self._pieces(word)
            if len(ids) >= tokens_max - 1:
                break
        return [*ids[: tokens_max - 1], self._last]

    def _split(self, word: str) -> tuple[int, ...]:
        """Ids of a word's pieces, greedily the longest; [UNK] where one is not there."""
        if len(word) > _WORD_CHARACTERS_MAX:
            return (self._unknown,)
        ids: list[int] = []
        start = 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in self._ids:
                    ids.append(self._ids[piece])
                    start = stop
                    break
            else:
                return (self._unknown,)
        return tuple(ids)


def _words(text: str) -> Iterator[str]:
    """Words and single punctuation characters, plain and in lower case."""
    cleaned = "".join(_clean(character) for character in text)
    for word in _CJK.sub(r" \1 ", cleaned).split():
        # One character at a time: the vocabulary's makers knew no final sigma.
        decomposed = unicodedata.normalize("NFD", "".join(c.lower() for c in word))
        run = ""
        for character in decomposed:
            category = unicodedata.category(character)
            if category == "Mn":
                continue
            if category.startswith("P") or (character.isascii() and not character.isalnum()):
                if run:
                    yield run
                    run = ""
                yield character
            else:
                run += character
        if run:
            yield run


def _clean(character: str) -> str:
    """White space as a space; nothing for control characters and what could not be decoded."""
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character == "\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    return character
