"""FeatureSpec: what the columns of a MiniBatch mean. Made from configuration by `stream/config`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IdField:
    """One id per row, with a row of its own in an id table after `admit_after` sightings."""

    name: str
    dim: int = 16
    admit_after: int = 0
    rows_max: int = 1_000_000
    expire_ms: int = 0
    """Rows not updated for so long are freed; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bag:
    """Several ids per row (a multi-valued field or a history), pooled; shares `field`'s rows."""

    name: str
    field: str
    length: int
    is_history: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseInput:
    """One float a row. `group`: `rate` (smoothed logit less prior), `count`, `prior`, `value`."""

    name: str
    group: str
    counter: str = ""
    label: str = ""


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

    @property
    def fields(self) -> tuple[IdField, ...]:
        """All fields that have rows of their own."""
        return self.ids + self.bag_fields

    @property
    def trained_column(self) -> int:
        """Column of the trained label."""
        return self.labels.index(self.trained_label)

    def field_of(self, name: str) -> int:
        """Number of the field `name` in `fields`."""
        return next(i for i, f in enumerate(self.fields) if f.name == name)
