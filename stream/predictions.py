"""Predictions of settled samples as columns. Pure; `stream/prediction_log` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.keys import ints_of_keys

I64 = NDArray[np.int64]
Ids = list[int | str] | I64


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Rows in the order of learning.

    `names` gives (request id, item id, user id) of rows with string ids; all other ids are
    integers, which their keys give back.
    """

    request_n: I64
    item_n: I64
    user_n: I64
    ts_ms_n: I64
    labels_nK: NDArray[np.float32]
    logit_n: NDArray[np.float32]
    names: Sequence[tuple[int | str, int | str, int | str] | None] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.logit_n)

    def ids(
        self,
    ) -> tuple[list[int | str], list[int | str], list[int | str]] | tuple[I64, I64, I64]:
        """Original request, item and user ids; int64 arrays where all are integers."""
        columns = tuple(ints_of_keys(c) for c in (self.request_n, self.item_n, self.user_n))
        if self.names is None:
            return columns[0], columns[1], columns[2]
        lists: tuple[list[int | str], ...] = tuple(c.tolist() for c in columns)
        for i, name in enumerate(self.names):
            if name is not None:
                for column, value in zip(lists, name, strict=True):
                    column[i] = value
        return lists[0], lists[1], lists[2]
