"""The item table: updates by key at boundaries, attributes as features, state in a snapshot."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_codec import BadVector, encode_item_vector
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig, restore_checkpoint
from embeddings.vectors import NO_KEYS, MemoryVectorStore
from stream.codec_spec import DenseSource, IdSource, MultiSource
from stream.item_pending import ItemPosition, ItemUpdate, LateUpdate
from stream.items import ItemTable, ItemTableConfig, update_of_value
from stream.keys import key_of, keys_of_ints, salt_of, salted

DIM = 2
T0 = 1_650_000_000_000
FIELDS = (
    IdSource(name="author", path="item.attributes.author", salt=salt_of("author")),
    MultiSource(name="tags", path="item.attributes.tag", length=2, salt=salt_of("tags")),
    MultiSource(name="kinds", path="item.attributes.kind", length=1, salt=salt_of("kinds")),
    DenseSource(name="price", path="item.attributes.price"),
)


def table_of(store=None, fields=(), rows_max=100, **options):
    cache = VectorCacheConfig(dim=DIM, rows_max=rows_max)
    return ItemTable(store or MemoryVectorStore("e"), ItemTableConfig(**options), cache, fields)


def value(item_id, number, ts_ms=T0, *, encoder="e", dim=DIM, deleted=False, **attributes):
    return encode_item_vector(
        item_id=item_id,
        ts_ms=ts_ms,
        encoder=encoder,
        vector=np.full(dim, number, np.float32),
        attributes=attributes,
        deleted=deleted,
    )


def update(item_id, number, ts_ms=T0, *, partition=0, offset=0, **options):
    found = update_of_value(partition, offset, 0, value(item_id, number, ts_ms, **options))
    assert isinstance(found, ItemUpdate)
    return found


def numbers(table, *item_ids):
    keys = np.array([key_of(item_id) for item_id in item_ids], np.int64)
    rows = table.lookup(keys)
    return rows.table_VC[rows.target_B, 0].tolist()


def test_an_update_counts_from_the_first_boundary_behind_its_key():
    table = table_of()
    assert table.offer("s", [update(1, 5, T0), update("b", 6, T0 + 10, offset=1)]) == []
    assert numbers(table, 1, "b") == [0, 0]
    assert table.apply_until(T0) == 0  # not below the boundary
    assert table.version == 0
    assert table.apply_until(T0 + 1) == 1
    assert numbers(table, 1, "b") == [5, 0]
    assert table.apply_until(T0 + 100) == 1
    assert numbers(table, 1, "b") == [5, 6]
    assert (table.version, table.counts.applied, table.pending) == (2, 2, 0)


def test_the_order_is_that_of_keys_not_of_arrival():
    """Item 1 moves between partitions: what is later by event time wins, whatever came first."""
    early, late = update(1, 5, T0, partition=3), update(1, 6, T0 + 1, partition=0)
    for order in ([early, late], [late, early]):
        table = table_of()
        for one in order:
            table.offer("s", [one])
        assert table.apply_until(T0 + 10) == 2
        assert numbers(table, 1) == [6]


def test_a_partition_keeps_its_own_order_even_where_times_fall():
    table = table_of()
    table.offer("s", [update(1, 5, T0 + 50, offset=0), update(1, 6, T0, offset=1)])
    assert table.apply_until(T0 + 10) == 0  # both wait for the partition's clock
    assert table.apply_until(T0 + 51) == 2
    assert numbers(table, 1) == [6]


def test_late_updates_are_counted_and_applied_at_the_next_boundary():
    table = table_of()
    late = []
    table.note_late = late.append
    table.apply_until(T0 + 100)
    table.offer("s", [update(1, 5, T0), update(2, 6, T0 + 200, offset=1)])
    assert (table.counts.late, late) == (1, [LateUpdate(0, 0, 0, T0 + 100)])
    assert numbers(table, 1) == [0]
    assert table.apply_until(T0 + 101) == 1
    assert numbers(table, 1, 2) == [5, 0]


def test_what_is_read_again_was_not_late_when_it_was_read():
    table, late = table_of(), []
    table.note_late = late.append
    table.offer("s", [update(1, 5, T0)])
    table.apply_until(T0 + 100)
    table.read_again()
    table.offer("s", [update(1, 5, T0), update(2, 6, T0, offset=1)])
    assert late == [LateUpdate(0, 1, 0, T0 + 100)]
    table.offer("other", [update(1, 5, T0)])
    assert [one.offset for one in late] == [1, 0]


def test_deletions_remove_by_flag_and_by_tombstone():
    table = table_of(fields=FIELDS)
    table.offer("s", [update(i, i, offset=i, price=2.5) for i in (1, 2, 3)])
    table.apply_until(T0 + 1)
    gone = ItemUpdate(0, 5, 0, T0 + 1, key_of(3), None)
    table.offer("s", [update(2, 0, T0 + 1, offset=4, deleted=True), gone])
    table.apply_until(T0 + 2)
    assert numbers(table, 1, 2, 3) == [1, 0, 0]
    assert table.counts.deleted == 2
    assert table.attribute_columns(keys_of_ints(np.array([1, 2]))).dense_nX.tolist() == [[2.5], [0]]


def test_unusable_values_are_told_and_their_place_is_passed():
    table = table_of()
    bad = [
        update(1, 1, offset=0)._replace(value=b"broken"),
        update(2, 2, offset=1, encoder="other"),
        update(3, 3, offset=2, dim=DIM + 1),
        update(4, 4, offset=3),
    ]
    refused = table.offer("s", bad)
    assert [(r.place, r.reason.reason) for r in refused] == [
        (0, "malformed"), (1, "bad_vector"), (2, "bad_vector"),
    ]  # fmt: skip
    assert "expected 'e', got 'other'" in refused[1].reason.detail
    assert table.counts.rejected == 3
    assert table.next_positions() == {0: ItemPosition("s", 3, 1)}
    assert table.apply_until(T0 + 1) == 1
    assert isinstance(update_of_value(0, 0, 0, b"broken"), BadVector)


def test_what_was_taken_is_not_taken_again_but_a_new_source_starts_over():
    table = table_of()
    first = [update(1, 5), update(2, 6, offset=1)]
    table.offer("s", first)
    table.offer("s", [*first, update(3, 7, offset=2)])
    assert (table.counts.repeated, table.pending) == (2, 3)
    table.offer("next", [update(1, 8, T0 + 1)])
    assert table.pending == 4
    table.apply_until(T0 + 2)
    assert numbers(table, 1, 2, 3) == [8, 6, 7]


def test_an_update_of_a_cached_item_is_seen_at_once():
    table = table_of()
    table.offer("s", [update(1, 5)])
    table.apply_until(T0 + 1)
    assert numbers(table, 1) == [5]
    table.offer("s", [update(1, 6, T0 + 1, offset=1)])
    assert numbers(table, 1) == [5]
    table.apply_until(T0 + 2)
    assert numbers(table, 1) == [6]


def test_more_is_wanted_until_the_room_is_full():
    table = table_of(pending_bytes_max=3_000)
    assert table.wants_more()
    table.offer("s", [update(i, i, T0 + i, offset=i) for i in range(10)])
    assert not table.wants_more()
    assert table.apply_until(T0 + 8) == 8
    assert table.wants_more()
    with pytest.raises(ValueError, match="at least 1"):
        ItemTableConfig(pending_bytes_max=0)


def test_many_updates_are_written_in_parts_with_positions_that_fit(monkeypatch):
    monkeypatch.setattr("stream.items._ROWS_PER_WRITE", 3)
    store = MemoryVectorStore("e")
    table = table_of(store)
    table.offer("s", [update(i % 4, i, T0 + i, offset=i) for i in range(10)])
    assert table.apply_until(T0 + 7) == 7
    assert numbers(table, 0, 1, 2, 3) == [4, 5, 6, 3]
    assert table_of(store).next_positions() == {0: ItemPosition("s", 6, 1)}
    assert table.next_positions() == {0: ItemPosition("s", 9, 1)}


def test_positions_of_other_topics_are_not_ours():
    store = MemoryVectorStore("e")
    store.put_many(NO_KEYS, [], NO_KEYS, {"items/0": ItemPosition("s", 4, 1).to_bytes()})
    assert table_of(store).next_positions() == {}
    assert table_of(store, topic="items").next_positions() == {0: ItemPosition("s", 4, 1)}


def test_attributes_become_keys_and_numbers_by_the_rules_of_fields():
    table = table_of(fields=FIELDS)
    full = {"author": 7, "tag": ["x", None, 3, "cut off"], "kind": "k", "price": 2}
    odd = {"author": 2.5, "tag": [], "price": "dear"}
    table.offer(
        "s",
        [update(1, 1, **full), update(2, 2, offset=1, **odd), update(3, 3, offset=2, author=7.0)],
    )
    table.apply_until(T0 + 1)
    keys = np.append(keys_of_ints(np.array([1, 2, 3, 99])), 0)
    columns = table.attribute_columns(keys)

    def key(name, *values):
        plain = np.array([0 if v is None else key_of(v) for v in values], np.int64)
        return salted(plain, salt_of(name)).tolist()

    author = key("author", 7, None, 7, None, None)
    assert columns.ids_nA.ravel().tolist() == author
    tags, kinds = columns.multi_nM
    assert tags.tolist() == [key("tags", "x", 3), [0, 0], [0, 0], [0, 0], [0, 0]]
    assert kinds.tolist() == [key("kinds", "k"), [0], [0], [0], [0]]
    assert columns.dense_nX.tolist() == [[2], [0], [0], [0], [0]]
    assert columns.dense_nX.dtype == np.float32


def test_without_fields_attribute_columns_are_empty():
    columns = table_of().attribute_columns(keys_of_ints(np.arange(3)))
    assert (columns.ids_nA.shape, columns.multi_nM, columns.dense_nX.shape) == ((3, 0), (), (3, 0))


def test_a_path_that_is_no_attribute_is_refused():
    with pytest.raises(ValueError, match=r"'title'.*item\.attributes\.X"):
        table_of(fields=(IdSource(name="title", path="item.title", salt=salt_of("title")),))


def test_a_restored_table_goes_on_as_the_first_would_have(tmp_path):
    def rocks(path):
        return RocksVectorStore(RocksVectorStoreConfig(path=path), "e")

    store = rocks(tmp_path / "store")
    table = table_of(store)
    table.offer("s", [update(1, 1), update(2, 2, T0 + 20, offset=1), update(3, 3, T0, offset=2)])
    table.offer("s", [update(4, 4, T0 + 5, partition=1), update(9, 9, offset=9, encoder="x")])
    table.apply_until(T0 + 10)
    table.checkpoint(tmp_path / "copy")
    parts = {part.name: part for part in table.export_full()}
    restore_checkpoint(tmp_path / "copy", tmp_path / "restored")
    other = table_of(rocks(tmp_path / "restored"))
    other.apply(parts)
    assert other.next_positions() == table.next_positions()
    assert (other.version, other.counts, other.pending) == (table.version, table.counts, 2)
    assert other.wants_more()
    for one in (table, other):
        one.offer("s", [update(3, 7, T0, offset=9), update(3, 8, T0, offset=10)])
        assert one.apply_until(T0 + 30) == 3
        assert numbers(one, 1, 2, 3, 4) == [1, 2, 8, 4]
    assert other.counts == table.counts
    assert [p.meta for p in other.export_since(0)] == [p.meta for p in table.export_since(0)]
    store.close()
    other._store.close()


def test_state_of_another_encoder_is_refused():
    parts = {part.name: part for part in table_of().export_full()}
    with pytest.raises(ValueError, match="expected encoder 'other', got 'e'"):
        table_of(MemoryVectorStore("other")).apply(parts)
    with pytest.raises(KeyError):
        table_of().apply({})
