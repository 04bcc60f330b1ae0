"""Several prediction logs of the same events as one, of the rows in all of them; scores nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.errors import InputError
from stream.evaluation.grouping import pair_groups
from stream.evaluation.rows import Coded, PredictionRows

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


def align(logs: Mapping[str, PredictionRows]) -> PredictionRows:
    """Inner join on (request, item), in the first log's order, with the arms of all.

    Arms keep their names; where two logs have the same, it becomes `LOG.ARM`. A log's learn steps
    count as one step only where those of all logs agree. What a log holds that others lack is
    counted in `unmatched`. Raises InputError where a log repeats a row, where labels differ, or
    where nothing matches.
    """
    assert logs, "no log to align"
    names = list(logs)
    first = logs[names[0]]
    if len(names) == 1:
        return first
    places = {names[0]: np.arange(len(first))}
    matched = np.ones(len(first), np.bool_)
    for name in names[1:]:
        places[name] = _places(first, logs[name], names[0], name)
        matched &= places[name] >= 0
    if not matched.any():
        raise InputError(
            f"prediction logs {', '.join(names)}: no (request, item) is in all of them; give logs "
            "of the same events"
        )
    joined, batch = first.take(matched), None if first.batch_n is None else first.batch_n[matched]
    logits = dict(joined.logits) if len(set(_arms(logs))) == len(_arms(logs)) else {}
    shared = not logits
    for name in names:
        rows = places[name][matched]
        other = logs[name]
        if (other.label_n[rows] != joined.label_n).any():
            differing = int((other.label_n[rows] != joined.label_n).sum())
            raise InputError(
                f"prediction logs '{names[0]}' and '{name}': {differing} rows have different "
                "labels; compare runs with the same label and window"
            )
        for arm, logit in other.logits.items():
            logits[f"{name}.{arm}" if shared else arm] = logit[rows]
        if name != names[0]:
            batch = _both(batch, None if other.batch_n is None else other.batch_n[rows])
    count = int(matched.sum())
    ahead = [log.ahead for log in logs.values() if log.ahead is not None]
    return replace(
        joined,
        logits=logits,
        batch_n=batch,
        ahead=max(ahead) if ahead else None,
        unmatched={name: len(log) - count for name, log in logs.items()},
    )


def _arms(logs: Mapping[str, PredictionRows]) -> list[str]:
    return [arm for log in logs.values() for arm in log.logits]


def _both(a: I32 | None, b: I32 | None) -> I32 | None:
    """Numbers that are equal where both columns are."""
    if a is None or b is None or np.array_equal(a, b):
        return a if b is not None else None
    return _dense(pair_groups(_dense(a), _dense(b))[0])


def _dense(values: NDArray[Any]) -> I32:
    return np.unique(values, return_inverse=True)[1].astype(np.int32)


def _places(first: PredictionRows, other: PredictionRows, name: str, other_name: str) -> I64:
    """Row of `other` that each row of `first` is, or -1."""
    request = _in_codes_of(first.request, other.request)
    item = _in_codes_of(first.item, other.item)
    width = first.item.count + 1
    ours = first.request.code_n.astype(np.int64) * width + first.item.code_n
    theirs = np.where((request < 0) | (item < 0), -1, request * width + item)
    if np.array_equal(ours, theirs):
        return np.arange(len(ours))
    order = np.argsort(theirs, kind="stable")
    ordered = theirs[order]
    for log, keys in ((name, np.sort(ours)), (other_name, ordered[ordered >= 0])):
        if (keys[1:] == keys[:-1]).any():
            raise InputError(f"prediction log '{log}': an item of a request is there twice")
    at = np.minimum(np.searchsorted(ordered, ours), len(ordered) - 1)
    return np.where(ordered[at] == ours, order[at], -1) if len(ordered) else np.full(len(ours), -1)


def _in_codes_of(first: Coded, other: Coded) -> I64:
    """Codes of `other`'s rows among those of `first`; -1 for values that are new."""
    if first.values.equals(other.values):
        return other.code_n.astype(np.int64)
    ours, theirs = first.values, other.values
    if ours.type != theirs.type:
        ours, theirs = ours.cast(pa.string()), theirs.cast(pa.string())
    found = pc.index_in(theirs, value_set=ours).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)[other.code_n]
