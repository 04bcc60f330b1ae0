"""Item-vector values: round trips, bad bytes, limits."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.vector_codec import (
    VALUE_BYTES_MAX,
    BadVector,
    ItemVector,
    decode_item_vector,
    encode_item_vector,
    misfit,
)
from tests.support.examples import examples

TS_MS = 1_650_000_000_000


def event(**changes):
    good = {
        "v": 1,
        "type": "item_vector",
        "item_id": 5,
        "ts_ms": TS_MS,
        "attributes": {"tag": ["a", 1, None], "n": 2.5},
        "encoder": "e1",
        "dtype": "float16",
        "dim": 2,
        "data": np.array([1, -2], "<f2").tobytes(),
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def decoded(**changes):
    return decode_item_vector(msgpack.packb(event(**changes)))


def test_bytes_of_version_1_stay_readable():
    golden = bytes.fromhex(
        "89a17601a474797065ab6974656d5f766563746f72a76974656d5f6964a16ba574735f6d73cf000001802baa5c00"
        "aa6174747269627574657381a16103a7656e636f646572a265"
        "31a56474797065a7666c6f61743136a364696d02a464617461c404003c00c0"
    )
    value = decode_item_vector(golden)
    assert isinstance(value, ItemVector)
    assert (value.item_id, value.ts_ms, value.encoder) == ("k", 1650000026624, "e1")
    assert value.vector().tolist() == [1.0, -2.0]
    assert value.attributes == {"a": 3}
    again = encode_item_vector(
        item_id="k",
        ts_ms=1650000026624,
        encoder="e1",
        vector=np.array([1, -2]),
        attributes={"a": 3},
    )
    assert again == golden


def test_bytes_of_int8_rows_stay_readable():
    golden = bytes.fromhex(
        "8aa17601a474797065ab6974656d5f766563746f72a76974656d5f6964a16ba574735f6d73cf000001802baa5c00"
        "aa6174747269627574657380a7656e636f646572a26531a56474797065a4696e7438a364696d03a464617461"
        "c4037fc101a57363616c65cb3f90000000000000"
    )
    value = decode_item_vector(golden)
    assert isinstance(value, ItemVector)
    assert (value.dtype, value.dim, value.scale) == ("int8", 3, 1 / 64)
    assert value.vector().tolist() == [127 / 64, -63 / 64, 1 / 64]
    again = encode_item_vector(
        item_id="k", ts_ms=1650000026624, encoder="e1", vector=value.vector(), dtype="int8"
    )
    assert again == golden


@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_round_trip(dtype):
    numbers = np.linspace(-1, 1, 8).astype(dtype)
    value = encode_item_vector(
        item_id=-3, ts_ms=TS_MS, encoder="e", vector=numbers, dtype=dtype, attributes={"a": [True]}
    )
    found = decode_item_vector(value)
    assert isinstance(found, ItemVector)
    assert found.vector().dtype == numbers.dtype
    assert found.vector().tolist() == numbers.tolist()
    assert (found.dim, found.attributes, found.deleted) == (8, {"a": [True]}, False)


def test_an_item_may_have_no_vector_and_a_deletion_has_nothing():
    bare = decode_item_vector(encode_item_vector(item_id=1, ts_ms=TS_MS, encoder="e", vector=None))
    assert isinstance(bare, ItemVector)
    assert bare.dim == len(bare.vector()) == 0
    gone = encode_item_vector(
        item_id=1, ts_ms=TS_MS, encoder="e", vector=np.ones(4), attributes={"a": 1}, deleted=True
    )
    found = decode_item_vector(gone)
    assert isinstance(found, ItemVector)
    assert (found.deleted, found.dim, found.attributes) == (True, 0, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    (
        ({"v": 2}, "unknown_version"),
        ({"v": ...}, "unknown_version"),
        ({"type": "item"}, "unknown_type"),
        ({"encoder": ...}, "missing_field"),
        ({"item_id": ...}, "missing_field"),
        ({"item_id": 1.5}, "wrong_type"),
        ({"item_id": True}, "wrong_type"),
        ({"item_id": 1 << 63}, "bad_id"),
        ({"item_id": ""}, "bad_id"),
        ({"item_id": "x" * 257}, "bad_id"),
        ({"ts_ms": "now"}, "wrong_type"),
        ({"ts_ms": 0}, "bad_time"),
        ({"ts_ms": 7_258_118_400_000}, "bad_time"),
        ({"dtype": "int4"}, "bad_vector"),
        ({"dtype": "int8"}, "bad_vector"),
        ({"dtype": "int8", "data": b"ab", "scale": -1.0}, "bad_vector"),
        ({"dtype": "int8", "data": b"ab", "scale": float("nan")}, "bad_vector"),
        ({"dtype": "int8", "data": b"ab", "scale": 1e37}, "bad_vector"),
        ({"dtype": "int8", "data": b"ab", "scale": "1"}, "wrong_type"),
        ({"dtype": "int8", "data": b"ab", "scale": True}, "wrong_type"),
        ({"scale": 2.0}, "bad_vector"),
        ({"dim": 3}, "bad_vector"),
        ({"dim": -1}, "bad_vector"),
        ({"dim": True}, "wrong_type"),
        ({"data": b""}, "bad_vector"),
        ({"data": [1.0, 2.0]}, "wrong_type"),
        ({"data": np.array([1, np.nan], "<f2").tobytes()}, "not_finite"),
        ({"data": np.array([-np.inf, 1], "<f2").tobytes()}, "not_finite"),
        ({"dtype": "float32", "data": np.array([1, np.inf], "<f4").tobytes()}, "not_finite"),
        ({"attributes": [1]}, "wrong_type"),
        ({"attributes": {"a": {"b": 1}}}, "wrong_type"),
        ({"attributes": {"a": 1 << 63}}, "wrong_type"),
        ({"attributes": {"a": [float("nan")]}}, "wrong_type"),
        ({"attributes": {"a": list(range(5000))}}, "too_large"),
        ({"attributes": {str(i): i for i in range(2000)}}, "too_large"),
        ({"deleted": 1}, "wrong_type"),
    ),
)
def test_a_bad_value_is_told_by_its_reason(changes, reason):
    found = decoded(**changes)
    assert isinstance(found, BadVector), found
    assert found.reason == reason, found


@pytest.mark.parametrize("value", (b"", b"\xc1", b"\x01", b"\x93\x01", b"\xdf" + b"\xff" * 4))
def test_what_is_no_map_is_malformed(value):
    found = decode_item_vector(value)
    assert isinstance(found, BadVector)
    assert found.reason == "malformed"


def test_size_and_depth_are_bounded():
    found = decode_item_vector(b"\x00" * (VALUE_BYTES_MAX + 1))
    assert isinstance(found, BadVector)
    assert found.reason == "too_large"
    deep = decode_item_vector(b"\x81\xa1a" + b"\x91" * 100_000)
    assert isinstance(deep, BadVector)
    assert deep.reason == "malformed"


@examples(200)
@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_decoding_never_raises(noise, place, byte):
    good = bytearray(msgpack.packb(event()))
    good[place % len(good)] = byte
    for value in (noise, bytes(good), bytes(good[: place % len(good)])):
        assert isinstance(decode_item_vector(value), ItemVector | BadVector)


def test_encoding_refuses_what_decoding_would():
    def encode(**options):
        common = {"item_id": 1, "ts_ms": TS_MS, "encoder": "e", "vector": np.ones(2)}
        encode_item_vector(**(common | options))

    with pytest.raises(ValueError, match="a NaN or an infinity"):
        encode(vector=np.array([1e6]))
    with pytest.raises(ValueError, match="1 to 256"):
        encode(item_id="")
    with pytest.raises(ValueError, match="flat list"):
        encode(attributes={"a": b"x"})
    encode(vector=np.array([1e6]), dtype="float32")
    encode(vector=np.array([1e6]), dtype="int8")
    for vector in (np.array([1, np.nan]), np.array([np.inf, 1])):
        with pytest.raises(ValueError, match="a NaN or an infinity"):
            encode(vector=vector, dtype="int8")
    with pytest.raises(ValueError, match="scale"):
        encode(vector=np.array([1e300]), dtype="int8")


def test_misfit_names_both_sides():
    item = decoded()
    assert isinstance(item, ItemVector)
    assert misfit(item, "e1", 2) is None
    other = misfit(item, "e2", 2)
    assert other is not None
    assert other.reason == "bad_vector"
    assert "'e2'" in other.detail
    assert "'e1'" in other.detail
    longer = misfit(item, "e1", 3)
    assert longer is not None
    assert "expected 3, got 2" in longer.detail
