"""Record batches and decode specs from a few words, for tests of the codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from stream.codec import (
    ClickDecoder,
    DecodeSpec,
    DenseSource,
    IdSource,
    ImpressionDecoder,
    MultiSource,
)
from stream.events import TopicRole
from stream.keys import salt_of
from stream.records import RecordBatch, TopicPartition

T0 = 1_650_000_000_000


def batch_of(
    *values: bytes | None,
    keys: Sequence[bytes | None] | None = None,
    timestamp_ms: int = T0 + 60_000,
    first_offset: int = 0,
) -> RecordBatch:
    """Consecutive records with these values, without keys unless given."""
    n = len(values)
    return RecordBatch(
        tp=TopicPartition("topic", 0),
        offset_n=np.arange(first_offset, first_offset + n),
        timestamp_ms_n=np.full(n, timestamp_ms),
        keys=[None] * n if keys is None else keys,
        values=list(values),
    )


def packed(**fields: Any) -> bytes:
    """A message of version 1, whatever its fields."""
    return bytes(msgpack.packb({"v": 1, **fields}))


def impression(**changes: Any) -> dict[str, Any]:
    """A good impression body with changes; a value of `...` takes the field out."""
    body = {
        "request_id": 1,
        "user_id": 2,
        "ts_ms": T0,
        "context": {"tab": 3},
        "items": [{"item_id": 4, "position": 0}],
    }
    return {k: v for k, v in (body | changes).items() if v is not ...}


def click(**changes: Any) -> dict[str, Any]:
    """A good click body with changes; a value of `...` takes the field out."""
    body = {"request_id": 1, "item_id": 4, "user_id": 2, "ts_ms": T0, "kind": "click"}
    return {k: v for k, v in (body | changes).items() if v is not ...}


def ids(**paths: str) -> tuple[IdSource, ...]:
    """Id sources by name; a double underscore stands for the dot of the path."""
    return tuple(IdSource(name=n, path=p, salt=salt_of(n)) for n, p in paths.items())


def multi(name: str, path: str, length: int) -> MultiSource:
    """A several-valued source."""
    return MultiSource(name=name, path=path, length=length, salt=salt_of(name))


def impressions_decoder(**spec: Any) -> ImpressionDecoder:
    """A decoder of impressions; by default of `context.tab` as id and `context.x` as number."""
    spec = {
        "ids": ids(tab="context.tab"),
        "dense": (DenseSource(name="x", path="context.x"),),
    } | spec
    return ImpressionDecoder(DecodeSpec(role=TopicRole.IMPRESSIONS, **spec))


def clicks_decoder(**spec: Any) -> ClickDecoder:
    """A decoder of clicks of the kinds click and like."""
    return ClickDecoder(
        DecodeSpec(role=TopicRole.CLICKS, **({"click_kinds": ("click", "like")} | spec))
    )
