"""The embedder: item content in, item-vector values out. Reads no topic and writes no store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

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
from embeddings.encoders.protocol import Encoder, Loadable, read_of, refusals
from embeddings.int8_rows import quantised
from embeddings.item_content import AttributeValue, ItemContent, usable_attributes
from embeddings.row_memory import Place, RecentRows, Remembered, RowMemory
from embeddings.vector_codec import (
    DTYPES,
    BadVector,
    DType,
    decode_stored,
    encode_item_vector,
)
from infra.errors import InputError

Vector = NDArray[np.float32]
Made = Literal["encoded", "reused", "supplied", "deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """`supplied` names the entry of an item's `vectors` that is used instead of the encoder's.

    Empty: none is. `remembered_bytes_max` bounds the memory of items' last rows, where no other
    memory is given; an item beyond it is encoded again, to the same vector.
    """

    dtype: DType = "float16"
    supplied: str = ""
    remembered_bytes_max: int = 256 << 20

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ValueError(f"embedder: dtype must be one of {known}, got '{self.dtype}'")
        if self.remembered_bytes_max < 0:
            raise ValueError("embedder: remembered_bytes_max must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectorRow:
    """One item vector to be written: `value` as `vector_codec` encodes it. `index`: its item's.

    `made`: where the vector is from; `memory`: what is remembered of the row.
    """

    index: int
    item_id: int | str
    ts_ms: int
    value: bytes
    made: Made
    memory: Remembered

    @property
    def deleted(self) -> bool:
        """Whether the row deletes its item."""
        return self.made == "deleted"


@dataclass(slots=True, kw_only=True)
class Embedded:
    """What became of a batch: `rows` in the items' order, `rejected` as (index, why).

    `unchanged`: items whose row would be as it was but for its time; `done`: events whose row, or a
    later one of their item, is written already.
    """

    rows: list[ItemVectorRow] = field(default_factory=list)
    rejected: list[tuple[int, BadVector]] = field(default_factory=list)
    unchanged: int = 0
    done: int = 0


class _News(NamedTuple):
    """An item that needs a row, its digests, and its vector's source; None: to be encoded."""

    at: int
    content: bytes
    row: bytes
    made: Made
    vector: Vector | None


