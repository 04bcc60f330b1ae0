"""Which items have a vector of which encoder version, as the item-vectors topic tells. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from embeddings.vector_codec import BadVector, decode_stored
from stream.keys import key_of

VERSIONS_MAX = 64
"""Versions told apart; rows of further ones are not counted."""


class VersionRows:
    """The last row of each record key, by encoder version; some 150 bytes a row."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, int]] = {}
        self.unreadable = 0

    @property
    def versions(self) -> list[str]:
        """Versions that have rows, in alphabetical order."""
        return sorted(version for version, rows in self._rows.items() if rows)

    def take(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Take keys and values of one partition, in their order."""
        for key, value in records:
            if key is None:
                self.unreadable += 1
                continue
            place = hash_of(key)
            for rows in self._rows.values():
                rows.pop(place, None)
            if value is None:
                continue
            item = decode_stored(value)
            if isinstance(item, BadVector):
                self.unreadable += 1
            elif item.encoder in self._rows or len(self._rows) < VERSIONS_MAX:
                rows = self._rows.setdefault(item.encoder, {})
                # The lowest bit says that the row deletes its item.
                rows[place] = key_of(item.item_id) << 1 | item.deleted

    def keys(self, version: str) -> set[int]:
        """Hashes of the record keys whose last row is of that version, deletions among them."""
        return set(self._rows.get(version, ()))

    def items(self, version: str) -> set[int]:
        """Keys of the items that have a row of that version and are not deleted."""
        return {row >> 1 for row in self._rows.get(version, {}).values() if not row & 1}

    def coverage(self, present: str, new: str) -> tuple[int, int]:
        """How many of the items of `present` have a row of `new`, and how many there are."""
        items = self.items(present)
        return len(items & self.items(new)), len(items)


def hash_of(record_key: bytes) -> int:
    """64 bits of a record key."""
    return xxhash.xxh3_64_intdigest(record_key)
