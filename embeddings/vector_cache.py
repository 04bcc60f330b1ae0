"""The hot level of item vectors: a bounded row cache before the store. Never the store of record.

Shapes: R rows, D vector dimension, A id attributes, M places of several-valued attributes, X dense
attributes; B x L keys of a batch, n keys, m missed keys, V rows of a table, the last one zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embeddings.row_index import (
    HELD,
    LOOKED_UP,
    MISSED,
    STAMP_MAX,
    claim_rows,
    drop_keys,
    find_filled,
    find_rows,
    forget_stamps,
    number_rows,
    slots_for,
    with_room,
)
from embeddings.stored_rows import (
    AttributeColumns,
    AttributeReader,
    RowReader,
    Rows,
    read_no_attributes,
)
from embeddings.vectors import VectorStore

I64 = NDArray[np.int64]
_OWN_ROW = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorCacheConfig:
    """`rows_max` items in memory, at `dim` numbers of `dtype` each; memory is taken as it fills."""

    dim: int
    rows_max: int = 262_144
    dtype: Literal["float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        if self.rows_max < 1:
            raise ValueError(f"vector cache: rows_max must be at least 1, got {self.rows_max}")
        if self.dim < 1:
            raise ValueError(f"vector cache: dim must be at least 1, got {self.dim}")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"vector cache: dtype must be float16 or float32, got '{self.dtype}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Vectors of one batch: rows of `table_VC`, whose last row is zeros and means "no vector".

    `target_B` and `bags_BL` are int64 rows; `missing_B` is True where the target has no vector;
    `bag_found_B` int32 counts the keys of a bag that have one. Unless it was asked to be compact,
    the table is the cache's own: read it before the next call of the cache, and never write to it.
    """

    table_VC: NDArray[Any]
    target_B: I64
    missing_B: NDArray[np.bool_]
    bags_BL: tuple[I64, ...]
    bag_found_B: tuple[NDArray[np.int32], ...]


@dataclass(slots=True, kw_only=True)
class CacheCounts:
    """What the cache did so far. `lookups` and `missed` count keys, `fetched` distinct ones.

    `unreadable`: values of the store that were no item vector, taken as absent.
    """

    lookups: int = 0
    missed: int = 0
    fetched: int = 0
    unreadable: int = 0


