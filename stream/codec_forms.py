"""Struct types of the messages of one topic, made to measure for one DecodeSpec.

They hold only the fields that configuration reads: msgspec skips all others in C. What does not
fit raises in `Forms.decode`; `codec_salvage` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any

import msgspec

from stream.codec_salvage import TopicTypes
from stream.codec_spec import DecodeSpec, DenseSource, ServedSource
from stream.events import TopicRole, Value, Version

_Field = tuple[str, Any] | tuple[str, Any, Any]


@dataclass(frozen=True, slots=True)
class Forms:
    """The struct types of one topic, and the decoder of their union."""

    decode: Callable[[bytes], Any]
    single: type[msgspec.Struct]
    envelope: type[msgspec.Struct]
    columnar: type[msgspec.Struct]
    types: TopicTypes
    getters: dict[str, Callable[[Any], Any]]


def forms_of(spec: DecodeSpec) -> Forms:
    """Struct types that hold what `spec` reads."""
    if spec.role is TopicRole.IMPRESSIONS:
        body, getters = _impression_fields(spec)
        names = ("impression", "impressions", "impression_columns")
    else:
        assert spec.role is TopicRole.CLICKS, spec.role
        body, getters = _CLICK_FIELDS, {}
        names = ("click", "clicks", "click_columns")
    inner = msgspec.defstruct("Body", body, gc=False)
    events = Annotated[list[inner], msgspec.Meta(min_length=1, max_length=spec.events_max)]  # type: ignore[valid-type]  # made at run time
    rows = Annotated[int, msgspec.Meta(ge=1, le=spec.events_max)]
    single = _tagged(names[0], [("v", Version), *body])
    envelope = _tagged(names[1], [("v", Version), ("events", events)])
    columnar = _tagged(names[2], [("v", Version), ("n", rows), ("columns", dict[str, Any])])
    # A watermark's time is checked with all others, so that the reason is the same.
    mark = _tagged("watermark", [("v", Version), ("ts_ms", int)], base=WatermarkMessage)
    types = TopicTypes(
        single=names[0],
        envelope=names[1],
        body=inner,
        others={names[2]: columnar, "watermark": mark},
    )
    decoder = msgspec.msgpack.Decoder(single | envelope | columnar | mark)
    return Forms(decoder.decode, single, envelope, columnar, types, getters)


class WatermarkMessage(msgspec.Struct, gc=False):
    """What all decoded watermarks are an instance of."""


_CLICK_FIELDS: list[_Field] = [
    ("item_id", int | str),
    ("user_id", int | str),
    ("ts_ms", int),
    ("kind", str),
    ("request_id", int | str | None, None),
]


def _tagged(
    tag: str, fields: Sequence[_Field], base: type[msgspec.Struct] | None = None
) -> type[msgspec.Struct]:
    bases = None if base is None else (base,)
    return msgspec.defstruct(tag, fields, bases=bases, gc=False, tag_field="type", tag=tag)


def _impression_fields(
    spec: DecodeSpec,
) -> tuple[list[_Field], dict[str, Callable[[Any], Any]]]:
    shown: list[_Field] = [
        ("item_id", int | str),
        ("position", int, -1),
        ("propensity", float | None, None),
    ]
    body: list[_Field] = [("request_id", int | str), ("user_id", int | str), ("ts_ms", int)]
    context, getters = _open_map(spec, "context.")
    features, more = _open_map(spec, "features.")
    if features is not None:
        shown.append(("features", features, msgspec.field(default_factory=features)))
    item = msgspec.defstruct("Shown", shown, gc=False)
    body.append(("items", Annotated[list[item], msgspec.Meta(min_length=1)]))  # type: ignore[valid-type]
    if context is not None:
        body.append(("context", context, msgspec.field(default_factory=context)))
    if spec.served:
        body.append(("served", _served(spec.served) | None, None))
    return body, getters | more


def _served(source: ServedSource) -> Any:
    values = [("values", list[float] | bytes | None, None)]
    features = msgspec.defstruct("Features", values, rename={"values": source.name}, gc=False)
    fields: list[_Field] = [("feature_version", str), ("features", features)]
    return msgspec.defstruct("Served", fields, gc=False)


def _open_map(
    spec: DecodeSpec, prefix: str
) -> tuple[type[msgspec.Struct] | None, dict[str, Callable[[Any], Any]]]:
    """A struct with the configured names of an open map; names need not be identifiers."""
    names = spec.names_in(prefix)
    if not names:
        return None, {}
    rename = {f"f{i}": name for i, name in enumerate(names)}
    numeric = {source.path for source in spec.dense} - {
        source.path for source in spec.sources if not isinstance(source, DenseSource)
    }
    number = int | float | bool | None
    fields = [
        (f"f{i}", number if prefix + name in numeric else Value, None)
        for i, name in enumerate(names)
    ]
    struct = msgspec.defstruct(prefix.rstrip("."), fields, rename=rename, gc=False)
    return struct, {prefix + name: attrgetter(f"f{i}") for i, name in enumerate(names)}
