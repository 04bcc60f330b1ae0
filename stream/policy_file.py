"""A policy's probabilities of logged choices, from a Parquet file of one's own. Judges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.errors import InputError
from stream.columns import I64
from stream.keys import key_of, keys_of_ints
from stream.logged_actions import LoggedActions, pairs_of

_REQUIRED: Final = ("request_id", "item_id", "probability")
_MODEL: Final = ("reward_logged", "reward_target")
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRows:
    """What the file says of each row of a log.

    Whether it has the row, the policy's probability of the item shown and, if it has them, a
    model's reward of that item and its expected reward under the policy.
    """

    known_n: NDArray[np.bool_]
    probability_n: F64
    model_logged_n: F64 | None
    model_target_n: F64 | None


def read_policy(path: Path, actions: LoggedActions) -> PolicyRows:
    """The rows of `path` that belong to those of the log, by request and item; see PolicyRows.

    Columns: request_id, item_id, probability and, both or none, reward_logged, reward_target.
    Raises InputError for a file that is unreadable, lacks a column, has a row twice, or has cells
    that are empty.
    """
    table = _table(path)
    pair_f = pairs_of(_keys(table["request_id"]), _keys(table["item_id"]))
    order = np.argsort(pair_f)
    pair_f = pair_f[order]
    if (pair_f[1:] == pair_f[:-1]).any():
        raise InputError(f"{path}: a request's item is there twice; expected one row of each")
    pair_n = pairs_of(actions.request_n, actions.item_n)
    place = np.minimum(np.searchsorted(pair_f, pair_n), len(pair_f) - 1)
    found = [
        table[name].to_numpy().astype(np.float64)[order][place]
        for name in table.column_names
        if name not in {"request_id", "item_id"}
    ]
    return PolicyRows(
        known_n=pair_f[place] == pair_n,
        probability_n=found[0],
        model_logged_n=found[1] if len(found) > 1 else None,
        model_target_n=found[2] if len(found) > 1 else None,
    )


def _table(path: Path) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        wanted = [*_REQUIRED, *(_MODEL if set(_MODEL) & set(names) else ())]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise InputError(f"{path}: no column '{missing[0]}', only {', '.join(names[:12])}")
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable ({str(error).splitlines()[0]})") from error
    if not len(table):
        raise InputError(f"{path}: no rows")
    empty = [name for name in wanted if table[name].null_count]
    if empty:
        raise InputError(f"{path}: column '{empty[0]}' has empty cells; expected none")
    return table


def _keys(column: pa.ChunkedArray) -> I64:
    if pa.types.is_integer(column.type):
        return keys_of_ints(column.to_numpy())
    known = {text: key_of(text) for text in column.cast(pa.string()).unique().to_pylist()}
    texts = column.cast(pa.string()).to_pylist()
    return np.fromiter((known[text] for text in texts), np.int64, len(texts))
