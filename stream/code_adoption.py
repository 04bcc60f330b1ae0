"""A running model takes on a new codebook: its items coded anew, its rows of codes carried over.

Works on a snapshot whose worker is stopped, and leaves another snapshot beside it (shell).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from embeddings.codebook_file import read_codebook
from embeddings.codes.codebook import CODES_PREFIX, Codebook, attributes_of
from embeddings.item_content import Attributes
from embeddings.store_reader import StoreReader
from embeddings.vector_codec import ItemVector, decode_item_vector, encode_item_vector
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from infra import config as loader
from infra.errors import InputError
from infra.snapshot_format import SnapshotRef
from infra.state import Part
from learners.net_learner import NetLearner
from learners.row_transfer import carry_over
from stream.checkpoint import NEXT_VECTORS, VECTORS, Checkpointer
from stream.code_features import code_features
from stream.composition import Composition, compose, embedder_of
from stream.config import CODES_PATH, Config
from stream.feature_plan import ATTRIBUTE
from stream.item_pending import PendingItems
from stream.keys import key_of, salt_of, salted

_CHUNK = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeField:
    """A field of the ranker whose ids are codes: its attribute, and how many of a list count."""

    name: str
    attribute: str
    length: int


@dataclass(slots=True, kw_only=True)
class Pairs:
    """Old and new keys of one field, a pair for each item (and place) that has both."""

    old: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)

    @property
    def moved(self) -> int:
        """Pairs of different keys."""
        return sum(a != b for a, b in zip(self.old, self.new, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What became of it. `changed`: share of items with another code, by attribute; None: no item.

    `rows`: rows carried over, by field. `counters`: names of counters keyed by codes, which stay.
    """

    ref: SnapshotRef
    parent: SnapshotRef
    version: str
    items: int
    changed: Mapping[str, float | None]
    rows: Mapping[str, int]
    counters: tuple[str, ...]


def code_fields(config: Config) -> list[CodeField]:
    """Fields of codes, configured ones and those of the ranker's modules."""
    features = [*config.feature, *code_features(config)]
    return [
        CodeField(name=f.name, attribute=f.path.removeprefix(ATTRIBUTE),
                  length=f.length if f.kind == "multi-id" else 1)
        for f in features if f.path.startswith(CODES_PATH) and f.kind != "dense"
    ]  # fmt: skip


def adopt(folder: Path, book_file: Path, scratch: Path) -> Adopted:
    """The newest snapshot below `folder` with the codes of another book, as a new snapshot.

    Items score as before but for what their other codes say: each code takes the row of the code
    that most of its items had. `scratch` must be on `folder`'s file system and is left for the
    caller to remove. Raises InputError where snapshot and book do not fit.
    """
    checkpoints = Checkpointer(folder, scratch)
    found = checkpoints.find()
    if found.ref is None:
        raise InputError(f"{folder}: no valid snapshot; name the worker's snapshot folder")
    if NEXT_VECTORS in checkpoints.store.manifest(found.ref).linked:
        raise InputError(
            f"snapshot {found.ref}: a migration of item vectors is under way; end it first"
        )
    config = loader.build(Config, found.meta["config"])
    if not config.items.codebook:
        raise InputError(f"snapshot {found.ref}: its configuration has no items.codebook to change")
    fresh = replace(config, items=replace(config.items, codebook=str(book_file)))
    old_version, version = embedder_of(config).version, embedder_of(fresh).version
    if old_version == version:
        raise InputError(f"codebook {book_file}: is the one that the snapshot has already")
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoints.prepare_vectors(found.ref, scratch / "old")
    composition = compose(config, scratch / "old")
    try:
        checkpoints.restore(found, composition)
        learner = composition.pipeline.learner
        if not isinstance(learner, NetLearner):
            raise InputError(f"ranker '{config.ranker.name}': it has no rows to carry over")
        book = read_codebook(book_file)
        fields = code_fields(config)
        items, pairs = _recoded_store(composition, book, version, scratch, fields)
        rows = {name: _carried(learner, name, both) for name, both in pairs.items()}
        parts = [
            _recoded_items(part, book, version) if part.name == "items" else part
            for part in composition.pipeline.export_full()
        ]
    finally:
        composition.close()
    epoch = checkpoints.store.claim_epoch(found.ref)
    ref = checkpoints.store.write(
        epoch, composition.pipeline.ledger.samples, parts,
        dict(found.meta) | {"config": loader.to_dict(fresh)},
        linked_dirs={VECTORS: scratch / "copy"},
    )  # fmt: skip
    by_name = {f.name: f.attribute.removeprefix(CODES_PREFIX) for f in code_fields(config)}
    changed = {by_name[n]: both.moved / len(both.old) if both.old else None
               for n, both in pairs.items()}  # fmt: skip
    keyed = tuple(c.name for c in config.counter if set(c.keys) & set(by_name))
    return Adopted(
        ref=ref, parent=found.ref, version=version, items=items, changed=changed,
        rows=rows, counters=keyed,
    )  # fmt: skip