class VectorCache:
    """Item keys to vectors and attribute columns, with the same values for every `rows_max`.

    What a batch misses is read by one `get_many`; absent items are remembered as absent. A batch
    of more distinct items than there are rows gets a table of its own, read from the store.
    """

    def __init__(
        self,
        store: VectorStore,
        config: VectorCacheConfig,
        read_attributes: AttributeReader = read_no_attributes,
    ) -> None:
        self._store = store
        self._config = config
        self._reader = RowReader(store, config.dim, config.dtype, read_attributes)
        self._nothing = config.rows_max
        """The last row: zeros, and the attributes of an item that is not there."""
        self._slots_S2 = slots_for(min(config.rows_max, 1024))
        self._key_R = np.zeros(config.rows_max, np.int64)
        self._clock_2 = np.zeros(2, np.int64)
        self._now = 0
        self._table_RD = np.zeros((config.rows_max + 1, config.dim), config.dtype)
        absent = read_attributes([{}])
        self._ids_RA = _blank(config.rows_max, absent.ids_nA)
        self._multi_RM = _blank(config.rows_max, absent.multi_nM)
        self._dense_RX = _blank(config.rows_max, absent.dense_nX)
        self._local_R: I64 | None = None
        self.counts = CacheCounts()

    @property
    def encoder_version(self) -> str:
        """The version of all vectors."""
        return self._store.encoder_version

    def lookup(
        self, target_B: I64, bags_BL: Sequence[I64] = (), *, compact: bool = False
    ) -> BatchRows:
        """The vectors of a batch's targets and bags; key 0 is padding.

        `compact` copies the batch's distinct rows to a table of its own, for a device whose memory
        is elsewhere, or for a batch that is kept.
        """
        batches = [target_B.reshape(-1, 1), *bags_BL]
        found = self._resolve(batches, vectorless_row=self._nothing)
        if found is None:
            return self._lookup_apart(batches)
        rows, counts = found
        table = self._compacted(rows) if compact else self._table_RD
        return _batch_rows(table, rows, counts)

    def attributes(self, keys_n: I64) -> AttributeColumns:
        """Copies of the attribute columns of items; key 0 and absent items get the absent ones."""
        found = self._resolve([keys_n.reshape(-1, 1)], vectorless_row=_OWN_ROW)
        if found is None:
            distinct = _distinct([keys_n])
            columns = self._fetch(np.append(distinct, 0)).columns
            rows_n = np.where(keys_n == 0, len(distinct), np.searchsorted(distinct, keys_n))
            ids, multi, dense = columns.ids_nA, columns.multi_nM, columns.dense_nX
        else:
            rows_n = found[0][0].ravel()
            ids, multi, dense = self._ids_RA, self._multi_RM, self._dense_RX
        return AttributeColumns(
            ids_nA=ids.take(rows_n, axis=0),
            multi_nM=multi.take(rows_n, axis=0),
            dense_nX=dense.take(rows_n, axis=0),
        )

    def multi_columns(self, keys_BL: I64, columns: Sequence[int]) -> list[I64]:
        """Columns of `multi_nM` for bags of items, each [B, L]; 0 for key 0 and absent items."""
        found = self._resolve([keys_BL], vectorless_row=_OWN_ROW)
        if found is not None:
            rows_BL = found[0][0]
            return [self._multi_RM[rows_BL, column] for column in columns]
        distinct = _distinct([keys_BL])
        fetched = self._fetch(distinct).columns
        places = np.minimum(np.searchsorted(distinct, keys_BL), max(len(distinct) - 1, 0))
        multi_mM = np.append(fetched.multi_nM, self._multi_RM[-1:], axis=0)
        return [np.where(keys_BL == 0, 0, multi_mM[places, column]) for column in columns]

    def drop(self, keys: I64) -> None:
        """Forgets items whose values changed in the store; the next look-up reads them anew."""
        drop_keys(self._slots_S2, keys, self._key_R)

    def _resolve(
        self, batches: Sequence[I64], vectorless_row: int
    ) -> tuple[list[I64], list[NDArray[np.int32]]] | None:
        """Rows and found counts of each array of keys, all in the cache; None: they do not fit."""
        if self._now == STAMP_MAX:
            forget_stamps(self._slots_S2)
            self._now = 0
        self._now += 1
        rows = [np.empty(keys_BL.shape, np.int64) for keys_BL in batches]
        counts = [np.empty(len(keys_BL), np.int32) for keys_BL in batches]
        totals = np.zeros(3, np.int64)
        for keys, r, c in zip(batches, rows, counts, strict=True):
            find_rows(self._slots_S2, keys, self._nothing, vectorless_row, self._now, r, c, totals)
        self.counts.lookups += int(totals[LOOKED_UP])
        self.counts.missed += int(totals[MISSED])
        if totals[MISSED]:
            missed = [keys[r < 0] for keys, r in zip(batches, rows, strict=True)]
            missing = _distinct(missed)
            if int(totals[HELD]) + len(missing) > self._config.rows_max:
                return None
            self._fill(missing)
            for keys, r, c in zip(batches, rows, counts, strict=True):
                left = find_filled(self._slots_S2, keys, vectorless_row, r, c)
                assert not left, "keys are missing right after they were filled in"
        return rows, counts

    def _fill(self, keys_m: I64) -> None:
        fetched = self._fetch(keys_m)
        rows_m = np.empty(len(keys_m), np.int64)
        used = min(int(self._clock_2[0]) + len(keys_m), self._config.rows_max)
        self._slots_S2 = with_room(self._slots_S2, used)
        claim_rows(
            self._slots_S2, keys_m, fetched.has_vector_m, self._now,
            self._key_R, self._clock_2, rows_m,
        )  # fmt: skip
        self._table_RD[rows_m] = fetched.vectors_mD
        self._ids_RA[rows_m] = fetched.columns.ids_nA
        self._multi_RM[rows_m] = fetched.columns.multi_nM
        self._dense_RX[rows_m] = fetched.columns.dense_nX

    def _fetch(self, keys_m: I64) -> Rows:
        rows = self._reader.read(keys_m)
        self.counts.fetched += len(keys_m)
        self.counts.unreadable += rows.unreadable
        return rows

    def _lookup_apart(self, batches: Sequence[I64]) -> BatchRows:
        """The same values without the cache: a table of the batch's own, from the store."""
        distinct = _distinct(batches)
        vectors_mD, has_vector_m, _, _ = self._fetch(distinct)
        nothing = len(distinct)
        table_VC = np.concatenate([vectors_mD, np.zeros((1, self._config.dim), vectors_mD.dtype)])
        usable = np.append(np.where(has_vector_m, np.arange(nothing), nothing), nothing)
        rows, counts = [], []
        for keys_BL in batches:
            places = np.where(keys_BL == 0, nothing, np.searchsorted(distinct, keys_BL))
            rows.append(usable[places])
            counts.append((rows[-1] != nothing).sum(axis=1, dtype=np.int32))
        return _batch_rows(table_VC, rows, counts)

    def _compacted(self, rows: Sequence[I64]) -> NDArray[Any]:
        """The rows' own table; renumbers `rows` in place."""
        if self._local_R is None:
            self._local_R = np.full(self._config.rows_max + 1, -1, np.int64)
        distinct = np.empty(min(sum(r.size for r in rows), self._config.rows_max), np.int64)
        count = 0
        for r in rows:
            count = number_rows(r, self._nothing, self._local_R, distinct, count)
        for r in rows:
            r[r == self._nothing] = count
        self._local_R[distinct[:count]] = -1
        table_VC: NDArray[Any] = self._table_RD[np.append(distinct[:count], self._nothing)]
        return table_VC


def _blank(rows_max: int, absent: NDArray[Any]) -> NDArray[Any]:
    """Rows of attributes, the last one that of an absent item."""
    blank = np.zeros((rows_max + 1, absent.shape[1]), absent.dtype)
    blank[-1] = absent[0]
    return blank


def _distinct(arrays: Sequence[I64]) -> I64:
    """The distinct keys of all arrays but 0, sorted."""
    keys = np.unique(np.concatenate([keys.ravel() for keys in arrays]))
    distinct: I64 = keys[keys != 0]
    return distinct


def _batch_rows(
    table: NDArray[Any], rows: Sequence[I64], counts: Sequence[NDArray[np.int32]]
) -> BatchRows:
    return BatchRows(
        table_VC=table,
        target_B=rows[0].ravel(),
        missing_B=counts[0] == 0,
        bags_BL=tuple(rows[1:]),
        bag_found_B=tuple(counts[1:]),
    )
