"""What a boundary shows depends on the contents of partitions: not on fetches, cache or kills."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_codec import encode_item_vector
from embeddings.vectors import MemoryVectorStore
from stream.item_pending import ItemUpdate, LateUpdate, Place
from stream.items import ItemTable, ItemTableConfig
from stream.keys import key_of, keys_of_ints
from tests.support.examples import examples

T0 = 1_650_000_000_000
ITEMS = 5
BOUNDARIES = (3, 7, 12, 30)

# One partition: (item, time, deleted); times jitter, so clocks and times differ.
partitions = st.lists(
    st.lists(
        st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 20), st.booleans()), max_size=12
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


def updates_of(partition, events):
    for offset, (item, time, deleted) in enumerate(events):
        number = partition * 100 + offset + 1
        value = encode_item_vector(
            item_id=item, ts_ms=T0 + time, encoder="e", vector=np.array([number], np.float32)
        )
        yield ItemUpdate(partition, offset, 0, T0 + time, key_of(item), None if deleted else value)


def oracle(all_events, boundary):
    """The newest update of each item by (clock, partition, offset) below the boundary."""
    keyed = []
    for partition, events in enumerate(all_events):
        clock = 0
        for offset, (item, time, deleted) in enumerate(events):
            clock = max(clock, time)
            keyed.append((clock, partition, offset, item, deleted))
    state = [0.0] * ITEMS
    for clock, partition, offset, item, deleted in sorted(keyed):
        if clock < boundary:
            state[item] = 0.0 if deleted else float(partition * 100 + offset + 1)
    return state


def seen(table):
    rows = table.lookup(keys_of_ints(np.arange(ITEMS)))
    return rows.table_VC[rows.target_B, 0].tolist()


def table_of(store, rows_max):
    return ItemTable(store, ItemTableConfig(), VectorCacheConfig(dim=1, rows_max=rows_max))


@examples(80)
@given(partitions, st.randoms(use_true_random=False), st.sampled_from((1, 2, 100)), st.booleans())
def test_every_interleaving_shows_the_same_at_every_boundary(all_events, random, rows_max, restore):
    queues = [list(updates_of(p, events)) for p, events in enumerate(all_events)]
    store = MemoryVectorStore("e")
    table = table_of(store, rows_max)
    while any(queues):
        queue = random.choice([q for q in queues if q])
        pull = random.randint(1, 4)
        table.offer("s", queue[:pull])
        del queue[:pull]
    for boundary in BOUNDARIES:
        table.apply_until(T0 + boundary)
        assert seen(table) == oracle(all_events, boundary)
        if restore:
            parts = {part.name: part for part in table.export_full()}
            table = table_of(store, rows_max)
            table.apply(parts)
            assert seen(table) == oracle(all_events, boundary)
    total = sum(map(len, all_events))
    assert (table.counts.applied, table.counts.late, table.pending) == (total, 0, 0)


@examples(60)
@given(partitions, st.randoms(use_true_random=False))
def test_late_updates_change_when_but_never_what(all_events, random):
    """However late they come, after the last boundary everything is as the keys say."""
    queues = [list(updates_of(p, events)) for p, events in enumerate(all_events)]
    table = table_of(MemoryVectorStore("e"), 100)
    boundaries = list(BOUNDARIES)
    late = 0
    clocks = [0] * len(queues)
    passed = 0
    while any(queues):
        if boundaries and random.random() < 0.3:
            passed = boundaries.pop(0)
            table.apply_until(T0 + passed)
        queue = random.choice([q for q in queues if q])
        update = queue.pop(0)
        clocks[update.partition] = max(clocks[update.partition], update.ts_ms - T0)
        late += clocks[update.partition] < passed
        table.offer("s", [update])
    table.apply_until(T0 + BOUNDARIES[-1] + 1)
    assert table.counts.late == late
    assert table.pending == 0
    one_partition_items = len({(i, p) for p, es in enumerate(all_events) for i, _, _ in es})
    if one_partition_items == len({i for es in all_events for i, _, _ in es}):
        assert seen(table) == oracle(all_events, BOUNDARIES[-1])


@examples(60)
@given(partitions, st.randoms(use_true_random=False))
def test_who_follows_late_updates_sees_the_same_at_every_boundary(all_events, random):
    """A run whose updates come when they come, then one that has all of them at once."""
    queues = [list(updates_of(p, events)) for p, events in enumerate(all_events)]
    live, followed = (table_of(MemoryVectorStore("e"), 100) for _ in range(2))
    late: list[LateUpdate] = []
    live.note_late = late.append
    shown = []
    for boundary in BOUNDARIES:
        for queue in queues:
            n = random.randint(0, len(queue))
            live.offer("s", queue[:n])
            del queue[:n]
        live.apply_until(T0 + boundary)
        shown.append(seen(live))
    for queue in queues:
        live.offer("s", queue)  # too late for any
    followed.follow({Place(*one[:3]): one.after_ms for one in late})
    for partition, events in enumerate(all_events):
        followed.offer("s", list(updates_of(partition, events)))
    assert followed.counts.late == live.counts.late == len(late)
    for boundary, expected in zip(BOUNDARIES, shown, strict=True):
        followed.apply_until(T0 + boundary)
        assert seen(followed) == expected
