"""EventColumns: decoded records of one partition as columns, one row an item shown or a click.

Shapes: n rows, m rows of them impressions, F id fields of the impression, X dense fields, M places
of a several-valued field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


class EventKind(IntEnum):
    """What a row of EventColumns is."""

    IMPRESSION = 0
    CLICK = 1
    ORGANIC = 2
    WATERMARK = 3
    REJECTED = 4


class Reason(StrEnum):
    """Why an event was rejected, or not used. Words of reports, metrics and dead letters."""

    MALFORMED = "malformed"  # not msgpack, or not a map
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_TYPE = "unknown_type"  # an event type that does not belong in this topic
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_TIME = "bad_time"  # outside the years 2000 to 2100
    FUTURE_TIME = "future_time"  # over max_future_ms ahead of the record's own timestamp
    BAD_ID = "bad_id"  # an integer outside 64 bits, an empty or overlong string
    NOT_FINITE = "not_finite"  # NaN or infinity in a number that is read
    NULL_VALUE = "null_value"
    EMPTY_ENVELOPE = "empty_envelope"
    KEY_MISMATCH = "key_mismatch"  # the record's key is not the event's user or item
    TOO_LARGE = "too_large"
    BAD_VECTOR = "bad_vector"  # another dimension, dtype or encoder version
    TOO_LATE = "too_late"  # below the floor of the duplicate memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An event that cannot be used, as a value.

    `record` is the record's place in its batch, `index` the event's place in its envelope (0 for a
    single event; -1 when the whole record is meant). `detail` is one line for a person.
    """

    record: int
    index: int
    reason: Reason
    detail: str


@dataclass(slots=True, kw_only=True)
class ImpressionColumns:
    """Features of the impression rows: keys and numbers that configuration asked for.

    `ids_mF` int64 keys salted by field (0 only in columns that are filled later, from the item or
    by the pipeline); `multi_mM` one array a several-valued field, 0 padded; `dense_mX` float32.
    `names`: for rows with string ids the original (request id, item id, user id), else None; a
    missing list means that all ids are integers, which their keys give back.
    """

    ids_mF: I64
    multi_mM: tuple[I64, ...]
    dense_mX: NDArray[np.float32]
    position_m: NDArray[np.int32]
    propensity_m: NDArray[np.float32]
    names: list[tuple[int | str, int | str, int | str] | None] | None = None

    def rows(self, first: int, last: int) -> ImpressionColumns:
        """Rows `first` to `last` (exclusive), as views."""
        return ImpressionColumns(
            ids_mF=self.ids_mF[first:last],
            multi_mM=tuple(m[first:last] for m in self.multi_mM),
            dense_mX=self.dense_mX[first:last],
            position_m=self.position_m[first:last],
            propensity_m=self.propensity_m[first:last],
            names=None if self.names is None else self.names[first:last],
        )


@dataclass(slots=True, kw_only=True)
class EventColumns:
    """Rows of one partition's records, in (offset, index) order. A request's items are neighbours.

    `kind_n` EventKind; `ts_ms_n` the payload's time (for REJECTED rows: 0, they take their
    partition's clock); `request_n`, `item_n`, `user_n` keys, 0 where there is none; `click_kind_n`
    number of the click's kind in the configured list, -1 for a kind that nobody configured;
    `record_n` place of the record in the batch, `index_n` place of the row within its record;
    `imp_n` row of `impressions`, -1 for other kinds.
    """

    kind_n: NDArray[np.uint8]
    ts_ms_n: I64
    request_n: I64
    item_n: I64
    user_n: I64
    click_kind_n: NDArray[np.int16]
    record_n: NDArray[np.int32]
    index_n: NDArray[np.int32]
    imp_n: NDArray[np.int32]
    impressions: ImpressionColumns
    rejected: list[Rejected] = field(default_factory=list)
    unknown_fields: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.kind_n)
