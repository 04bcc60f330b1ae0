"""The item table: item vectors and attributes as a side input of the pipeline (rule 6).

Encodes nothing, reads no topic, and never holds back the watermark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embeddings.vector_cache import BatchRows, VectorCache, VectorCacheConfig
from embeddings.vector_codec import BadVector, ItemVector, decode_item_vector, misfit
from embeddings.vectors import VectorStore
from infra.state import Part
from stream.codec_spec import Source
from stream.item_attributes import AttributeFields
from stream.item_pending import (
    NEVER_MS,
    ItemPosition,
    ItemUpdate,
    LateUpdate,
    PendingItems,
    Place,
)
from stream.keys import key_of

I64 = NDArray[np.int64]
_ROWS_PER_WRITE = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTableConfig:
    """`topic` names the positions, `part` the snapshots' part; `pending_bytes_max` bounds updates.

    The bound is soft: `wants_more` turns False there, but nothing that is offered gets lost.
    """

    topic: str = "item-vectors"
    part: str = "items"
    pending_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        if self.pending_bytes_max < 1:
            raise ValueError("item table: pending_bytes_max must be at least 1")


@dataclass(slots=True, kw_only=True)
class ItemCounts:
    """Updates so far: `applied` (upserts and deletions), `deleted` of them, and not applied ones.

    `late`: offered after the boundary at which they should have been applied. `repeated`: offered
    again. `rejected`: unusable values. `other_versions`: vectors of an encoder version that is not
    read here; `tombstones`: records without value, which rid the topic of one; both are skipped.
    """

    applied: int = 0
    deleted: int = 0
    late: int = 0
    rejected: int = 0
    repeated: int = 0
    other_versions: int = 0
    tombstones: int = 0


class RefusedUpdate(NamedTuple):
    """An update whose value is not usable, and why; `place` counts within what was offered."""

    place: int
    reason: BadVector


class ItemFeatures(NamedTuple):
    """Attribute columns of n items; one array [n, M] for each several-valued field."""

    ids_nA: I64
    multi_nM: tuple[I64, ...]
    dense_nX: NDArray[np.float32]


class ItemTable:
    """Vectors and attributes of items as of the last boundary between learn steps.

    Updates wait until their key has passed and are applied in key order at the next boundary, so
    what a batch sees depends on the partitions' contents alone. One thread calls all of it.
    """

    def __init__(
        self,
        store: VectorStore,
        config: ItemTableConfig,
        cache: VectorCacheConfig,
        attributes: Sequence[Source] = (),
    ) -> None:
        self._store = store
        self._config = config
        self._dim = cache.dim
        self._fields = AttributeFields(attributes)
        self._cache = VectorCache(store, cache, self._fields)
        self._pending = PendingItems(_stored_positions(store, config.topic))
        self._late: Mapping[Place, int] = {}
        self.note_late: Callable[[LateUpdate], object] = lambda _late: None
        """Is told of each late update."""
        self._read_before: dict[int, ItemPosition] = {}
        self.counts = ItemCounts()
        self.version = 0
        """Grows whenever applied updates changed anything."""

    @property
    def encoder_version(self) -> str:
        """The version of all vectors."""
        return self._store.encoder_version

    @property
    def part_name(self) -> str:
        """Name of its part in snapshots."""
        return self._config.part

    @property
    def cache(self) -> VectorCache:
        """The hot level, for its counts."""
        return self._cache

    @property
    def pending(self) -> int:
        """Updates that wait."""
        return len(self._pending)

    def wants_more(self) -> bool:
        """False while the updates that wait fill their room."""
        return self._pending.nbytes < self._config.pending_bytes_max

    def next_positions(self) -> dict[int, ItemPosition]:
        """Where reading continues, by partition: behind all that was offered."""
        return dict(self._pending.positions)

    def offer(self, source_id: str, updates: Sequence[ItemUpdate]) -> list[RefusedUpdate]:
        """Takes updates, each partition's in its own order, and tells the unusable ones.

        An update that was taken before (by source, offset and event index) counts as repeated. A
        partition that changes its source starts again at the new one's beginning.
        """
        refused: list[RefusedUpdate] = []
        for place, update in enumerate(updates):
            if not self._pending.is_new(source_id, update):
                self.counts.repeated += 1
                continue
            fault = self._fault(update)
            if fault is not None:
                refused.append(RefusedUpdate(place, fault))
                self.counts.rejected += 1
                self._pending.skip(source_id, update)
                continue
            after_ms = self._late.get(update.place, NEVER_MS)
            late = self._pending.hold(source_id, update, after_ms)
            if late is not None:
                self.counts.late += 1
                if not self._pending.is_before(self._read_before, source_id, update):
                    self.note_late(late)
        return refused

    def follow(self, late: Mapping[Place, int]) -> None:
        """Let updates at these places count only behind the boundaries that they once missed."""
        self._late = late

    def skip(self, source_id: str, update: ItemUpdate) -> None:
        """Move on past an update that is not for this table; the table's clocks stay."""
        if self._pending.is_new(source_id, update):
            self._pending.skip(source_id, update)

    def apply_until(self, clock_ms: int) -> int:
        """How many updates were applied: all whose key is below `clock_ms`, in key order.

        To be called between learn steps: before the first released event and before each step. Each
        write to the store carries the positions of what it holds.
        """
        applied = 0
        while due := self._pending.pop_due(clock_ms, _ROWS_PER_WRITE):
            last = {update.item_key: update.value for _, update in due}
            puts = {key: value for key, value in last.items() if value is not None}
            keys = np.fromiter(puts, np.int64, len(puts))
            gone = np.fromiter((k for k, v in last.items() if v is None), np.int64)
            positions = {}
            for source_id, update in due:
                at = ItemPosition(source_id, update.offset, update.event_index + 1)
                positions[_position_name(self._config.topic, update.partition)] = at.to_bytes()
            self._store.put_many(keys, list(puts.values()), gone, positions)
            self._cache.drop(np.fromiter(last, np.int64, len(last)))
            self.counts.deleted += sum(update.value is None for _, update in due)
            applied += len(due)
        self._pending.pass_boundary(clock_ms)
        self.counts.applied += applied
        self.version += applied > 0
        return applied

    def read_again(self) -> None:
        """Forget how far the topic was read: the store is empty and must be filled anew.

        What was read before and is late now was not late then: nobody is told of it.
        """
        self._read_before = dict(self._pending.positions)
        self._pending.positions.clear()

    def lookup(
        self, target_B: I64, bags_BL: Sequence[I64] = (), *, compact: bool = False
    ) -> BatchRows:
        """Vectors of a batch by plain item keys, 0 for none; see `VectorCache.lookup`."""
        return self._cache.lookup(target_B, bags_BL, compact=compact)

    def attribute_columns(self, item_keys: I64) -> ItemFeatures:
        """Configured attributes of items by plain item keys, as salted keys and floats."""
        columns = self._cache.attributes(item_keys)
        cuts = np.cumsum(self._fields.multi_widths)[:-1].tolist()
        multis = np.split(columns.multi_nM, cuts, axis=1) if self._fields.multis else []
        return ItemFeatures(columns.ids_nA, tuple(multis), columns.dense_nX)

    def first_of(self, keys_BL: I64, multis: Sequence[int]) -> list[I64]:
        """First values of several-valued attributes of bags of items, each [B, L]; 0 for none.

        `multis`: numbers of attributes; `keys_BL`: plain item keys, 0 for none.
        """
        starts = np.cumsum([0, *self._fields.multi_widths])
        return self._cache.multi_columns(keys_BL, [int(starts[m]) for m in multis])

    def texts(self) -> list[str]:
        """Texts that were values of attributes, as far as they are remembered."""
        return self._fields.texts()

    def checkpoint(self, path: Path) -> None:
        """A consistent copy of the store at `path`, which must not exist."""
        self._store.checkpoint(path)

    def export_full(self) -> Sequence[Part]:
        """What waits, clocks, positions and counts. The store itself has `checkpoint`."""
        arrays, meta = self._pending.to_state()
        own = {"counts": asdict(self.counts), "version": self.version, "topic": self._config.topic}
        encoder = {"encoder": self.encoder_version}
        meta |= own | encoder
        return [Part(name=self._config.part, part_class="train", arrays=arrays, meta=meta)]

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same as `export_full`: it is small."""
        del mark
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Takes the state from its part; the store must be its checkpoint's copy.

        Raises KeyError without the part, ValueError when its encoder is not the store's.
        """
        part = parts[self._config.part]
        if part.meta["encoder"] != self.encoder_version:
            raise ValueError(
                f"part '{part.name}': expected encoder '{self.encoder_version}', "
                f"got '{part.meta['encoder']}'"
            )
        self._pending = PendingItems.from_state(part)
        self.counts = ItemCounts(**part.meta["counts"])
        self.version = part.meta["version"]

    def _fault(self, update: ItemUpdate) -> BadVector | None:
        """Why an update cannot be used; None for a good one."""
        if update.value is None:
            return None
        item = decode_item_vector(update.value)
        if isinstance(item, BadVector):
            return item
        return misfit(item, self.encoder_version, self._dim)


def update_of_value(
    partition: int, offset: int, event_index: int, value: bytes
) -> ItemUpdate | BadVector:
    """The update that the value bytes of an item vector stand for, or why they stand for none."""
    item = decode_item_vector(value)
    if isinstance(item, BadVector):
        return item
    return update_of(partition, offset, event_index, item, value)


def update_of(
    partition: int, offset: int, event_index: int, item: ItemVector, value: bytes
) -> ItemUpdate:
    """The update of an item vector that is decoded already; `value` None deletes the item."""
    return ItemUpdate(
        partition=partition,
        offset=offset,
        event_index=event_index,
        ts_ms=item.ts_ms,
        item_key=key_of(item.item_id),
        value=None if item.deleted else value,
    )


def _position_name(topic: str, partition: int) -> str:
    return f"{topic}/{partition}"


def _stored_positions(store: VectorStore, topic: str) -> dict[int, ItemPosition]:
    """The positions of `topic` in the store, by partition."""
    found = {}
    for name, position in store.positions().items():
        of, _, partition = name.rpartition("/")
        if of == topic:
            found[int(partition)] = ItemPosition.from_bytes(position)
    return found
