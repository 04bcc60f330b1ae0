"""Rows of a MiniBatch as sparse vectors over hash buckets, for linear baselines. Learns nothing.

The hashing trick (Weinberger et al. 2009): ids and pairs of ids are taken modulo a power of two, so
memory is bounded and nothing is admitted; two ids of one bucket share its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from learners.batch import PADDING_KEY, MiniBatch
from learners.feature_spec import FeatureSpec

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile with numba, cached on disk; NUMBA_DISABLE_JIT=1 runs it as it stands."""
    return cast("F", numba.njit(cache=True)(function))


@dataclass(frozen=True, kw_only=True)
class HashedRowsConfig:
    """Which features a linear baseline sees; `bits`: log2 of the number of buckets.

    `crosses` are pairs of id fields, or `[["*"]]` for all pairs. `bags` and `dense` switch bags and
    dense inputs off.
    """

    bits: int = 20
    crosses: tuple[tuple[str, ...], ...] = ()
    bags: bool = True
    dense: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 1 <= self.bits <= 28:
            raise ValueError(f"bits: 1 to 28, got {self.bits}")
        if self.crosses != (("*",),) and any(len(pair) != 2 for pair in self.crosses):
            raise ValueError(f'crosses: pairs of id fields, or [["*"]], got {self.crosses}')


class HashedRows:
    """Makes `index_BN` int32 and `value_BN` float32; value 0 means "no feature here".

    Columns: constant 1, ids, crosses, places of bags (1 each; repeated entries are added up), dense
    inputs. The first 1 + D indices belong to the constant and the D dense inputs; `size` is the
    number of all indices. A bag has weights of its own, apart from those of the field it shares.
    """

    def __init__(self, spec: FeatureSpec, config: HashedRowsConfig) -> None:
        names = [f.name for f in spec.ids]
        unknown = [n for pair in config.crosses for n in pair if n not in (*names, "*")]
        if unknown:
            raise ValueError(f"crosses: no id field '{unknown[0]}'; there are {', '.join(names)}")
        everything = config.crosses == (("*",),)
        pairs = list(combinations(names, 2)) if everything else config.crosses
        self._pairs_P2 = np.array([[names.index(n) for n in p] for p in pairs], int).reshape(-1, 2)
        self._bags = range(len(spec.bags)) if config.bags else range(0)
        self._dense = len(spec.dense) if config.dense else 0
        self._mask = np.uint64((1 << config.bits) - 1)
        self.size = 1 + self._dense + (1 << config.bits)

    def __call__(self, batch: MiniBatch, dense_BD: F32) -> tuple[I32, F32]:
        """Features of the batch; `dense_BD` are its dense inputs as they are to be seen."""
        b = len(batch)
        ids_BF = batch.ids_BF.numpy().view(np.uint64)
        pairs_BP = _mixed(ids_BF[:, self._pairs_P2[:, 0]]) ^ ids_BF[:, self._pairs_P2[:, 1]]
        index = [np.zeros((b, 1), np.int32), self._bucket(ids_BF, 0), self._bucket(pairs_BP, 0)]
        value = [np.ones((b, 1 + ids_BF.shape[1] + pairs_BP.shape[1]), np.float32)]
        for bag in self._bags:
            # Not 1 / length: a sum lets an entry's weight learn as fast as that of a single id
            # (log loss .590 against .603 on the early days of the bundled slice).
            keys_BL = batch.bags_BL[bag].numpy()
            index_BL = self._bucket(keys_BL.view(np.uint64), 1 + bag)
            value_BL = (keys_BL != PADDING_KEY).astype(np.float32)
            _merge_repeats(index_BL, value_BL)
            index.append(index_BL)
            value.append(value_BL)
        if self._dense:
            index.append(np.tile(np.arange(1, 1 + self._dense, dtype=np.int32), (b, 1)))
            value.append(dense_BD)
        return np.concatenate(index, 1), np.concatenate(value, 1)

    def _bucket(self, keys: U64, salt: int) -> I32:
        hashed = _mixed(keys + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64))
        return (hashed & self._mask).astype(np.int32) + np.int32(1 + self._dense)


def _mixed(keys: U64) -> U64:
    """The keys well mixed: SplitMix64's finalizer (Steele et al. 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = keys ^ (keys >> np.uint64(31))
    return mixed


@kernel
def _merge_repeats(index_BL: I32, value_BL: F32) -> None:
    """Give the value of a repeated index to its first place: gradients are added, then squared."""
    for b in range(len(index_BL)):
        for j in range(index_BL.shape[1]):
            if value_BL[b, j] != 0:
                for k in range(j):
                    if index_BL[b, k] == index_BL[b, j] and value_BL[b, k] != 0:
                        value_BL[b, k] += value_BL[b, j]
                        value_BL[b, j] = 0
                        break


def rows_as_dicts(index_BN: I32, value_BN: F32) -> list[dict[int, float]]:
    """Each row without its constant, for models with an intercept; values of a bucket added up."""
    rows = []
    for index, value in zip(index_BN[:, 1:].tolist(), value_BN[:, 1:].tolist(), strict=True):
        row: dict[int, float] = {}
        for i, v in zip(index, value, strict=True):
            if v:
                row[i] = row.get(i, 0.0) + v
        rows.append(row)
    return rows