def _recoded_store(
    composition: Composition, book: Codebook, version: str, scratch: Path,
    fields: Sequence[CodeField],
) -> tuple[int, dict[str, Pairs]]:  # fmt: skip
    """Write all items with new codes to a store of their own; their number, and pairs by field."""
    written, pairs = 0, {f.name: Pairs() for f in fields}
    store = RocksVectorStore(RocksVectorStoreConfig(path=scratch / "new"), version)
    composition.pipeline.items.checkpoint(scratch / "read")
    reader = StoreReader(scratch / "read")
    try:
        items = reader.items()
        while chunk := list(islice(items, _CHUNK)):
            codes = _codes(chunk, book)
            for one in fields:
                _pair(pairs[one.name], one, chunk, codes)
            keys = np.array([key_of(item.item_id) for item in chunk], np.int64)
            values = [_recoded(i, c, version) for i, c in zip(chunk, codes, strict=True)]
            store.put_many(keys, values, NO_KEYS, {})
            written += len(chunk)
        store.put_many(NO_KEYS, [], NO_KEYS, composition.store.positions())
        store.checkpoint(scratch / "copy")
    finally:
        reader.close()
        store.close()
    return written, pairs


def _codes(items: Sequence[ItemVector], book: Codebook) -> list[Attributes]:
    """Code attributes of items by the vectors that they are stored with, as an embedder does it."""
    vectors_BD = np.zeros((len(items), book.dim), np.float32)
    for b, item in enumerate(items):
        if item.dim:
            vectors_BD[b] = item.vector()[: book.dim]
    codes = book.encode_many(vectors_BD, np.asarray(vectors_BD.any(axis=1)))
    return [attributes_of(codes, b) for b in range(len(items))]


def _pair(
    pairs: Pairs, one: CodeField, items: Sequence[ItemVector], codes: Sequence[Attributes]
) -> None:
    salt = salt_of(one.name)
    old: list[int] = []
    new: list[int] = []
    for item, fresh in zip(items, codes, strict=True):
        for a, b in zip(
            _listed(item.attributes, one), _listed(fresh, one), strict=False
        ):  # a list of another book may be longer
            old.append(key_of(a))
            new.append(key_of(b))
    pairs.old += salted(np.array(old, np.int64), salt).tolist()
    pairs.new += salted(np.array(new, np.int64), salt).tolist()


def _listed(attributes: Attributes, one: CodeField) -> list[Any]:
    value = attributes.get(one.attribute)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return values[: one.length]


def _recoded(item: ItemVector, codes: Attributes, version: str) -> bytes:
    """The item's value with other codes and version; vector and other attributes as they are."""
    own = {k: v for k, v in item.attributes.items() if not k.startswith(CODES_PREFIX)}
    event: dict[str, Any] = msgpack.unpackb(
        encode_item_vector(item_id=item.item_id, ts_ms=item.ts_ms, encoder=version, vector=None,
                           dtype=item.dtype, attributes=own | dict(codes), deleted=item.deleted)
    )  # fmt: skip
    # The numbers are copied as bytes: what a rounding might change is not read.
    event |= {"dim": item.dim, "data": item.data}
    if item.dtype == "int8":
        event["scale"] = item.scale
    value: bytes = msgpack.packb(event)
    assert isinstance(decode_item_vector(value), ItemVector)
    return value


def _recoded_items(part: Part, book: Codebook, version: str) -> Part:
    """The part of the item table with the updates that wait coded anew."""

    def recode(value: bytes) -> bytes:
        item = decode_item_vector(value)
        assert isinstance(item, ItemVector), "an update was checked before it was kept"
        return _recoded(item, _codes([item], book)[0], version)

    waiting = PendingItems.from_state(part)
    waiting.change_values(recode)
    arrays, meta = waiting.to_state()
    return Part(name=part.name, part_class=part.part_class, arrays=arrays,
                meta=dict(part.meta) | meta | {"encoder": version})  # fmt: skip


def _carried(learner: NetLearner, name: str, pairs: Pairs) -> int:
    table = next((t for t in learner.tables if name in [f.name for f in t.fields]), None)
    if table is None:
        return 0
    old, new = (np.array(keys, np.int64) for keys in (pairs.old, pairs.new))
    return carry_over(table, name, old, new, clock_ms=learner.clock_ms, step=learner.step)
