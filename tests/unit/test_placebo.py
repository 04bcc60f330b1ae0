"""Permuted content: another item's vector, always the same one, and nothing else changes."""

import numpy as np

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.item_content import ItemContent
from embeddings.vector_cache import VectorCacheConfig
from embeddings.vectors import MemoryVectorStore
from stream.item_pending import ItemUpdate
from stream.items import ItemTable, ItemTableConfig
from stream.keys import keys_of_ints
from stream.placebo import PermutedContent

T0 = 1_650_000_000_000
N = 40
KEYS = keys_of_ints(np.arange(N))


def filled(make):
    embedder = Embedder(AttributeEncoder(AttributeEncoderConfig(dim=8)), EmbedderConfig())
    table = make(
        MemoryVectorStore(embedder.version),
        ItemTableConfig(),
        VectorCacheConfig(dim=8, rows_max=64),
    )
    items = [ItemContent(item_id=i, ts_ms=T0, attributes={"name": i}) for i in range(N)]
    rows = embedder.embed(items).rows
    table.offer("s", [
        ItemUpdate(partition=0, offset=i, event_index=0, ts_ms=T0, item_key=int(KEYS[i]),
                   value=row.value) for i, row in enumerate(rows)
    ])  # fmt: skip
    assert table.apply_until(T0 + 1) == N
    return table


def vectors(table, keys):
    found = table.lookup(keys)
    return found.table_VC[found.target_B].copy()


def test_vectors_are_those_of_other_items_and_each_is_used_once():
    real = vectors(filled(ItemTable), KEYS)
    permuted = filled(lambda *a: PermutedContent(KEYS, 1, *a))
    donors = permuted.donors(KEYS)
    assert sorted(donors.tolist()) == sorted(KEYS.tolist())
    assert (donors == KEYS).mean() < 0.2
    place = {key: i for i, key in enumerate(KEYS.tolist())}
    expected = real[[place[d] for d in donors.tolist()]]
    assert (vectors(permuted, KEYS) == expected).all()


def test_histories_are_permuted_alike_and_padding_stays():
    permuted = filled(lambda *a: PermutedContent(KEYS, 1, *a))
    bag_BL = np.array([[KEYS[3], KEYS[7], 0]])
    found = permuted.lookup(KEYS[:1], [bag_BL])
    targets = vectors(permuted, KEYS[[3, 7]])
    found = permuted.lookup(KEYS[:1], [bag_BL])
    assert (found.table_VC[found.bags_BL[0][0, :2]] == targets).all()
    assert not found.table_VC[found.bags_BL[0][0, 2]].any()


def test_seeds_differ_and_repeat_and_unknown_items_stay_missing():
    cache = VectorCacheConfig(dim=1, rows_max=8)
    a, b, c = (
        PermutedContent(KEYS, seed, MemoryVectorStore("v"), ItemTableConfig(), cache)
        for seed in (1, 1, 2)
    )
    assert (a.donors(KEYS) == b.donors(KEYS)).all()
    assert (a.donors(KEYS) != c.donors(KEYS)).any()
    stranger = keys_of_ints(np.array([N + 5]))
    assert a.donors(stranger) == stranger
    assert filled(lambda *t: PermutedContent(KEYS, 1, *t)).lookup(stranger).missing_B.all()
