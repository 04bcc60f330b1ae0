"""DecodeSpec: which fields of events become columns. Decodes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from stream.events import EVENTS_PER_ENVELOPE_MAX, VALUE_BYTES_MAX, TopicRole

ITEM_PREFIX: Final = "item."
"""Paths that the pipeline fills from the item table; the codec leaves 0."""
_MAPS: Final = ("context.", "features.")
_OF_IMPRESSION: Final = ("impression.hour", "impression.weekday", "impression.position")
_IDS: Final = ("user", "item")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdSource:
    """One id a row; its keys are salted with `salt`."""

    name: str
    path: str
    salt: np.int64


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiSource:
    """Up to `length` ids a row, the first ones of a list; 0 padded at the right."""

    name: str
    path: str
    length: int
    salt: np.int64


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSource:
    """One float a row; 0 where it is missing."""

    name: str
    path: str


Source = IdSource | MultiSource | DenseSource
SERVED_VERSION: Final = "served.feature_version"
SERVED_FEATURES: Final = "served.features."


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSource:
    """`width` numbers an item shown of `served.features.NAME`, and the key of their version."""

    name: str
    width: int

    @property
    def path(self) -> str:
        """Where they stand."""
        return f"{SERVED_FEATURES}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSpec:
    """What a decoder fills, and its limits.

    Paths: `user`, `item`, `context.X`, `features.X` (of the shown item), `impression.hour`,
    `impression.weekday` (0 is Monday; both at UTC + `timezone_offset_minutes`),
    `impression.position`, and `item.…`, which stays 0. Raises ValueError on any other path. `texts`
    names the ids whose texts the decoder must be able to tell again. With `served` there is one
    more id column at the end, the plain key of the version (0: nothing of that width was logged),
    and `width` more dense ones.
    """

    role: TopicRole
    ids: tuple[IdSource, ...] = ()
    multis: tuple[MultiSource, ...] = ()
    dense: tuple[DenseSource, ...] = ()
    click_kinds: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    served: ServedSource | None = None
    max_future_ms: int = 3_600_000
    timezone_offset_minutes: int = 0
    value_bytes_max: int = VALUE_BYTES_MAX
    events_max: int = EVENTS_PER_ENVELOPE_MAX

    def __post_init__(self) -> None:
        """Check the paths and limits."""
        for source in self.sources:
            _check_path(source)
        for multi in self.multis:
            if multi.length < 1:
                raise ValueError(f"feature '{multi.name}': length must be at least 1")
        if not 1 <= self.events_max <= EVENTS_PER_ENVELOPE_MAX:
            raise ValueError(f"events_max must be 1 to {EVENTS_PER_ENVELOPE_MAX}")
        if not 1 <= self.value_bytes_max <= VALUE_BYTES_MAX:
            raise ValueError(f"value_bytes_max must be 1 to {VALUE_BYTES_MAX}")
        if self.max_future_ms < 0:
            raise ValueError("max_future_ms must not be negative")

    @property
    def id_columns(self) -> int:
        """Columns of `ids_mF`."""
        return len(self.ids) + (self.served is not None)

    @property
    def dense_columns(self) -> int:
        """Columns of `dense_mX`."""
        return len(self.dense) + (self.served.width if self.served else 0)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All fields."""
        return (*self.ids, *self.multis, *self.dense)

    def names_in(self, prefix: str) -> tuple[str, ...]:
        """Distinct X of the paths `prefix` + X, in order of first use."""
        paths = [source.path for source in self.sources if source.path.startswith(prefix)]
        return tuple(dict.fromkeys(path.removeprefix(prefix) for path in paths))


def _check_path(source: Source) -> None:
    path = source.path
    is_map = any(path.startswith(prefix) and path != prefix for prefix in _MAPS)
    known = is_map or path in _OF_IMPRESSION or path in _IDS or path.startswith(ITEM_PREFIX)
    if not known:
        raise ValueError(
            f"feature '{source.name}': unknown path '{path}'; expected context.X, features.X, "
            f"item.X, {', '.join(_OF_IMPRESSION)}, user or item"
        )
    if isinstance(source, DenseSource) and path in _IDS:
        raise ValueError(f"feature '{source.name}': '{path}' is an id, it cannot be dense")
    if isinstance(source, MultiSource) and not (is_map or path.startswith(ITEM_PREFIX)):
        raise ValueError(f"feature '{source.name}': '{path}' has one value, not several")
