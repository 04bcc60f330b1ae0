"""The compiled reading of stored values gives what the codec gives, or leaves them to it."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.stored_rows import AttributeColumns, RowReader, read_no_attributes
from embeddings.value_scan import read_rows
from embeddings.vector_codec import (
    DTYPES,
    ItemVector,
    decode_item_vector,
    decode_stored,
    encode_item_vector,
    misfit,
)
from embeddings.vectors import NO_KEYS, MemoryVectorStore, StoreMismatch
from tests.support.examples import examples

TS_MS = 1_650_000_000_000
ENCODER, DIM = "an encoder", 3
GOOD = {
    "v": 1, "type": "item_vector", "item_id": 5, "ts_ms": TS_MS, "attributes": {"a": [1, "x"]},
    "encoder": ENCODER, "dtype": "float16", "dim": DIM,
    "data": np.array([1, -2, 0.5], "<f2").tobytes(),
}  # fmt: skip


def scanned(values, dtype="float32"):
    out, has_vector = np.zeros((len(values), DIM), dtype), np.zeros(len(values), np.bool_)
    left = read_rows(values, ENCODER, out, has_vector)
    return out, has_vector, left


def check(values, dtype):
    """Each place is left, or what the codec says."""
    out, has_vector, left = scanned(values, dtype)
    assert len(set(left)) == len(left)
    for place, value in enumerate(values):
        if value is None or place in left:
            assert not has_vector[place]
            assert not out[place].any()
            continue
        item = decode_stored(value)
        assert isinstance(item, ItemVector)
        assert misfit(item, ENCODER, DIM) is None
        assert not item.deleted
        assert has_vector[place] == bool(item.dim)
        expected = item.vector() if item.dim else np.zeros(DIM)
        with np.errstate(over="ignore"):
            assert out[place].tobytes() == expected.astype(dtype).tobytes()
    return left


scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40), st.booleans(), st.none(),
)  # fmt: skip
attributes = st.dictionaries(
    st.text(min_size=1, max_size=40), st.one_of(scalars, st.lists(scalars, max_size=20)), max_size=5
)


@st.composite
def usual_values(draw):
    vector = draw(st.none() | st.lists(st.floats(-60_000, 60_000), min_size=DIM, max_size=DIM))
    return encode_item_vector(
        item_id=draw(st.integers(-(2**63), 2**63 - 1) | st.text(min_size=1, max_size=40)),
        ts_ms=TS_MS,
        encoder=ENCODER,
        vector=None if vector is None else np.array(vector),
        dtype=draw(st.sampled_from(DTYPES)),
        attributes=draw(attributes),
    )


@examples(150)
@given(st.lists(st.none() | usual_values(), max_size=6), st.sampled_from(("float16", "float32")))
def test_what_the_codec_writes_is_read_and_never_left(values, dtype):
    assert check(values, dtype) == []


@examples(200)
@given(usual_values(), st.integers(0, 300), st.binary(min_size=1, max_size=2))
def test_damaged_bytes_are_left_or_mean_what_the_codec_says(value, place, noise):
    damaged = bytearray(value)
    damaged[place % len(value)] = noise[0]
    for candidate in (bytes(damaged), value[: place % len(value)] or None, value + noise, noise):
        scanned([value, candidate, value])
        if candidate is None or isinstance(decode_item_vector(candidate), ItemVector):
            check([value, candidate, value], "float32")  # all that a store can hold


def reordered(**changes):
    event = GOOD | changes
    return msgpack.packb({name: event[name] for name in reversed(event) if event[name] is not ...})


@pytest.mark.parametrize(
    "value",
    (
        reordered(),
        reordered(more={"a": [1.5, b"raw", {"b": None}]}),
        reordered(deleted=False),
        reordered(attributes={"data": "x", "encoder": "other", "dim": 9}),
        reordered(attributes={str(i): "y" * 300 for i in range(20)}),
        reordered(attributes=...),
        reordered(dim=0, data=b""),
    ),
)
def test_rarer_forms_that_are_read(value):
    assert isinstance(decode_stored(value), ItemVector)
    assert check([value], "float16") == []


@pytest.mark.parametrize(
    "value",
    (
        reordered(encoder="another one"),
        reordered(encoder=ENCODER[:-1]),
        reordered(dim=2, data=GOOD["data"][:4]),
        reordered(dim=2),
        reordered(deleted=True),
        reordered(dtype="int8", data=b"abc"),
        reordered(scale=0.5),
        reordered(dtype="int8", data=b"abc", scale=float("nan")),
        reordered(dtype="int8", data=b"abc", scale=1e37),
        reordered(dtype="int4"),
        reordered(type="item"),
        reordered(data=...),
        reordered(data=np.array([1, np.nan, 0], "<f2").tobytes()),
        reordered(dtype="float32", data=np.array([1, 0, -np.inf], "<f4").tobytes()),
        reordered(more=msgpack.ExtType(1, b"1234")),
        reordered() + b"\xc0",
        b"\xc0",
        msgpack.packb(GOOD)[:1] + msgpack.packb("dim") + b"\x03" + msgpack.packb(GOOD)[1:-10],
        b"\x8f" + msgpack.packb(GOOD)[1:],
    ),
)
def test_forms_that_are_left_to_the_codec(value):
    good = msgpack.packb(GOOD)
    out, has_vector, left = scanned([good, value, good])
    assert left == [1]
    assert has_vector.tolist() == [True, False, True]
    assert out.tolist() == [[1, -2, 0.5], [0, 0, 0], [1, -2, 0.5]]


def read_sizes(attributes):
    sizes = np.array([[a.get("size", -1)] for a in attributes], np.int64).reshape(-1, 1)
    return AttributeColumns(ids_nA=sizes, multi_nM=sizes[:, :0], dense_nX=sizes / np.float32(2))


def value_of(key, **options):
    vector = None if key % 5 == 0 else np.full(DIM, key)
    common = {"item_id": key, "ts_ms": TS_MS, "encoder": ENCODER, "attributes": {"size": key}}
    return encode_item_vector(**common, vector=vector, **options)


@pytest.mark.parametrize("reader", (read_sizes, read_no_attributes))
@pytest.mark.parametrize("rows_per_read", (1, 4, 100))
def test_rows_are_the_same_in_pieces_of_any_size(monkeypatch, reader, rows_per_read):
    monkeypatch.setattr("embeddings.stored_rows._ITEMS_PER_READ", rows_per_read)
    store = MemoryVectorStore(ENCODER)
    present = np.arange(1, 13)
    values = [value_of(key, dtype=DTYPES[key % 3]) for key in present.tolist()]
    rare = reordered(attributes={"size": 7}, data=np.full(DIM, 7, "<f2").tobytes())
    values[6] = msgpack.packb(msgpack.unpackb(rare) | {"more": msgpack.ExtType(1, b"1")})
    values[7] = b"broken"
    store.put_many(present, values, NO_KEYS, {})
    rows = RowReader(store, DIM, "float16", reader).read(np.arange(14))
    there = [key % 5 > 0 and key not in {0, 8, 13} for key in range(14)]
    assert rows.has_vector_m.tolist() == there
    assert rows.vectors_mD[:, 0].tolist() == [k * t for k, t in zip(range(14), there, strict=True)]
    assert rows.unreadable == 1
    sizes = [key if key not in {0, 8, 13} else -1 for key in range(14)]
    if reader is read_sizes:
        assert rows.columns.ids_nA.tolist() == [[size] for size in sizes]
    else:
        assert rows.columns.ids_nA.shape == (14, 0)


def test_an_item_of_another_space_is_refused_wherever_it_stands(monkeypatch):
    monkeypatch.setattr("embeddings.stored_rows._ITEMS_PER_READ", 2)
    store = MemoryVectorStore(ENCODER)
    other = encode_item_vector(item_id="o", ts_ms=TS_MS, encoder="e2", vector=np.ones(DIM))
    store.put_many(np.array([1, 2, 3]), [value_of(1), value_of(2), other], NO_KEYS, {})
    with pytest.raises(StoreMismatch, match="item 'o': encoder: expected 'an encoder', got 'e2'"):
        RowReader(store, DIM, "float32", read_sizes).read(np.array([1, 2, 3]))
