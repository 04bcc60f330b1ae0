"""Rows of one field carried over to other keys, weights and optimizer state together.

For ids that are given out anew, such as the codes of a refitted codebook. Knows no codebook.

Shapes: P pairs of an old and a new key, K distinct new keys, D columns.
"""

from __future__ import annotations

import numpy as np
import torch

from learners.embedding_table import EmbeddingTable
from learners.id_kernels import I64, LEARN_AND_COUNT
from learners.id_table import KeyBlock


def carry_over(
    table: EmbeddingTable, field: str, old_P: I64, new_P: I64, *, clock_ms: int, step: int
) -> int:
    """How many new keys have another key's row now.

    Each takes the row, and Adagrad's accumulator, of the old key that it is paired with most often;
    of several it keeps its own, or else takes the smallest key's. (Means of all its pairs' rows
    would move every key a little, and scores more.) An old key without a row counts as its field's
    shared row, as a look-up reads it. A new key beyond the field's `rows_max` gets no row, and
    rows of keys that are in no pair stay. Raises ValueError for an unknown field.
    """
    names = [f.name for f in table.fields]
    if field not in names:
        raise ValueError(f"rows of '{field}': the table has fields {', '.join(names)}")
    from_K, to_K = _donors(old_P, new_P)
    other = from_K != to_K
    from_K, to_K = from_K[other], to_K[other]
    if not len(to_K):
        return 0
    number = np.array([names.index(field)], np.int64)
    given = torch.from_numpy(_rows(table, from_K, number)).to(table.device)
    weight_KD, accumulator_K = table.weight_RD[given], table.accumulator_R[given]
    rows_K = _given_rows(table, to_K, number, clock_ms=clock_ms, step=step)
    own = torch.from_numpy(np.flatnonzero(rows_K >= table.ids.first_row)).to(table.device)
    at = torch.from_numpy(rows_K).to(table.device)[own]
    table.weight_RD.index_copy_(0, at, weight_KD[own])
    table.accumulator_R.index_copy_(0, at, accumulator_K[own])
    return len(own)


def _donors(old_P: I64, new_P: I64) -> tuple[I64, I64]:
    """For each new key the old key that it is paired with most often: (old, new), each [K]."""
    pairs_N2, counts_N = np.unique(np.stack([new_P, old_P], 1), axis=0, return_counts=True)
    new_N, old_N = pairs_N2[:, 0], pairs_N2[:, 1]
    order = np.lexsort((old_N, old_N != new_N, -counts_N, new_N))
    _, first = np.unique(new_N[order], return_index=True)
    return old_N[order][first], new_N[order][first]


def _block(keys_n: I64, number: I64) -> KeyBlock:
    return KeyBlock(
        keys_BN=np.ascontiguousarray(keys_n[:, None]), field_N=number,
        source=np.array([0, 1, 0]), admit=True,
    )  # fmt: skip


def _rows(table: EmbeddingTable, keys_n: I64, number: I64) -> I64:
    return table.ids.predict(_block(keys_n, number))[0][:, 0].astype(np.int64)


def _given_rows(
    table: EmbeddingTable, keys_K: I64, number: I64, *, clock_ms: int, step: int
) -> I64:
    """Rows of keys, given out where there are none; marked as changed in `step`."""
    flags_K = np.full(len(keys_K), LEARN_AND_COUNT, np.uint8)
    table.ids.learn([_block(keys_K, number)], flags_K, clock_ms=clock_ms, step=step)
    table.grow()
    return _rows(table, keys_K, number)
