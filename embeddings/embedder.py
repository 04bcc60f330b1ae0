"""The embedder: item content in, item-vector values out. Reads no topic and writes no store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from embeddings.blocks import BlockEncoder
from embeddings.codes.codebook import (
    CODES_PREFIX,
    CODES_VERSION_MARK,
    Codebook,
    attributes_of,
)
from embeddings.encoders.protocol import Encoder, Loadable
from embeddings.item_content import AttributeValue, ItemContent, usable_attributes
from embeddings.vector_codec import BadVector, DType, encode_item_vector
from infra.errors import InputError

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """`supplied` names the entry of an item's `vectors` that is used instead of the encoder's.

    Empty: none is. `remembered_items_max` bounds the memory of what each item last looked like;
    an item beyond it is encoded again, to the same vector.
    """

    dtype: DType = "float16"
    supplied: str = ""
    remembered_items_max: int = 1_000_000

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"embedder: dtype must be float16 or float32, got '{self.dtype}'")
        if self.remembered_items_max < 0:
            raise ValueError("embedder: remembered_items_max must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectorRow:
    """One item vector to be written: `value` as `vector_codec` encodes it. `index`: its item's."""

    index: int
    item_id: int | str
    ts_ms: int
    value: bytes
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What became of a batch: `rows` in the items' order, `rejected` as (index, why)."""

    rows: list[ItemVectorRow]
    unchanged: int
    rejected: list[tuple[int, BadVector]]


class Embedder:
    """Content to item vectors; an item whose content is as it was gives no row."""

    def __init__(
        self, encoder: Encoder, config: EmbedderConfig, codebook: Codebook | None = None
    ) -> None:
        """With a `codebook`, rows carry the codes of their vectors as attributes `codes.…`.

        Raises InputError where the codebook is for vectors of another version or length.
        """
        self._encoder = encoder
        self._config = config
        self._codebook = codebook
        self._seen: OrderedDict[int | str, bytes] = OrderedDict()
        supplied = f"+{config.supplied}" if config.supplied else ""
        self._version = f"{encoder.version}{supplied}"
        if codebook is not None:
            main = encoder.main if isinstance(encoder, BlockEncoder) else encoder
            ours = (f"{main.version}{supplied}", main.dim)
            theirs = (codebook.encoder_version, codebook.dim)
            if ours != theirs:
                raise InputError(
                    f"codebook {codebook.version}: is for vectors of encoder '{theirs[0]}' with "
                    f"{theirs[1]} numbers, but the configuration makes those of '{ours[0]}' with "
                    f"{ours[1]}; fit a book for these, or set the encoder back"
                )
            self._version += f"{CODES_VERSION_MARK}{codebook.version}"

    @property
    def version(self) -> str:
        """The encoder version that all rows carry."""
        return self._version

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._encoder.dim

    def load(self) -> None:
        """Read the encoder's weights now, not at the first item; raises EncoderUnavailable."""
        if isinstance(self._encoder, Loadable):
            self._encoder.load()

    def embed(self, items: Sequence[ItemContent]) -> Embedded:
        """Rows of the items that are new, changed or deleted. Encodes them in one call."""
        changed = [i for i, item in enumerate(items) if self._is_news(item)]
        alive = [i for i in changed if not items[i].deleted]
        vectors_BD, present_B = self._encoder.encode_many([items[i] for i in alive])
        vectors: dict[int, Vector | BadVector | None] = {
            i: self._vector(items[i], vectors_BD[n] if present_B[n] else None)
            for n, i in enumerate(alive)
        }
        codes = self._codes({i: v for i, v in vectors.items() if isinstance(v, np.ndarray)})
        rows: list[ItemVectorRow] = []
        rejected: list[tuple[int, BadVector]] = []
        for i in changed:
            row = self._row(i, items[i], vectors.get(i), codes.get(i, {}))
            if isinstance(row, BadVector):
                self._seen.pop(items[i].item_id, None)
                rejected.append((i, row))
            else:
                rows.append(row)
        return Embedded(rows=rows, unchanged=len(items) - len(changed), rejected=rejected)

    def _is_news(self, item: ItemContent) -> bool:
        """Whether the item differs from what was last seen of it; remembers it."""
        if item.deleted:
            self._seen.pop(item.item_id, None)
            return True
        digest = _digest(item)
        if self._seen.get(item.item_id) == digest:
            self._seen.move_to_end(item.item_id)
            return False
        self._seen[item.item_id] = digest
        self._seen.move_to_end(item.item_id)
        while len(self._seen) > self._config.remembered_items_max:
            self._seen.popitem(last=False)
        return True

    def _vector(self, item: ItemContent, encoded: Vector | None) -> Vector | BadVector | None:
        """The sender's vector where one is to be used and there, else the encoder's."""
        supplied = item.vectors.get(self._config.supplied) if self._config.supplied else None
        return encoded if supplied is None else _numbers(supplied, self.dim)

    def _codes(self, vectors: dict[int, Vector]) -> dict[int, dict[str, AttributeValue]]:
        """Attributes of the vectors' codes, as the vectors will be stored."""
        if self._codebook is None or not vectors:
            return {}
        with np.errstate(over="ignore"):
            stored_BD = np.stack(list(vectors.values())).astype(self._config.dtype)
        stored_BD = stored_BD[:, : self._codebook.dim]  # the first block
        usable_B = np.isfinite(stored_BD).all(axis=1) & stored_BD.any(axis=1)
        codes = self._codebook.encode_many(stored_BD, usable_B)
        return {i: attributes_of(codes, n) for n, i in enumerate(vectors)}

    def _row(
        self,
        index: int,
        item: ItemContent,
        vector: Vector | BadVector | None,
        codes: dict[str, AttributeValue],
    ) -> ItemVectorRow | BadVector:
        if isinstance(vector, BadVector):
            return vector
        attributes = usable_attributes(item.attributes)
        if self._codebook is not None:  # the names of codes are ours
            attributes = {k: v for k, v in attributes.items() if not k.startswith(CODES_PREFIX)}
        try:
            value = encode_item_vector(
                item_id=item.item_id,
                ts_ms=item.ts_ms,
                encoder=self._version,
                vector=vector,
                dtype=self._config.dtype,
                attributes=attributes | codes,
                deleted=item.deleted,
            )
        except ValueError as error:
            return BadVector(reason="bad_vector", detail=str(error))
        return ItemVectorRow(
            index=index, item_id=item.item_id, ts_ms=item.ts_ms, value=value, deleted=item.deleted
        )


def _numbers(supplied: Sequence[float] | bytes, dim: int) -> NDArray[np.float32] | BadVector:
    """A sender's vector as float32 [dim], or why it cannot be one."""
    try:
        if isinstance(supplied, bytes):
            numbers = np.frombuffer(supplied, "<f4")
        else:
            numbers = np.asarray(supplied, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        return BadVector(reason="bad_vector", detail=f"supplied vector: {error}")
    if numbers.shape != (dim,):
        detail = f"supplied vector: expected [{dim}], got {list(numbers.shape)}"
        return BadVector(reason="bad_vector", detail=detail)
    if not np.isfinite(numbers).all():
        return BadVector(reason="not_finite", detail="supplied vector: a NaN or an infinity")
    return numbers


def _digest(item: ItemContent) -> bytes:
    """128 bits of the item's content, its time left out."""
    vectors = {name: v if isinstance(v, bytes) else list(v) for name, v in item.vectors.items()}
    content = [item.title, item.text, item.image, usable_attributes(item.attributes), vectors]
    return xxhash.xxh3_128_digest(msgpack.packb(content))
