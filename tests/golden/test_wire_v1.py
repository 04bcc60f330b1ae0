"""Bytes of schema version 1, written out: they must be read for ever, and are what we write."""

from __future__ import annotations

from collections.abc import Callable

import jsonschema
import msgpack
import numpy as np
import pytest

from embeddings.vector_codec import ItemVector, decode_item_vector, encode_item_vector
from stream.codec import ClickDecoder, DecodeSpec, DenseSource, IdSource, ImpressionDecoder
from stream.codec_items import ItemEvent, decode_items
from stream.codec_write import (
    click_body,
    encode_click,
    encode_columns,
    encode_envelope,
    encode_impression,
    encode_item,
    encode_watermark,
    impression_body,
    item_body,
)
from stream.columns import EventKind
from stream.event_schemas import schemas
from stream.events import TopicRole
from stream.keys import ints_of_keys, key_of_str, keys_of_ints
from stream.records import RecordBatch, TopicPartition

T = 1_650_000_000_000
GOLDEN = {
    "impression": (
        "87a17601a474797065aa696d7072657373696f6eaa726571756573745f696407a7757365725f6964a27531"
        "a574735f6d73cf000001802ba9f400a7636f6e7465787482a374616201a86c616e6775616765a26465"
        "a56974656d739183a76974656d5f696409a8706f736974696f6e03a8666561747572657381a57072696365"
        "cb3ff8000000000000"
    ),
    "impressions": (
        "83a17601a474797065ab696d7072657373696f6e73a66576656e74739185aa726571756573745f696407"
        "a7757365725f696405a574735f6d73cf000001802ba9f400a7636f6e7465787480a56974656d7392"
        "82a76974656d5f696409a8706f736974696f6e0082a76974656d5f69640aa8706f736974696f6e01"
    ),
    "impression_columns": (
        "84a17601a474797065b2696d7072657373696f6e5f636f6c756d6e73a16e02a7636f6c756d6e7386"
        "aa726571756573745f6964c41007000000000000000700000000000000a7757365725f696405"
        "a574735f6d73cf000001802ba9f400a76974656d5f696482a4626c6f62c403616262a76f666673657473"
        "c40c000000000100000003000000ab636f6e746578742e74616201ae66656174757265732e7072696365"
        "81a26634c4080000c03f00000040"
    ),
    "click": (
        "87a17601a474797065a5636c69636baa726571756573745f696407a76974656d5f696409a7757365725f6964"
        "a27531a574735f6d73cf000001802ba9f400a46b696e64a5636c69636b"
    ),
    "clicks": (
        "83a17601a474797065a6636c69636b73a66576656e74739184a76974656d5f6964a161a7757365725f696405"
        "a574735f6d73cf000001802ba9f400a46b696e64a57761746368"
    ),
    "click_columns": (
        "84a17601a474797065ad636c69636b5f636f6c756d6e73a16e02a7636f6c756d6e7384a7757365725f696405"
        "a46b696e64a57761746368a76974656d5f6964c41009000000000000000a00000000000000"
        "a574735f6d73c41000f4a92b8001000001f4a92b80010000"
    ),
    "watermark": "83a17601a474797065a977617465726d61726ba574735f6d73cf000001802ba9f400",
    "item": (
        "85a17601a474797065a46974656da76974656d5f696409a574735f6d73cf000001802ba9f400"
        "aa6174747269627574657381a374616792a161a162"
    ),
    "items": (
        "83a17601a474797065a56974656d73a66576656e74739184a76974656d5f6964a161a574735f6d73"
        "cf000001802ba9f400aa6174747269627574657380a764656c65746564c3"
    ),
    "item_vector": (
        "89a17601a474797065ab6974656d5f766563746f72a76974656d5f696409a574735f6d73"
        "cf000001802ba9f400aa6174747269627574657381a374616791a161a7656e636f646572a26531"
        "a56474797065a7666c6f61743136a364696d02a464617461c404003c00c0"
    ),
}

WRITERS: dict[str, Callable[[], bytes]] = {
    "impression": lambda: encode_impression(
        request_id=7,
        user_id="u1",
        ts_ms=T,
        context={"tab": 1, "language": "de"},
        items=[{"item_id": 9, "position": 3, "features": {"price": 1.5}}],
    ),
    "impressions": lambda: encode_envelope(
        "impressions",
        [
            impression_body(
                request_id=7,
                user_id=5,
                ts_ms=T,
                items=[{"item_id": 9, "position": 0}, {"item_id": 10, "position": 1}],
            )
        ],
    ),
    "impression_columns": lambda: encode_columns(
        "impression_columns",
        2,
        {
            "request_id": np.array([7, 7]),
            "user_id": 5,
            "ts_ms": T,
            "item_id": ["a", "bb"],
            "context.tab": 1,
            "features.price": np.array([1.5, 2.0]),
        },
    ),
    "click": lambda: encode_click(request_id=7, item_id=9, user_id="u1", ts_ms=T, kind="click"),
    "clicks": lambda: encode_envelope(
        "clicks", [click_body(item_id="a", user_id=5, ts_ms=T, kind="watch")]
    ),
    "click_columns": lambda: encode_columns(
        "click_columns",
        2,
        {
            "user_id": 5,
            "kind": "watch",
            "item_id": np.array([9, 10]),
            "ts_ms": np.array([T, T + 1]),
        },
    ),
    "watermark": lambda: encode_watermark(T),
    "item": lambda: encode_item(item_id=9, ts_ms=T, attributes={"tag": ["a", "b"]}),
    "item_vector": lambda: encode_item_vector(
        item_id=9, ts_ms=T, encoder="e1", vector=np.array([1.0, -2.0]), attributes={"tag": ["a"]}
    ),
    "items": lambda: encode_envelope("items", [item_body(item_id="a", ts_ms=T, deleted=True)]),
}

