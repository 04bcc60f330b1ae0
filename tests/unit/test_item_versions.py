"""Item tables of two encoder versions on one topic: each gets its own vectors and no other."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_codec import encode_item_vector
from embeddings.vectors import MemoryVectorStore
from stream.codec_write import encode_event, encode_key, encode_vector_key, item_body
from stream.item_intake import ItemIntake
from stream.item_pending import ItemPosition, earliest
from stream.items import ItemTable, ItemTableConfig
from stream.keys import key_of
from stream.records import TopicPartition
from tests.support.streams import T0, record_batch

TP = TopicPartition("item-vectors", 0)


def embedder_of(seed, dim):
    encoder = AttributeEncoder(AttributeEncoderConfig(dim=dim, seed=seed))
    return Embedder(encoder, EmbedderConfig())


def table_of(embedder, part="items"):
    return ItemTable(
        MemoryVectorStore(embedder.version), ItemTableConfig(part=part),
        VectorCacheConfig(dim=embedder.dim, rows_max=50),
    )  # fmt: skip


@pytest.fixture
def both():
    """Two tables, their embedders, and what offers to both."""
    present, new = embedder_of(0, 4), embedder_of(1, 6)
    tables = table_of(present), table_of(new, "items.next")
    return tables, (present, new), ItemIntake(tables[0], present, (tables[1], new))


def row(version, item, dim, number=1.0, *, deleted=False, ts_ms=T0):
    value = encode_item_vector(
        item_id=item, ts_ms=ts_ms, encoder=version, vector=np.full(dim, number), deleted=deleted
    )
    return encode_vector_key(version, item), value


def first_numbers(table, *items):
    table.apply_until(T0 + 10**6)
    found = table.lookup(np.array([key_of(item) for item in items], np.int64))
    return found.table_VC[found.target_B, 0].tolist()


def test_each_table_takes_the_rows_of_its_version(both):
    (present, new), (a, b), intake = both
    records = [
        row(a.version, 1, 4, 1.0), row(b.version, 1, 6, 2.0), row(b.version, 2, 6, 3.0),
        row("third", 1, 5, 9.0), row(a.version, 3, 4, 4.0), (encode_vector_key("third", 8), None),
        row(b.version, 3, 4, 5.0),  # of a length that this version does not have
    ]  # fmt: skip
    letters = intake.vectors("log", [record_batch(TP, 0, records)])
    assert [(letter.offset, letter.reason) for letter in letters] == [(6, "bad_vector")]
    assert first_numbers(present, 1, 2, 3) == [1.0, 0.0, 4.0]
    assert first_numbers(new, 1, 2, 3) == [2.0, 3.0, 0.0]
    assert (present.counts.other_versions, present.counts.tombstones) == (1, 1)
    assert present.next_positions() == new.next_positions() == {0: ItemPosition("log", 6, 1)}


def test_a_deletion_of_one_version_leaves_the_other(both):
    (present, new), (a, b), intake = both
    records = [row(a.version, 1, 4), row(b.version, 1, 6), row(b.version, 1, 6, deleted=True)]
    assert intake.vectors("log", [record_batch(TP, 0, records)]) == []
    assert first_numbers(present, 1) == [1.0]
    assert first_numbers(new, 1) == [0.0]


def test_rows_that_one_table_has_read_are_new_to_another(both):
    """A version comes in: the topic is read from the beginning, and nothing counts twice."""
    (present, _), (a, b), intake = both
    records = [row(a.version, i, 4, i + 1.0) for i in range(4)]
    ItemIntake(present, a).vectors("log", [record_batch(TP, 0, records)])
    assert first_numbers(present, 0, 3) == [1.0, 4.0]
    applied = present.counts.applied
    more = [*records, *(row(b.version, i, 6) for i in range(4))]
    intake.vectors("log", [record_batch(TP, 0, more)])
    assert first_numbers(present, 0, 3) == [1.0, 4.0]
    assert present.counts.applied == applied
    assert present.counts.repeated == 4


def test_items_are_encoded_for_each_version(both):
    (present, new), (a, b), intake = both
    body = item_body(item_id=5, ts_ms=T0, attributes={"colour": 2})
    value = encode_event("item", body)
    letters = intake.items("log", [record_batch(TP, 0, [(encode_key(5), value), (b"x", b"\xc1")])])
    assert len(letters) == 1, "a bad record is told once"
    for table in (present, new):
        table.apply_until(T0 + 1)
        assert table.lookup(np.array([key_of(5)], np.int64)).missing_B.tolist() == [False]
    assert (a.version, b.version) == (present.encoder_version, new.encoder_version)


def test_reading_continues_where_the_table_is_that_is_furthest_behind():
    at = {0: ItemPosition("log", 7, 0), 1: ItemPosition("log", 4, 1)}
    assert earliest([at]) == at
    assert earliest([at, {}]) == {}
    behind = {0: ItemPosition("log", 5, 2), 1: ItemPosition("other", 9, 0)}
    assert earliest([at, behind]) == {0: ItemPosition("log", 5, 2)}


def test_two_tables_of_one_version_are_our_mistake():
    embedder = embedder_of(0, 4)
    with pytest.raises(AssertionError):
        ItemIntake(table_of(embedder), embedder, (table_of(embedder), embedder))
