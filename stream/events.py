"""The closed family of wire events, as typed values. Decodes nothing: `codec` and `items_codec` do.

These structs are the published schema (version 1). The hot path decodes into narrower structs
that hold only the fields a configuration reads; a test keeps both in step.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec

from embeddings.vector_codec import ItemVector

SCHEMA_VERSION: Final = 1
ID_BYTES_MAX: Final = 256
EVENTS_PER_ENVELOPE_MAX: Final = 100_000
VALUE_BYTES_MAX: Final = 16 << 20
TIME_MIN_MS: Final = 946_684_800_000
"""2000-01-01T00:00:00Z, the first time that is accepted."""
TIME_MAX_MS: Final = 4_102_444_800_000
"""2100-01-01T00:00:00Z, the first time that is not."""

Version = Literal[1]
IdText = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_BYTES_MAX)]
IdNumber = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Id = IdNumber | IdText
TimeMs = Annotated[
    int,
    msgspec.Meta(gt=TIME_MIN_MS - 1, lt=TIME_MAX_MS, description="UTC milliseconds since 1970"),
]
Scalar = int | float | str | bool | None
Value = int | float | str | bool | None | list[Scalar]
Cell = Annotated[
    Any,
    msgspec.Meta(
        description="n little-endian int64 as bytes; {f4: n little-endian float32 as bytes}; "
        "strings as {blob: UTF-8 bytes, offsets: n + 1 little-endian int32 as bytes}; "
        "or a scalar for all rows"
    ),
]


class TopicRole(StrEnum):
    """What a topic carries; decides which event types belong in it."""

    ITEMS = "items"
    ITEM_VECTORS = "item-vectors"
    IMPRESSIONS = "impressions"
    CLICKS = "clicks"


class Shown(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One item of a request; `position` counts from 0 and defaults to its place in the list."""

    item_id: Id
    position: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = -1
    features: dict[str, Value] = {}
    propensity: float | None = None


class Served(msgspec.Struct, frozen=True, gc=False):
    """What the server scored with. `features.simtier`: counts, the items one behind the other.

    A list of numbers, or little-endian float32 as bytes.
    """

    model: str
    feature_version: str
    features: dict[
        str,
        Annotated[Any, msgspec.Meta(description="numbers, or float32 as little-endian bytes")],
    ]


class ImpressionBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One request and all items it showed."""

    request_id: Id
    user_id: Id
    ts_ms: TimeMs
    items: Annotated[list[Shown], msgspec.Meta(min_length=1)]
    context: dict[str, Value] = {}
    served: Served | None = None


class ClickBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One interaction; without `request_id` it is organic and never becomes a sample."""

    item_id: Id
    user_id: Id
    ts_ms: TimeMs
    kind: str
    request_id: Id | None = None


class ItemBody(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Content and attributes of one item, or its deletion."""

    item_id: Id
    ts_ms: TimeMs
    title: str | None = None
    text: str | None = None
    image: Annotated[Any, msgspec.Meta(description="bytes, or a URI as a string")] = None
    attributes: dict[str, Value] = {}
    vectors: dict[str, list[float] | bytes] = {}
    deleted: bool = False


class Impression(ImpressionBody, frozen=True, gc=False, tag_field="type", tag="impression"):
    """A message with one impression."""

    v: Version = 1


class Click(ClickBody, frozen=True, gc=False, tag_field="type", tag="click"):
    """A message with one click."""

    v: Version = 1


class Item(ItemBody, frozen=True, gc=False, tag_field="type", tag="item"):
    """A message with one item."""

    v: Version = 1


class Impressions(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="impressions"):
    """A row envelope of impressions."""

    events: Annotated[
        list[ImpressionBody], msgspec.Meta(min_length=1, max_length=EVENTS_PER_ENVELOPE_MAX)
    ]
    v: Version = 1


class Clicks(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="clicks"):
    """A row envelope of clicks."""

    events: Annotated[
        list[ClickBody], msgspec.Meta(min_length=1, max_length=EVENTS_PER_ENVELOPE_MAX)
    ]
    v: Version = 1


class Items(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="items"):
    """A row envelope of items."""

    events: Annotated[
        list[ItemBody], msgspec.Meta(min_length=1, max_length=EVENTS_PER_ENVELOPE_MAX)
    ]
    v: Version = 1


RowCount = Annotated[int, msgspec.Meta(ge=1, le=EVENTS_PER_ENVELOPE_MAX)]


class ClickColumns(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="click_columns"):
    """A columnar envelope of clicks: item_id, user_id, ts_ms, kind and, unless organic, request_id.

    Every column has n rows, or one scalar that stands for all of them.
    """

    n: RowCount
    columns: dict[str, Cell]
    v: Version = 1


class ImpressionColumnsMessage(
    msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="impression_columns"
):
    """A columnar envelope of impressions: one row an item shown.

    Columns request_id, user_id, ts_ms, item_id, optionally position, `context.X`, `features.X`.
    Neighbouring rows with an equal request_id are one request.
    """

    n: RowCount
    columns: dict[str, Cell]
    v: Version = 1


class Watermark(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="watermark"):
    """Says that its partition's clock is at least `ts_ms`; ends a stream."""

    ts_ms: TimeMs
    v: Version = 1


TYPES_OF_ROLE: Final[dict[TopicRole, tuple[type[msgspec.Struct], ...]]] = {
    TopicRole.IMPRESSIONS: (Impression, Impressions, ImpressionColumnsMessage, Watermark),
    TopicRole.CLICKS: (Click, Clicks, ClickColumns, Watermark),
    TopicRole.ITEMS: (Item, Items),
    TopicRole.ITEM_VECTORS: (ItemVector,),
}


def type_names(role: TopicRole) -> frozenset[str]:
    """Values of `type` that belong in a topic of `role`."""
    return frozenset(str(struct.__struct_config__.tag) for struct in TYPES_OF_ROLE[role])
