"""Predictions of settled samples as columns. Pure; `stream/prediction_log` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from learners.batch import MiniBatch
from stream.feature_plan import FeaturePlan
from stream.keys import ints_of_keys, salt_of, salted, unsalted
from stream.prediction_memory import Predicted

I64 = NDArray[np.int64]
MISSING = int(np.iinfo(np.int64).min)

Ids = list[int | str] | I64
Names = Sequence[tuple[int | str, int | str, int | str] | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Rows in the order of learning.

    `history_len_n` counts the entries of all histories at the impression. `fields` holds values of
    configured features: integers, a string's 64-bit key as an integer, MISSING where there is none.
    `names` gives (request id, item id, user id) of rows with string ids; all other ids are
    integers, which their keys give back.
    """

    request_n: I64
    item_n: I64
    user_n: I64
    ts_ms_n: I64
    labels_nK: NDArray[np.float32]
    predicted: Predicted
    history_len_n: I64
    fields: Mapping[str, I64] = field(default_factory=dict)
    names: Names = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ts_ms_n)

    def ids(self) -> tuple[Ids, ...]:
        """Original request, item and user ids; int64 arrays where all are integers."""
        return original_ids(self.request_n, self.item_n, self.user_n, self.names)


def original_ids(request_n: I64, item_n: I64, user_n: I64, names: Names = None) -> tuple[Ids, ...]:
    """Original ids of keys, given the names of rows with string ids."""
    columns: tuple[I64, ...] = tuple(ints_of_keys(c) for c in (request_n, item_n, user_n))
    if names is None:
        return columns
    lists: tuple[list[int | str], ...] = tuple(c.tolist() for c in columns)
    for i, name in enumerate(names):
        if name is not None:
            for column, value in zip(lists, name, strict=True):
                column[i] = value
    return lists


def field_reader(plan: FeaturePlan, name: str) -> Callable[[MiniBatch], I64]:
    """Reads the values of an id feature off a batch, int64 [B]."""
    column = [f.name for f in plan.spec.ids].index(name)
    salt = salt_of(name)
    absent = salted(np.zeros(1, np.int64), salt)[0]

    def read(batch: MiniBatch) -> I64:
        keys = batch.ids_BF[:, column].numpy()
        values = ints_of_keys(unsalted(keys, salt))
        return np.where(keys == absent, MISSING, values)

    return read
