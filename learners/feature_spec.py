"""FeatureSpec: what the columns of a MiniBatch mean. Made from configuration by `stream/config`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class IdField:
    """One id per row, with a row of its own in an id table after `admit_after` sightings."""

    name: str
    dim: int = 16
    admit_after: int = 0
    rows_max: int = 1_000_000
    expire_ms: int = 0
    """Rows not updated for so long are freed; 0: never."""
    reader: str = ""
    """The module that alone reads it; empty: an input of every learner."""
    of: str = ""
    """The field whose ids it has too, with other keys: rows of a module's own. In no batch."""

    @property
    def salt(self) -> int:
        """What makes its keys of that field's keys; a signed 64-bit integer."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """Several ids per row (a multi-valued field or a history), pooled; shares `field`'s rows."""

    name: str
    field: str
    length: int
    is_history: bool
    reader: str = ""
    """As of a field. What a module reads gives ids their rows, whatever `admit_from_bags` says."""
    sequence: bool = False
    """The rows of its entries one by one, in their order, instead of their mean. An id is sighted
    once a batch, however often it occurs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseInput:
    """One float a row. `group`: `rate` (smoothed logit less prior), `count`, `prior`, `value`."""

    name: str
    group: str
    counter: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What one id table of dimension `dim` gives rows to: columns of ids, and bags, in order."""

    dim: int
    ids: tuple[IdField, ...]
    bags: tuple[Bag, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentBlock:
    """A part of every item vector that is a unit vector of its own, or all zeros: missing.

    Cosines have a meaning inside one block only.
    """

    name: str
    start: int
    dim: int

    @property
    def columns(self) -> slice:
        """Its columns of a content vector."""
        return slice(self.start, self.start + self.dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """Columns of a MiniBatch, in order.

    `ids` are the columns of `ids_BF`. Every bag's `field` names an entry of `ids` or of
    `bag_fields` (fields that occur in bags only). `labels` are the columns of `labels_BK`;
    `trained_label` is the one that the head learns.
    """

    ids: tuple[IdField, ...]
    bag_fields: tuple[IdField, ...]
    bags: tuple[Bag, ...]
    dense: tuple[DenseInput, ...]
    labels: tuple[str, ...]
    trained_label: str
    content_dim: int
    """Dimension of item vectors; 0: no content."""
    content_blocks: tuple[ContentBlock, ...] = ()
    """What they are made of, the one named "" first; empty: that one alone."""
    incoming_blocks: tuple[ContentBlock, ...] = ()
    """The same of the vectors that another encoder version makes beside them; empty: none does."""

    def __post_init__(self) -> None:
        """Assert that the blocks fill the vectors, without gap and in order."""
        at = 0
        for block in self.blocks:
            assert block.start == at, (block, at)
            at += block.dim
        assert at == self.content_dim, (self.content_blocks, self.content_dim)

    @property
    def blocks(self) -> tuple[ContentBlock, ...]:
        """The blocks of an item vector; none where there is no content."""
        whole = (ContentBlock(name="", start=0, dim=self.content_dim),) if self.content_dim else ()
        return self.content_blocks or whole

    @property
    def of_incoming(self) -> FeatureSpec:
        """The spec of a batch that has the vectors of the incoming version alone."""
        blocks = self.incoming_blocks
        dim = sum(block.dim for block in blocks)
        return replace(self, content_dim=dim, content_blocks=blocks, incoming_blocks=())

    def block(self, name: str = "") -> ContentBlock:
        """The block `name`: "" is what the base reads; raises ValueError for an unknown one."""
        for block in self.blocks:
            if block.name == name:
                return block
        if not self.blocks:
            raise ValueError("there are no item vectors; set items.dim")
        have = ", ".join(f"'{block.name}'" for block in self.blocks)
        raise ValueError(
            f"item vectors have no block '{name}', expected one of {have}; items.keep adds one for "
            "each encoder that it names"
        )

    @property
    def fields(self) -> tuple[IdField, ...]:
        """All fields that have rows of their own."""
        return self.ids + self.bag_fields

    @property
    def trained_column(self) -> int:
        """Column of the trained label."""
        return self.labels.index(self.trained_label)

    def read_by(self, modules: Iterable[str]) -> FeatureSpec:
        """The spec without fields and bags of other modules than these."""
        readers = {"", *modules}
        kept = [bag for bag in self.bags if bag.reader in readers]
        bagged = {bag.field for bag in kept}
        return replace(
            self,
            ids=tuple(f for f in self.ids if f.reader in readers),
            bag_fields=tuple(f for f in self.bag_fields if f.name in bagged),
            bags=tuple(kept),
        )

    def tables(self) -> list[Table]:
        """Id fields and bags by dimension, ascending: one id table each, in this order."""
        dims = sorted({f.dim for f in self.fields})
        return [
            Table(
                dim=dim,
                ids=tuple(f for f in self.ids if f.dim == dim),
                bags=tuple(b for b in self.bags if self.fields[self.field_of(b.field)].dim == dim),
            )
            for dim in dims
        ]

    def field_of(self, name: str) -> int:
        """Number of the field `name` in `fields`."""
        return next(i for i, f in enumerate(self.fields) if f.name == name)
