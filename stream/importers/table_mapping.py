"""How columns of somebody's tables become events: the mapping file of `millrace import table`.

Reads no table. Loaded by `infra.config`, so an unknown key names the nearest known one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["iso", "ms", "s", "us"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFormat:
    """How times are written. `unit` of numbers, or `iso`; `pattern`: strptime's, instead of iso.

    Times that name no offset are `offset_minutes` ahead of UTC.
    """

    unit: Unit = "iso"
    pattern: str = ""
    offset_minutes: int = 0

    def __post_init__(self) -> None:
        """Check that the two agree."""
        if self.pattern and self.unit != "iso":
            raise ValueError(f"time: a pattern is of text, so unit must be iso, got {self.unit}")
        if abs(self.offset_minutes) > 24 * 60:
            raise ValueError(f"time: offset_minutes is over a day: {self.offset_minutes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownColumns:
    """Columns of the table of impressions, one row an item shown.

    Rows with one `request` need one user; its time is the earliest of theirs. Without `request`
    each row is a request of its own, and rows equal in user, item and time are one impression.
    `context` and `features` map names of fields to columns.
    """

    user: str
    item: str
    time: str
    request: str = ""
    position: str = ""
    propensity: str = ""
    context: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Columns in which every row needs a value."""
        return tuple(name for name in (self.user, self.item, self.time, self.request) if name)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        optional = (self.position, self.propensity, *self.context.values(), *self.features.values())
        return (*self.required, *(name for name in optional if name))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumn:
    """A kind of click in the table of impressions: rows with `column` of at least `at_least`.

    The click comes at the time in the column `time`, else `delay_ms` after the impression.
    """

    column: str
    at_least: float = 1.0
    time: str = ""
    delay_ms: int = 1_000

    def __post_init__(self) -> None:
        """Check the delay."""
        if self.delay_ms < 0:
            raise ValueError(f"label: delay_ms must not be negative, got {self.delay_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickColumns:
    """Columns of a table of clicks. `kind` for all, or `kind_column`; no request: organic."""

    user: str
    item: str
    time: str
    request: str = ""
    kind: str = "click"
    kind_column: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        names = (self.user, self.item, self.time, self.request, self.kind_column)
        return tuple(name for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemColumns:
    """Columns of a table of items. `lists`: attributes whose cells hold several, by separator."""

    item: str
    title: str = ""
    text: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that lists are attributes."""
        unknown = [name for name in self.lists if name not in self.attributes]
        if unknown:
            raise ValueError(f"items: '{unknown[0]}' in lists is none of the attributes")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        names = (self.item, self.title, self.text, *self.attributes.values())
        return tuple(name for name in names if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMapping:
    """The whole mapping file. `delimiter` is of texts; `text_ids`: never read ids as integers.

    Without `impressions` the log holds clicks alone.
    """

    impressions: ShownColumns | None = None
    time: TimeFormat = field(default_factory=TimeFormat)
    label: Mapping[str, LabelColumn] = field(default_factory=dict)
    clicks: ClickColumns | None = None
    items: ItemColumns | None = None
    delimiter: str = ","
    text_ids: bool = False

    def __post_init__(self) -> None:
        """Check the delimiter, and that there is something to read."""
        if self.impressions is None and self.clicks is None:
            raise ValueError("neither [impressions] nor [clicks]: name the columns of one of them")
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, got '{self.delimiter}'")
