"""Samples: what passes from join to training, as self-contained columns (rule 12).

Shapes: n rows (items shown), F id fields, M places of several-valued fields, X dense fields, J
counters of which D decayed, K label kinds, L history length. No vectors, no references to state.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import msgpack
import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Rows with frozen state and facts.

    `number_n` counts admissions and identifies a row within a run; `click_ts_nK` is the time of
    the first click in its window, 0 for none; `settle_ms` the watermark at which the rows left.
    `history_nL` holds item keys, oldest first, 0 padded. `counts_nJC` int32: impressions,
    exposures (0 for counters without `open`), clicks by kind; `decayed_nDC` float32:
    impressions, clicks by kind.
    """

    key_n: I64
    number_n: I64
    request_n: I64
    item_n: I64
    user_n: I64
    ts_ms_n: I64
    click_ts_nK: I64
    ids_nF: I64
    multi_nM: I64
    dense_nX: NDArray[np.float32]
    counts_nJC: NDArray[np.int32]
    decayed_nDC: NDArray[np.float32]
    gap_ms_n: I64
    session_position_n: I64
    clicked_n: I64
    interactions_n2: I64
    sample_rate_n: NDArray[np.float32]
    history_nL: tuple[I64, ...]
    history_len_n: tuple[I64, ...]
    settle_ms: int

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.key_n)

    def to_bytes(self) -> bytes:
        """A msgpack map; `from_bytes` gives the same samples."""
        out: dict[str, Any] = {"v": VERSION, "settle_ms": self.settle_ms}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "settle_ms":
                out[f.name] = (
                    [_pack(v) for v in value] if isinstance(value, tuple) else _pack(value)
                )
        return bytes(msgpack.packb(out))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Samples of `to_bytes`; raises ValueError for another version."""
        value = msgpack.unpackb(data)
        if value.pop("v") != VERSION:
            raise ValueError(f"samples: expected version {VERSION}")
        out: dict[str, Any] = {"settle_ms": value.pop("settle_ms")}
        for name, packed in value.items():
            many = packed and isinstance(packed[0], list)
            tupled = many or packed == []
            out[name] = tuple(_unpack(p) for p in packed) if tupled else _unpack(packed)
        return cls(**out)


def _pack(array: NDArray[Any]) -> list[Any]:
    return [array.dtype.str, list(array.shape), array.tobytes()]


def _unpack(packed: list[Any]) -> NDArray[Any]:
    dtype, shape, data = packed
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()
