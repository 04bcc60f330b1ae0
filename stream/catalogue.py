"""All items of a store, a file of vectors or a record log, at one time (shell). Changes none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embeddings.blocks import KEPT_VERSION_MARK
from embeddings.embedder import Embedder
from embeddings.item_content import AttributeValue
from embeddings.store_reader import StoreReader
from embeddings.vector_codec import BadVector, ItemVector, decode_stored
from embeddings.vector_file import read_vector_file
from infra.errors import InputError
from stream.codec_items import decode_items
from stream.columns import Rejected
from stream.composition import embedder_of
from stream.config import Config
from stream.item_intake import content_of
from stream.record_log import RecordLog

ITEMS_MAX: Final = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Items with their vectors float32 [N, D] (zeros where not `present_N`) and attributes.

    `encoder_version`: of the vectors. `from_ms`, `until_ms`: times of the first and the last item;
    None where they are not recorded.
    """

    item_ids: list[int | str]
    vectors_ND: NDArray[np.float32]
    present_N: NDArray[np.bool_]
    attributes: list[Mapping[str, AttributeValue]]
    ts_ms: list[int]
    encoder_version: str

    @property
    def from_ms(self) -> int | None:
        """Time of the first item."""
        return min(self.ts_ms, default=None)

    @property
    def until_ms(self) -> int | None:
        """Time of the last item."""
        return max(self.ts_ms, default=None)

    def place_of(self, name: str) -> int:
        """Place of the item with the id that `name` spells; raises InputError for an unknown one.

        An integer id goes before a string of the same digits.
        """
        for item_id in ([int(name)] if _is_int(name) else []) + [name]:
            if item_id in self.item_ids:
                return self.item_ids.index(item_id)
        raise InputError(f"item '{name}': not among the {len(self.item_ids):,} items there are")


def read_catalogue(source: Path, config: Config | None, until_ms: int | None = None) -> Catalogue:
    """The items in `source`: a store's directory, a file of vectors, or a record log.

    Items of a log are encoded as `config` says. `until_ms`: only what was known before. Of vectors
    with several blocks the first one alone, as what is made of them compares vectors. Raises
    InputError where the source is none of these, or has no times to keep to `until_ms`.
    """
    if source.is_dir():
        reader = StoreReader(source)
        try:
            found = _collected(reader.items(), reader.encoder_version, until_ms)
        finally:
            reader.close()
        return _first_block(found, source, config)
    if not source.is_file():
        raise InputError(f"{source}: there is no such file or directory")
    if _is_vector_file(source):
        return _of_vector_file(source, until_ms)
    if config is None:
        raise InputError(f"{source}: a record log needs --config, which says how to encode items")
    if not config.items.dim:
        raise InputError(f"{source}: its items have no vectors: items.dim is 0; set it")
    embedder = embedder_of(replace(config, items=replace(config.items, keep={})))
    return _collected(_encoded(source, config, embedder, until_ms), embedder.version, until_ms)


def _first_block(found: Catalogue, source: Path, config: Config | None) -> Catalogue:
    """The catalogue with the first block of its vectors, where they have more than one."""
    main, kept, _ = found.encoder_version.partition(KEPT_VERSION_MARK)
    if not kept:
        return found
    if config is None or config.items.content_dim != found.vectors_ND.shape[1]:
        raise InputError(
            f"{source}: its vectors have several blocks ({found.vectors_ND.shape[1]} numbers in "
            "all); give the --config that they were made with, whose items.dim is the first one's"
        )
    vectors_ND = found.vectors_ND[:, : config.items.dim]
    present_N: NDArray[np.bool_] = np.linalg.norm(vectors_ND, axis=1) > 0
    return replace(found, vectors_ND=vectors_ND, present_N=present_N, encoder_version=main)


def titles_of(log: Path, topic: str) -> dict[int | str, str]:
    """Titles of the items in a record log, by id."""
    return {
        event.item.item_id: event.item.title
        for batches in RecordLog(log).batches_of(topic)
        for batch in batches
        for event in decode_items(batch)
        if not isinstance(event, Rejected) and event.item.title
    }


def _encoded(
    source: Path, config: Config, embedder: Embedder, until_ms: int | None
) -> Iterator[ItemVector]:
    for batches in RecordLog(source).batches_of(config.topics.items):
        for batch in batches:
            events = [e for e in decode_items(batch) if not isinstance(e, Rejected)]
            if until_ms is not None:
                events = [e for e in events if e.item.ts_ms < until_ms]
            for row in embedder.embed([content_of(event) for event in events]).rows:
                item = decode_stored(row.value)
                assert not isinstance(item, BadVector), item
                yield item


def _collected(items: Iterable[ItemVector], version: str, until_ms: int | None) -> Catalogue:
    """The last of each item."""
    found: dict[int | str, ItemVector] = {}
    for item in items:
        if item.deleted:
            found.pop(item.item_id, None)
        elif until_ms is None or item.ts_ms < until_ms:
            found[item.item_id] = item
        if len(found) > ITEMS_MAX:
            raise InputError(f"over {ITEMS_MAX:,} items; give a part of them")
    dim = max((item.dim for item in found.values()), default=0)
    vectors_ND = np.zeros((len(found), dim), np.float32)
    present_N = np.zeros(len(found), np.bool_)
    for n, item in enumerate(found.values()):
        if item.dim:
            vectors_ND[n], present_N[n] = item.vector(), True
    return Catalogue(
        item_ids=list(found), vectors_ND=vectors_ND, present_N=present_N,
        attributes=[item.attributes for item in found.values()],
        ts_ms=[item.ts_ms for item in found.values()], encoder_version=version,
    )  # fmt: skip


def _of_vector_file(source: Path, until_ms: int | None) -> Catalogue:
    file = read_vector_file(source)
    known_ms = file.facts.get("until_ms")
    if until_ms is not None and (known_ms is None or known_ms > until_ms):
        raise InputError(
            f"item vectors {source}: may know of what happened after --until "
            f"(its facts say until_ms {known_ms}); make them with an earlier --until"
        )
    n = len(file.item_ids)
    return Catalogue(
        item_ids=list(file.item_ids), vectors_ND=file.vectors_ND, present_N=np.ones(n, np.bool_),
        attributes=[{}] * n, ts_ms=[], encoder_version=file.version,
    )  # fmt: skip


def _is_vector_file(source: Path) -> bool:
    try:
        names: Any = pq.read_schema(source).names
    except Exception as error:
        raise InputError(
            f"{source}: expected a vector store, a file of item vectors or a record log "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    return "vector" in names


def _is_int(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