class Embedder:
    """Content to item vectors, each content of an item once as far as the memory goes.

    An item whose content and attributes are as they were gives no row. Where only attributes
    changed that the encoder does not read, the row has the vector as it was, bit for bit.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: EmbedderConfig,
        codebook: Codebook | None = None,
        memory: RowMemory | None = None,
    ) -> None:
        """With a `codebook`, rows carry the codes of their vectors as attributes `codes.…`.

        `memory`: of last rows; None: the rows used last are kept in the process.
        Raises InputError where the codebook is for vectors of another version or length.
        """
        self._encoder = encoder
        self._config = config
        self._codebook = codebook
        self._memory = RecentRows(config.remembered_bytes_max) if memory is None else memory
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

    @property
    def form(self) -> str:
        """Names everything that equal items' rows depend on: the version and the stored form."""
        return f"{self._version} {self._config.dtype}"

    def refusals(self) -> dict[str, int]:
        """Contents so far that the encoders could not use, by reason."""
        return refusals(self._encoder)

    def remember_in(self, memory: RowMemory) -> None:
        """Use this memory from now on."""
        self._memory = memory

    def embed(
        self, items: Sequence[ItemContent], places: Sequence[Place] | None = None
    ) -> Embedded:
        """Rows of the items that are new, changed or deleted.

        `places` of the items' events: one that the item's remembered row reaches is done already.
        """
        result = Embedded()
        for indices in _runs(items):
            news = self._news(items, places, indices, result)
            codes = self._codes(news)
            written: list[ItemVectorRow] = []
            for one in news:
                row = self._row(items[one.at], one, codes.get(one.at, {}), places)
                if isinstance(row, BadVector):
                    result.rejected.append((one.at, row))
                else:
                    written.append(row)
            self._memory.put_many([r.item_id for r in written], [r.memory for r in written])
            result.rows += written
        result.rejected.sort(key=lambda one: one[0])
        return result

    def _news(
        self,
        items: Sequence[ItemContent],
        places: Sequence[Place] | None,
        indices: Sequence[int],
        result: Embedded,
    ) -> list[_News]:
        """Items that need a row, with their vectors. Encodes in one call what must be."""
        known = self._memory.get_many([items[i].item_id for i in indices])
        news: list[_News] = []
        for i, before in zip(indices, known, strict=True):
            place = places[i] if places else None
            if before and before.place and place and before.place.reaches(place):
                result.done += 1
                continue
            one = self._one(i, items[i], before)
            if one is None:
                result.unchanged += 1
            elif isinstance(one, BadVector):
                result.rejected.append((i, one))
            else:
                news.append(one)
        encode = [n for n, one in enumerate(news) if one.made == "encoded"]
        if encode:
            contents = [items[news[n].at] for n in encode]
            vectors_BD, present_B = self._encoder.encode_many(contents)
            for row, n in enumerate(encode):
                if present_B[row]:
                    news[n] = news[n]._replace(vector=vectors_BD[row])
        return news

    def _one(
        self, index: int, item: ItemContent, before: Remembered | None
    ) -> _News | BadVector | None:
        """What is to be done for an item; None: nothing."""
        if item.deleted:
            row = _digest([self.form, item.item_id])
            same = before is not None and before.row == row
            return None if same else _News(index, b"", row, "deleted", None)
        given = item.vectors.get(self._config.supplied) if self._config.supplied else None
        supplied = None if given is None else _numbers(given, self.dim)
        if isinstance(supplied, BadVector):
            return supplied
        read = read_of(self._encoder, item) if supplied is None else supplied.tobytes()
        content = _digest([self.form, supplied is None, read])
        row = _digest([self.form, item.item_id, content, usable_attributes(item.attributes)])
        if before is not None and before.row == row:
            return None
        if supplied is not None:
            return _News(index, content, row, "supplied", supplied)
        if before is None or before.content != content:
            return _News(index, content, row, "encoded", None)
        was = decode_stored(before.value)
        if isinstance(was, BadVector):  # damaged on its way here: made anew
            return _News(index, content, row, "encoded", None)
        return _News(index, content, row, "reused", was.vector() if was.dim else None)

    def _codes(self, news: Sequence[_News]) -> dict[int, dict[str, AttributeValue]]:
        """Attributes of the vectors' codes, as the vectors will be stored, by item index."""
        vectors = {one.at: self._stored(one.vector) for one in news if one.vector is not None}
        if self._codebook is None or not vectors:
            return {}
        stored_BD = np.stack(list(vectors.values()))
        stored_BD = stored_BD[:, : self._codebook.dim]  # the first block
        usable_B = np.isfinite(stored_BD).all(axis=1) & stored_BD.any(axis=1)
        codes = self._codebook.encode_many(stored_BD, usable_B)
        return {i: attributes_of(codes, n) for n, i in enumerate(vectors)}

    def _stored(self, vector: Vector) -> NDArray[Any]:
        """The numbers as who reads the row finds them."""
        if self._config.dtype != "int8":
            with np.errstate(over="ignore"):
                return vector.astype(self._config.dtype)
        if not np.isfinite(vector).all():
            return vector
        numbers, scale = quantised(vector)
        return numbers * np.float32(scale)

    def _row(
        self,
        item: ItemContent,
        one: _News,
        codes: dict[str, AttributeValue],
        places: Sequence[Place] | None,
    ) -> ItemVectorRow | BadVector:
        attributes = usable_attributes(item.attributes)
        if self._codebook is not None:  # the names of codes are ours
            attributes = {k: v for k, v in attributes.items() if not k.startswith(CODES_PREFIX)}
        try:
            value = encode_item_vector(
                item_id=item.item_id,
                ts_ms=item.ts_ms,
                encoder=self._version,
                vector=one.vector,
                dtype=self._config.dtype,
                attributes=attributes | codes,
                deleted=item.deleted,
            )
        except ValueError as error:
            return BadVector(reason="bad_vector", detail=str(error))
        place = places[one.at] if places else None
        memory = Remembered(content=one.content, row=one.row, value=value, place=place)
        return ItemVectorRow(
            index=one.at, item_id=item.item_id, ts_ms=item.ts_ms, value=value, made=one.made,
            memory=memory,
        )  # fmt: skip


def _runs(items: Sequence[ItemContent]) -> Iterator[list[int]]:
    """Indices in order, cut wherever an item comes again: what it was must be known by then."""
    run: list[int] = []
    ids: set[int | str] = set()
    for i, item in enumerate(items):
        if item.item_id in ids:
            yield run
            run, ids = [], set()
        run.append(i)
        ids.add(item.item_id)
    if run:
        yield run


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


def _digest(content: object) -> bytes:
    """128 bits of plain values."""
    try:
        packed = msgpack.packb(content)
    except (TypeError, ValueError, OverflowError):  # what only an encoder of one's own reads
        packed = repr(content).encode(errors="surrogatepass")
    return xxhash.xxh3_128_digest(packed)
