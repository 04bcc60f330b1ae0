"""Fields of impression rows to ImpressionColumns, in whatever form they came. Reads no bytes."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.codec_blocks import empty_impressions
from stream.codec_spec import ITEM_PREFIX, DecodeSpec, ServedSource
from stream.codec_values import Bad
from stream.columns import I64, ImpressionColumns
from stream.keys import keys_of_ints, salted

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 was a Thursday; Monday is 0."""


class Fields(Protocol):
    """Values of `context.X` and `features.X` as columns, one row an item shown."""

    def keys(self, path: str, bad: Bad) -> I64:
        """Plain keys, 0 where the field is missing."""
        ...

    def multi(self, path: str, length: int, salt: np.int64, bad: Bad) -> I64:
        """Salted keys [n, length], 0 padded."""
        ...

    def floats(self, path: str, bad: Bad) -> NDArray[np.float32]:
        """Numbers, 0 where the field is missing."""
        ...

    def served(self, source: ServedSource, bad: Bad) -> tuple[I64, NDArray[np.float32]]:
        """Keys of the version [n], and numbers [n, width]; 0 where they are not there."""
        ...


def filled(
    spec: DecodeSpec,
    fields: Fields,
    *,
    ts_ms_n: I64,
    user_n: I64,
    item_n: I64,
    position_n: NDArray[np.int32],
    bad: Bad,
) -> ImpressionColumns:
    """Columns of all rows by `spec`; what cannot be used is added to `bad` and holds 0."""
    columns = empty_impressions(spec, len(ts_ms_n))
    columns.position_m = position_n
    plain_mF = np.zeros((len(ts_ms_n), len(spec.ids)), np.int64)  # shape suffix
    given = {"user": user_n, "item": item_n}
    for f, source in enumerate(spec.ids):
        path = source.path
        if path.startswith(ITEM_PREFIX):
            continue
        if path in given:
            keys = given[path]
        elif path.startswith("impression."):
            keys = keys_of_ints(_of_impression(path, ts_ms_n, position_n, spec))
        else:
            keys = fields.keys(path, bad)
        plain_mF[:, f] = keys
    if spec.ids:
        # One call for all columns: the mix's dozen array operations cost more than its arithmetic.
        salts_F = np.array([source.salt for source in spec.ids])
        keys_mF = salted(plain_mF, salts_F)  # type: ignore[arg-type]  # broadcasts
        keys_mF[:, [s.path.startswith(ITEM_PREFIX) for s in spec.ids]] = 0
        columns.ids_mF[:, : len(spec.ids)] = keys_mF
    if spec.served:
        version_m, values_mN = fields.served(spec.served, bad)
        columns.ids_mF[:, -1], columns.dense_mX[:, len(spec.dense) :] = version_m, values_mN
    for multi, into in zip(spec.multis, columns.multi_mM, strict=True):
        if not multi.path.startswith(ITEM_PREFIX):
            into[:] = fields.multi(multi.path, multi.length, multi.salt, bad)
    for x, dense in enumerate(spec.dense):
        if dense.path.startswith("impression."):
            columns.dense_mX[:, x] = _of_impression(dense.path, ts_ms_n, position_n, spec)
        elif not dense.path.startswith(ITEM_PREFIX):
            columns.dense_mX[:, x] = fields.floats(dense.path, bad)
    return columns


def _of_impression(
    path: str, ts_ms_n: I64, position_n: NDArray[np.int32], spec: DecodeSpec
) -> NDArray[np.int64]:
    local_ms = ts_ms_n + spec.timezone_offset_minutes * 60_000
    if path == "impression.hour":
        return local_ms // _HOUR_MS % 24
    if path == "impression.weekday":
        return (local_ms // _DAY_MS + _EPOCH_WEEKDAY) % 7
    return position_n.astype(np.int64)
