"""How sure a difference of losses is: bootstrap over blocks of rows; decides nothing.

All rows of a block (a user) are drawn together, as its rows resemble each other: intervals from
single rows would be too narrow (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.evaluation.grouping import present_codes

F64 = NDArray[np.float64]

BLOCKS_MAX = 20_000
BLOCKS_MIN = 10
_DRAWS_PER_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Mean of each group with its 95 % interval, [G]; `sure_G`: enough blocks for an interval."""

    n_G: F64
    mean_G: F64
    low_G: F64
    high_G: F64
    blocks_G: NDArray[np.int64]
    sure_G: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean of all rows and of each grouping's groups, resampled together."""

    mean: float
    low: float | None
    high: float | None
    blocks: int
    groupings: tuple[Intervals, ...]


def paired_bootstrap(
    d_n: F64,
    blocks_n: NDArray[Any],
    groupings: Sequence[tuple[NDArray[Any], int]] = (),
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile intervals of the mean difference over all rows and by group.

    `blocks_n` are codes; a grouping is (codes, number of groups). A group needs rows of at least
    10 blocks for an interval. More than 20,000 blocks are joined at random into as many: unions of
    independent blocks are independent, and the interval keeps its width.
    """
    assert len(d_n), "no rows to compare"
    block_n, blocks = present_codes(blocks_n)
    rng = np.random.default_rng(seed)
    if blocks > BLOCKS_MAX:
        block_n = (rng.permutation(blocks) % BLOCKS_MAX).astype(np.int32)[block_n]
    units = min(blocks, BLOCKS_MAX)
    every = (np.zeros(len(d_n), np.uint8), 1)
    tables = [_by_block(d_n, block_n, units, codes, count) for codes, count in (every, *groupings)]
    sums_BK = np.concatenate([t[0] for t in tables], axis=1)
    rows_BK = np.concatenate([t[1] for t in tables], axis=1)
    means_RK = _resampled(sums_BK, rows_BK, resamples, rng)
    n_K, used_K = rows_BK.sum(0), (rows_BK > 0).sum(0)
    mean_K = sums_BK.sum(0) / np.maximum(n_K, 1)
    sure_K = used_K >= BLOCKS_MIN
    low_K, high_K = np.zeros(len(n_K)), np.zeros(len(n_K))
    if sure_K.any():
        low_K[sure_K], high_K[sure_K] = np.nanquantile(means_RK[:, sure_K], (0.025, 0.975), axis=0)
    found, at = [], 0
    for sums, _ in tables:
        part = slice(at, at := at + sums.shape[1])
        found.append(
            Intervals(
                n_G=n_K[part],
                mean_G=mean_K[part],
                low_G=low_K[part],
                high_G=high_K[part],
                blocks_G=used_K[part],
                sure_G=sure_K[part],
            )
        )
    total = found[0]
    sure = bool(total.sure_G[0])
    return PairedDifference(
        mean=float(total.mean_G[0]),
        low=float(total.low_G[0]) if sure else None,
        high=float(total.high_G[0]) if sure else None,
        blocks=blocks,
        groupings=tuple(found[1:]),
    )


def _by_block(
    d_n: F64, block_n: NDArray[np.int32], blocks: int, codes_n: NDArray[Any], count: int
) -> tuple[F64, F64]:
    """Sum of differences and number of rows of each (block, group)."""
    cell = block_n.astype(np.int64) * count + codes_n
    shape, cells = (blocks, count), blocks * count
    return (
        np.bincount(cell, d_n, minlength=cells).astype(np.float64).reshape(shape),
        np.bincount(cell, minlength=cells).astype(np.float64).reshape(shape),
    )


def _resampled(
    sums_BK: F64, rows_BK: F64, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Mean of each group in each resample [R, K]; NaN where a resample has none of its rows."""
    blocks, groups = sums_BK.shape
    means = np.empty((resamples, groups))
    chunk = max(1, _DRAWS_PER_CHUNK // blocks)
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        drawn = rng.integers(0, blocks, (count, blocks))
        drawn += np.arange(count)[:, None] * blocks
        times = np.bincount(drawn.ravel(), minlength=count * blocks).reshape(count, blocks)
        weights = times.astype(np.float64)
        rows = weights @ rows_BK
        means[first : first + count] = np.where(
            rows > 0, weights @ sums_BK / np.maximum(rows, 1), np.nan
        )
    return means
