"""Vectors as int8: what quantising keeps, bit by bit and in the cosines that learners see."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.int8_rows import SCALE_MAX, quantised
from embeddings.vector_codec import (
    ItemVector,
    decode_item_vector,
    decode_stored,
    encode_item_vector,
)
from embeddings.vector_store import RocksVectorStore
from tests.support.examples import examples
from tests.support.logs import write_log
from tests.support.replays import ranked_config, replay


def through_the_wire(vector):
    value = encode_item_vector(
        item_id=1, ts_ms=1_650_000_000_000, encoder="e", vector=vector, dtype="int8"
    )
    item = decode_item_vector(value)
    assert isinstance(item, ItemVector)
    return item.vector()


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@examples(200)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=40))
def test_numbers_are_near_exact_in_float32_and_stable(numbers):
    vector = np.array(numbers, np.float32)
    codes, scale = quantised(vector)
    largest = np.abs(vector).max(initial=0)
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)) <= 127).all()
    assert np.float32(scale) == scale
    if scale:
        assert np.abs(codes.astype(int)).max() == 127
        assert scale == pytest.approx(largest / 127, rel=2**-15)
    else:
        assert largest < 1.3e-28
    restored = codes * np.float32(scale)
    assert restored.tolist() == [int(code) * scale for code in codes]  # float64: exact
    assert np.abs(restored - vector.astype(np.float64)).max(initial=0) <= max(scale / 2, 1.3e-28)
    again, same_scale = quantised(restored)
    assert (again.tobytes(), same_scale) == (codes.tobytes(), scale)


def test_halves_go_to_the_even_number():
    codes, scale = quantised(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]))
    assert scale == 1
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -126]


def test_the_largest_scale_still_gives_finite_numbers():
    assert np.isfinite(np.float32(-128) * np.float32(SCALE_MAX))
    assert np.isfinite(through_the_wire(np.array([SCALE_MAX * 127, -1.0]))).all()


@pytest.mark.parametrize("cached", ("float32", "float16"))
def test_few_cosines_change_their_tier(cached):
    """The SimTier method's bound: tiers of width .1, 128 numbers, cosines up to identical items."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((100, 51, 128))
    near = rng.uniform(0, 1, (100, 50, 1))  # cosines from 0 to 1, not only around 0
    noise[:, 1:] = near * noise[:, :1] + (1 - near) * noise[:, 1:]
    exact = unit(noise).astype(np.float32)
    stored = np.array([[through_the_wire(v) for v in line] for line in exact])
    stored = unit(stored.astype(cached).astype(np.float64))
    cosines = [np.clip(np.einsum("bld,bd->bl", x[:, 1:], x[:, 0]), -1, 1) for x in (exact, stored)]
    tiers = [np.clip(np.floor((r + 1) * 10), 0, 19) for r in cosines]
    assert (tiers[0] != tiers[1]).mean() < 0.05
    assert np.abs(cosines[0] - cosines[1]).mean() < 0.005
    assert len(np.unique(tiers[0])) >= 9


def test_a_replay_stores_int8_rows_and_learns_nearly_the_same(tmp_path, monkeypatch):
    log, logits, stored = write_log(tmp_path / "log.parquet", samples=300), {}, {}

    def put_many(store, keys, values, deletes, positions):
        stored.setdefault(dtype, set()).update(decode_stored(value).dtype for value in values)
        put(store, keys, values, deletes, positions)

    put = RocksVectorStore.put_many
    monkeypatch.setattr(RocksVectorStore, "put_many", put_many)
    for dtype in ("float16", "int8"):
        config = ranked_config(items={"dim": 16, "dtype": dtype})
        result = replay(config, (log,), tmp_path / dtype)
        assert result.composition.pipeline.items.cache._table_RD.dtype == np.float16
        logits[dtype] = pq.read_table(tmp_path / dtype / "predictions.parquet")["logit"].to_numpy()
    assert stored == {"float16": {"float16"}, "int8": {"int8"}}
    assert np.ptp(logits["int8"]) > 0
    assert np.abs(logits["int8"] - logits["float16"]).max() < 0.02
