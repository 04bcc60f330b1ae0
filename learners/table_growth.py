"""Parts of an id table to the form in which some fields have come or gone. Pure.

Rows move by as many places as there are more fields; those of fields that are gone become free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.id_kernels import FREE, HIGH, SWEEP

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def grown_table(
    serve: Part, train: Part | None, fields: Sequence[str], owned: Sequence[str], shared_FD: F32
) -> tuple[Part, Part | None]:
    """The parts of an id table whose fields are `fields`: rows move, those of gone fields are free.

    `owned`: fields of modules, which alone may come; `shared_FD` the fields' shared rows as they
    start. Raises ValueError where another field is new or gone.
    """
    was = list(serve.meta["fields"])
    if was == list(fields):
        return serve, train
    come = [f for f in fields if f not in was and f not in owned]
    gone = [f for f in was if f not in fields and f not in serve.meta.get("owned", [])]
    kept = [f for f in was if f in fields]
    if come or gone or kept != [f for f in fields if f in was]:
        raise ValueError(
            f"part '{serve.name}': fields {was}, but the configuration has {list(fields)}; only "
            "fields of modules can be begun or dropped, and those that stay keep their order"
        )
    to_field = np.array([fields.index(f) if f in fields else -1 for f in was], np.int64)
    to_row = _row_map(to_field, len(fields))
    new = [i for i, f in enumerate(fields) if f not in was and not serve.delta]
    return _grown_serve(serve, fields, to_field, to_row, new, shared_FD), (
        None if train is None else _grown_train(train, serve, to_field, to_row, new, len(fields))
    )


def _row_map(to_field: I64, count: int) -> Callable[[NDArray[Any]], I64]:
    """Old rows to new ones; -1 for the shared rows of gone fields."""
    old = len(to_field)

    def to_row(rows: NDArray[Any]) -> I64:
        rows = rows.astype(np.int64)
        shared = rows < old
        moved: I64 = np.where(shared, to_field[np.where(shared, rows, 0)], rows + count - old)
        return moved

    return to_row


def _grown_serve(
    serve: Part, fields: Sequence[str], to_field: I64, to_row: Callable[[NDArray[Any]], I64],
    new: Sequence[int], shared_FD: F32,
) -> Part:  # fmt: skip
    a = serve.arrays
    rows = to_row(a["rows"])
    stay = rows >= 0
    field = to_field[a["fields"].astype(np.int64)]
    keys = np.where(field < 0, 0, a["keys"])  # freed
    joined = {
        "rows": [rows[stay], np.array(new, np.int64)],
        "keys": [keys[stay], np.zeros(len(new), np.int64)],
        "fields": [np.maximum(field, 0)[stay], np.array(new, np.int64)],
        "weights": [a["weights"][stay], shared_FD[new]],
    }
    arrays = {n: np.concatenate(parts).astype(a[n].dtype) for n, parts in joined.items()}
    high = int(serve.meta["high"]) + len(fields) - len(to_field)
    return replace(serve, arrays=arrays, meta={**serve.meta, "high": high, "fields": list(fields)})


def _grown_train(
    train: Part, serve: Part, to_field: I64, to_row: Callable[[NDArray[Any]], I64],
    new: Sequence[int], count: int,
) -> Part:  # fmt: skip
    a = train.arrays
    rows = to_row(a["rows"])
    stay = rows >= 0
    begun = len(new)
    arrays = dict(a)
    for name in ("last_s", "touched", "accumulator"):
        more = np.zeros(begun, a[name].dtype)
        arrays[name] = np.concatenate([a[name][stay], more])
    arrays["rows"] = np.concatenate([rows[stay], np.array(new, np.int64)])
    s = serve.arrays
    ids = s["rows"] > len(to_field)  # neither shared nor padding
    freed = s["rows"][ids & (to_field[s["fields"].astype(np.int64)] < 0) & (s["keys"] != 0)]
    arrays["free"] = np.concatenate([to_row(a["free"]), to_row(freed)]).astype(a["free"].dtype)
    counts = a["counts"].copy()
    counts[HIGH] += count - len(to_field)
    counts[SWEEP] += (count - len(to_field)) * (counts[SWEEP] > 0)
    counts[FREE] += len(freed)
    return replace(train, arrays=arrays | {"counts": counts})
