"""Events to msgpack bytes; item vectors apart, which `embeddings.vector_codec` writes.

Checks nothing: bad bytes are what the tests of the readers need.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack
import numpy as np

from stream.events import SCHEMA_VERSION

Id = int | str
Body = dict[str, Any]


_LOCAL: Final = threading.local()


def _packed(message: Mapping[str, Any]) -> bytes:
    # msgpack.packb makes a packer with a buffer of 1 MiB at every call: 10 µs. A packer belongs to
    # one thread.
    packer = getattr(_LOCAL, "packer", None)
    if packer is None:
        packer = _LOCAL.packer = msgpack.Packer()
    return bytes(packer.pack(message))


def encode_key(id_: Id) -> bytes:
    """Record key of an event: a string id as UTF-8, an integer in decimal ASCII."""
    return id_.encode() if isinstance(id_, str) else b"%d" % id_


def encode_vector_key(version: str, item_id: Id) -> bytes:
    """Record key of an item vector: encoder version and item, so that compaction keeps each."""
    return b"%b/%b" % (version.encode(), encode_key(item_id))


def impression_body(
    *,
    request_id: Id,
    user_id: Id,
    ts_ms: int,
    items: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any] | None = None,
    served: Mapping[str, Any] | None = None,
) -> Body:
    """The map of one impression without `v` and `type`, as it stands in an envelope."""
    body: Body = {
        "request_id": request_id,
        "user_id": user_id,
        "ts_ms": ts_ms,
        "context": {} if context is None else context,
        "items": items,
    }
    if served is not None:
        body["served"] = served
    return body


def click_body(
    *, item_id: Id, user_id: Id, ts_ms: int, kind: str, request_id: Id | None = None
) -> Body:
    """The map of one click; without `request_id` it is organic."""
    body: Body = {"item_id": item_id, "user_id": user_id, "ts_ms": ts_ms, "kind": kind}
    return body if request_id is None else {"request_id": request_id, **body}


def item_body(
    *, item_id: Id, ts_ms: int, attributes: Mapping[str, Any] | None = None, **content: object
) -> Body:
    """The map of one item; `content` is any of title, text, image, vectors, deleted."""
    attributes = {} if attributes is None else attributes
    return {"item_id": item_id, "ts_ms": ts_ms, "attributes": attributes, **content}


def encode_event(type_: str, body: Mapping[str, Any]) -> bytes:
    """A message with one event."""
    return _packed({"v": SCHEMA_VERSION, "type": type_, **body})


def encode_envelope(type_: str, bodies: Sequence[Mapping[str, Any]]) -> bytes:
    """A row envelope; `type_` is `impressions`, `clicks` or `items`."""
    return _packed({"v": SCHEMA_VERSION, "type": type_, "events": list(bodies)})


def encode_columns(type_: str, n: int, columns: Mapping[str, object]) -> bytes:
    """A columnar envelope of `n` rows; `type_` is `impression_columns` or `click_columns`.

    Integer arrays become int64, other arrays float32, sequences of strings blob and offsets; a
    scalar stands for all rows.
    """
    cells = {name: _cells(column) for name, column in columns.items()}
    return _packed({"v": SCHEMA_VERSION, "type": type_, "n": n, "columns": cells})


def encode_impression(**body: Any) -> bytes:  # forwards to impression_body
    """A message with one impression; arguments as for `impression_body`."""
    return encode_event("impression", impression_body(**body))


def encode_click(**body: Any) -> bytes:  # forwards to click_body
    """A message with one click; arguments as for `click_body`."""
    return encode_event("click", click_body(**body))


def encode_item(**body: Any) -> bytes:  # forwards to item_body
    """A message with one item; arguments as for `item_body`."""
    return encode_event("item", item_body(**body))


def encode_watermark(ts_ms: int) -> bytes:
    """A watermark record: the partition's clock is at least `ts_ms`."""
    return encode_event("watermark", {"ts_ms": ts_ms})


def _cells(column: object) -> object:
    if isinstance(column, np.ndarray):
        if column.dtype.kind in "iub":
            return column.astype("<i8").tobytes()
        return {"f4": column.astype("<f4").tobytes()}
    if isinstance(column, (list, tuple)):
        texts = [text.encode() for text in column]
        ends = np.cumsum([0, *map(len, texts)]).astype("<i4")
        return {"blob": b"".join(texts), "offsets": ends.tobytes()}
    return column