NO_SALT = np.int64(0)
IMPRESSIONS = ImpressionDecoder(
    DecodeSpec(
        role=TopicRole.IMPRESSIONS,
        ids=(IdSource(name="tab", path="context.tab", salt=NO_SALT),),
        dense=(DenseSource(name="price", path="features.price"),),
    )
)
CLICKS = ClickDecoder(DecodeSpec(role=TopicRole.CLICKS, click_kinds=("click", "watch")))


def batch_of(name: str) -> RecordBatch:
    return RecordBatch(
        tp=TopicPartition("t", 0),
        offset_n=np.array([0]),
        timestamp_ms_n=np.array([T]),
        keys=[None],
        values=[bytes.fromhex(GOLDEN[name])],
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_writers_give_these_very_bytes(name: str) -> None:
    assert WRITERS[name]().hex() == GOLDEN[name]


def test_single_impression_is_read() -> None:
    columns = IMPRESSIONS.decode(batch_of("impression"))
    assert columns.rejected == []
    assert ints_of_keys(columns.request_n).tolist() == [7]
    assert ints_of_keys(columns.item_n).tolist() == [9]
    assert columns.user_n.tolist() == [key_of_str("u1")]
    assert columns.ts_ms_n.tolist() == [T]
    assert columns.impressions.position_m.tolist() == [3]
    assert columns.impressions.dense_mX.tolist() == [[1.5]]
    assert columns.impressions.names == [(7, 9, "u1")]


def test_impression_envelope_is_read() -> None:
    columns = IMPRESSIONS.decode(batch_of("impressions"))
    assert columns.rejected == []
    assert ints_of_keys(columns.request_n).tolist() == [7, 7]
    assert ints_of_keys(columns.item_n).tolist() == [9, 10]
    assert columns.index_n.tolist() == [0, 1]
    assert columns.impressions.names is None


def test_columnar_impressions_are_read() -> None:
    columns = IMPRESSIONS.decode(batch_of("impression_columns"))
    assert columns.rejected == []
    assert columns.item_n.tolist() == [key_of_str("a"), key_of_str("bb")]
    assert columns.impressions.position_m.tolist() == [0, 1]
    assert columns.impressions.dense_mX.tolist() == [[1.5], [2.0]]
    assert columns.impressions.names == [(7, "a", 5), (7, "bb", 5)]


@pytest.mark.parametrize(
    ("name", "kind", "items", "click_kind"),
    (
        ("click", EventKind.CLICK, [keys_of_ints(np.array([9]))[0]], [0]),
        ("clicks", EventKind.ORGANIC, [key_of_str("a")], [1]),
        ("click_columns", EventKind.ORGANIC, keys_of_ints(np.array([9, 10])).tolist(), [1, 1]),
    ),
)
def test_clicks_are_read(
    name: str, kind: EventKind, items: list[int], click_kind: list[int]
) -> None:
    columns = CLICKS.decode(batch_of(name))
    assert columns.rejected == []
    assert columns.kind_n.tolist() == [kind] * len(items)
    assert columns.item_n.tolist() == items
    assert columns.click_kind_n.tolist() == click_kind
    assert columns.ts_ms_n.tolist() == [T, T + 1][: len(items)]


def test_watermark_is_read_in_both_topics() -> None:
    for decoder in (IMPRESSIONS, CLICKS):
        columns = decoder.decode(batch_of("watermark"))
        assert columns.kind_n.tolist() == [EventKind.WATERMARK]
        assert columns.ts_ms_n.tolist() == [T]


def test_items_are_read() -> None:
    (one,) = decode_items(batch_of("item"))
    assert isinstance(one, ItemEvent)
    assert (one.item.item_id, one.item.attributes) == (9, {"tag": ["a", "b"]})
    (gone,) = decode_items(batch_of("items"))
    assert isinstance(gone, ItemEvent)
    assert (gone.item.item_id, gone.item.deleted) == ("a", True)


def test_item_vectors_are_read() -> None:
    item = decode_item_vector(bytes.fromhex(GOLDEN["item_vector"]))
    assert isinstance(item, ItemVector)
    assert (item.item_id, item.encoder, item.attributes) == (9, "e1", {"tag": ["a"]})
    assert item.vector().tolist() == [1.0, -2.0]


HOLDS_BYTES = {"click_columns", "impression_columns", "item_vector"}


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - HOLDS_BYTES))
def test_they_fit_the_published_schema(name: str) -> None:
    """Bytes are left out, as JSON has none."""
    jsonschema.validate(msgpack.unpackb(bytes.fromhex(GOLDEN[name])), schemas()[name])
