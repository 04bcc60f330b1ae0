"""The hot level of item vectors: hits, misses and capacity never change a value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings import row_index
from embeddings.stored_rows import AttributeColumns
from embeddings.vector_cache import VectorCache, VectorCacheConfig
from embeddings.vector_codec import encode_item_vector
from embeddings.vectors import NO_KEYS, MemoryVectorStore, StoreMismatch
from tests.support.examples import examples

DIM = 4
TS_MS = 1_650_000_000_000
ITEMS = 12
"""Keys 1 to 12: a third without vector, a quarter not in the store at all."""


class Store(MemoryVectorStore):
    """Counts reads."""

    reads = 0

    def get_many(self, keys):
        self.reads += 1
        return super().get_many(keys)


def read_size(attributes):
    sizes = [a.get("size", -1) for a in attributes]
    return AttributeColumns(
        ids_nA=np.array([[s, s + 1] for s in sizes], np.int64),
        multi_nM=np.array([[s] for s in sizes], np.int64),
        dense_nX=np.array([[s / 2] for s in sizes], np.float32),
    )


def value_of(key, salt=0.0):
    vector = None if key % 3 == 0 else np.full(DIM, key + salt, np.float32)
    return encode_item_vector(
        item_id=key, ts_ms=TS_MS, encoder="e", vector=vector, attributes={"size": key}
    )


def filled_store():
    store = Store("e")
    present = [key for key in range(1, ITEMS + 1) if key % 4]
    store.put_many(np.array(present), [value_of(key) for key in present], NO_KEYS, {})
    return store


def cache_of(store, rows_max, **options):
    config = VectorCacheConfig(dim=DIM, rows_max=rows_max, **options)
    return VectorCache(store, config, read_size)


def expected(key):
    has_vector = key % 4 and key % 3 and 0 < key <= ITEMS
    return [float(key)] * DIM if has_vector else [0.0] * DIM


def check(rows, target, bags):
    table = rows.table_VC
    assert not table[-1].any()
    assert table[rows.target_B].tolist() == [expected(key) for key in target.tolist()]
    assert rows.missing_B.tolist() == [not any(expected(key)) for key in target.tolist()]
    assert len(rows.bags_BL) == len(rows.bag_found_B) == len(bags)
    for keys_BL, rows_BL, found_B in zip(bags, rows.bags_BL, rows.bag_found_B, strict=True):
        wanted = [[expected(key) for key in line] for line in keys_BL.tolist()]
        assert table[rows_BL].tolist() == wanted
        assert found_B.tolist() == [sum(any(vector) for vector in line) for line in wanted]
        assert (rows_BL[np.array(keys_BL) == 0] == len(table) - 1).all()


batches = st.lists(
    st.tuples(
        st.lists(st.integers(0, ITEMS + 2), min_size=3, max_size=3),
        st.lists(st.integers(0, ITEMS + 2), min_size=6, max_size=6),
    ),
    min_size=1,
    max_size=8,
)


@examples(60)
@given(batches, st.sampled_from((1, 2, 3, 5, 9, 100)), st.booleans())
def test_values_are_right_for_every_capacity(batches, rows_max, compact):
    cache = cache_of(filled_store(), rows_max)
    for target, bag in batches:
        target_B, bag_BL = np.array(target), np.array(bag).reshape(3, 2)
        rows = cache.lookup(target_B, [bag_BL, bag_BL[:, :1]], compact=compact)
        check(rows, target_B, [bag_BL, bag_BL[:, :1]])


@examples(60)
@given(batches, st.sampled_from((1, 2, 4, 100)))
def test_attributes_are_right_for_every_capacity(batches, rows_max):
    cache = cache_of(filled_store(), rows_max)
    for target, bag in batches:
        cache.lookup(np.array(target))
        columns = cache.attributes(np.array(bag))
        sizes = [key if key % 4 and 0 < key <= ITEMS else -1 for key in bag]
        assert columns.ids_nA.tolist() == [[s, s + 1] for s in sizes]
        assert columns.multi_nM.tolist() == [[s] for s in sizes]
        assert columns.dense_nX.tolist() == [[s / 2] for s in sizes]


def test_a_batch_costs_one_read_on_misses_and_none_on_hits():
    store = filled_store()
    cache = cache_of(store, 100)
    target, bag = np.array([1, 4, 1]), np.array([[2, 0], [3, 99], [5, 1]])
    first = cache.lookup(target, [bag])
    assert store.reads == 1
    again = cache.lookup(target, [bag])
    assert store.reads == 1  # absent items (4, 99) are remembered, too
    assert again.table_VC is first.table_VC
    assert (cache.counts.lookups, cache.counts.missed, cache.counts.fetched) == (16, 8, 6)


def test_a_dropped_item_is_read_anew():
    store = filled_store()
    cache = cache_of(store, 100)
    cache.lookup(np.array([1, 2, 4]))
    store.put_many(np.array([1, 4]), [value_of(1, 0.5), value_of(4)], np.array([2]), {})
    stale = cache.lookup(np.array([1]))
    assert stale.table_VC[stale.target_B].tolist() == [[1.0] * DIM]
    cache.drop(np.array([1, 2, 4, 77]))
    rows = cache.lookup(np.array([1, 2, 4]))
    assert rows.table_VC[rows.target_B][:, 0].tolist() == [1.5, 0, 4]
    assert rows.missing_B.tolist() == [False, True, False]


def test_rows_met_lately_survive_and_rows_of_this_batch_always_do():
    store = filled_store()
    cache = cache_of(store, 4)
    cache.lookup(np.array([1, 2, 5, 7]))
    cache.lookup(np.array([1, 2]), [np.array([[10], [0]])])
    reads = store.reads
    cache.lookup(np.array([1, 2, 10]))
    assert store.reads == reads


def test_a_compact_table_has_only_the_rows_of_the_batch():
    cache = cache_of(filled_store(), 100)
    cache.lookup(np.arange(1, ITEMS + 1))
    target, bag = np.array([1, 4, 1]), np.array([[2, 0], [3, 99], [5, 1]])
    for _ in range(2):
        rows = cache.lookup(target, [bag], compact=True)
        assert rows.table_VC.shape == (4, DIM)  # 1, 2, 5 and nothing
        check(rows, target, [bag])
    rows.table_VC[:] = 7
    check(cache.lookup(target, [bag]), target, [bag])


@pytest.mark.parametrize("stored", ("float16", "float32"))
@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_values_are_cast_alike_with_and_without_room(stored, dtype):
    numbers = np.array([0.1, -1 / 3, 2.0, 60000], np.float32)
    value = encode_item_vector(item_id=1, ts_ms=TS_MS, encoder="e", vector=numbers, dtype=stored)
    results = []
    for rows_max in (1, 8):
        store = MemoryVectorStore("e")
        store.put_many(np.array([1, 2]), [value, value], NO_KEYS, {})
        rows = cache_of(store, rows_max, dtype=dtype).lookup(np.array([1, 2]))
        assert rows.table_VC.dtype == dtype
        results.append(rows.table_VC[rows.target_B].tobytes())
    assert results[0] == results[1] == numbers.astype(stored).astype(dtype).tobytes() * 2


def test_unreadable_values_are_absent_and_counted():
    store = MemoryVectorStore("e")
    store.put_many(np.array([1]), [b"broken"], NO_KEYS, {})
    cache = cache_of(store, 8)
    assert cache.lookup(np.array([1])).missing_B.tolist() == [True]
    assert cache.counts.unreadable == 1


def test_a_vector_of_another_space_is_refused():
    store = MemoryVectorStore("e")
    other = encode_item_vector(item_id=1, ts_ms=TS_MS, encoder="x", vector=np.ones(DIM))
    longer = encode_item_vector(item_id=2, ts_ms=TS_MS, encoder="e", vector=np.ones(DIM + 1))
    store.put_many(np.array([1, 2]), [other, longer], NO_KEYS, {})
    cache = cache_of(store, 8)
    with pytest.raises(StoreMismatch, match="expected 'e', got 'x'"):
        cache.lookup(np.array([1]))
    with pytest.raises(StoreMismatch, match="expected 4, got 5"):
        cache.lookup(np.array([2]))


@pytest.mark.parametrize("options", ({"rows_max": 0}, {"dim": 0}, {"dtype": "int8"}))
def test_a_config_that_cannot_work_is_refused(options):
    with pytest.raises(ValueError, match="vector cache"):
        VectorCacheConfig(**({"dim": 4} | options))


def test_stamps_start_again_without_losing_rows(monkeypatch):
    monkeypatch.setattr("embeddings.vector_cache.STAMP_MAX", 3)
    store = filled_store()
    cache = cache_of(store, 3)
    target = np.array([1, 2, 5])
    for _ in range(10):
        check(cache.lookup(target), target, [])
    assert store.reads == 1


def test_the_index_forgets_and_finds_like_a_dictionary():
    """Keys in colliding runs, wrapped around the table's end, against a plain dictionary."""
    rng = np.random.default_rng(3)
    capacity = 24
    slots = row_index.slots_for(capacity)
    size = len(slots)
    key_R, clock = np.zeros(capacity, np.int64), np.zeros(2, np.int64)
    pool = np.array(
        [size * step + home for home in (size - 2, size - 1, 1) for step in range(1, 12)]
    )
    known: set[int] = set()
    for now in range(1, 400):
        new = np.array([k for k in rng.choice(pool, 3, replace=False) if k not in known], np.int64)
        rows = np.empty(len(new), np.int64)
        row_index.claim_rows(slots, new, new % 2 == 0, now, key_R, clock, rows)
        known = set(key_R[key_R != 0].tolist())
        assert set(new.tolist()) <= known
        gone = rng.choice(pool, 2)
        row_index.drop_keys(slots, gone, key_R)
        known -= set(gone.tolist())
        assert set(slots[slots[:, 0] != 0, 0].tolist()) == known
        found, counts, totals = (
            np.empty((len(pool), 1), np.int64),
            np.empty(len(pool), np.int32),
            np.zeros(3, np.int64),
        )
        row_index.find_rows(slots, pool.reshape(-1, 1), capacity, -1, now, found, counts, totals)
        for key, row in zip(pool.tolist(), found.ravel().tolist(), strict=True):
            assert (row >= 0) == (key in known)
            assert row < 0 or key_R[row] == key
        assert totals.tolist()[:2] == [len(pool), len(pool) - len(known)]


def test_the_index_grows_with_its_keys():
    store = MemoryVectorStore("e")
    present = np.arange(1, 5000)
    store.put_many(present, [value_of(key) for key in present.tolist()], NO_KEYS, {})
    cache = cache_of(store, 10_000)
    for stop in (500, 3000, 5000):
        rows = cache.lookup(np.arange(1, stop))
        numbers = [0 if key % 3 == 0 else float(np.float16(key)) for key in range(1, stop)]
        assert rows.table_VC[rows.target_B, 0].tolist() == numbers
    assert len(cache._slots_S2) == 16_384


@pytest.mark.slow
def test_the_loops_run_uncompiled_with_the_same_results():
    """The same tests without the compiler, warnings being errors: no overflow, no wrong type."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is the uncompiled run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 skipped" in done.stdout
