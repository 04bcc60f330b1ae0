"""Pairs of items that one user took one after the other, by whole columns. Reads no log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairConfig:
    """Which of a user's interactions make a pair.

    `window_ms`: the longest time between the two, 0 for any. `window_items`: the largest number of
    steps between them. `user_pairs_max`: pairs of one user that count, the nearest and latest ones.
    `item_pairs_max`: pairs of one item, on either side, chosen at random by `seed`; 0 for all.
    """

    window_ms: int = 0
    window_items: int = 50
    user_pairs_max: int = 10_000
    item_pairs_max: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.window_items, self.user_pairs_max) < 1:
            raise ValueError("pairs: window_items and user_pairs_max must be at least 1")
        if min(self.window_ms, self.item_pairs_max, self.seed) < 0:
            raise ValueError("pairs: window_ms, item_pairs_max and seed must not be negative")


@dataclass(frozen=True, slots=True)
class Interactions:
    """Positive interactions: user and item keys and times, int64 [n] each."""

    user_n: I64
    item_n: I64
    ts_ms_n: I64

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.user_n)

    def where(self, keep_n: NDArray[np.bool_]) -> Interactions:
        """The rows where `keep_n` is True."""
        return Interactions(self.user_n[keep_n], self.item_n[keep_n], self.ts_ms_n[keep_n])


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs, the earlier item on the left: item keys, user and time of the later one [P] each."""

    left_P: I64
    right_P: I64
    user_P: I64
    ts_ms_P: I64

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.left_P)

    def where(self, keep_P: NDArray[np.bool_]) -> Pairs:
        """The pairs where `keep_P` is True."""
        columns = (self.left_P, self.right_P, self.user_P, self.ts_ms_P)
        return Pairs(*(column[keep_P] for column in columns))


def in_order(interactions: Interactions) -> Interactions:
    """The first interaction of each user with each item, by user and then by time."""
    order = np.lexsort((interactions.ts_ms_n, interactions.item_n, interactions.user_n))
    user_n, item_n = interactions.user_n[order], interactions.item_n[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(user_n) != 0) | (np.diff(item_n) != 0)
    kept = np.sort(order[first])  # ties in time keep the order of the log
    kept = kept[np.lexsort((interactions.ts_ms_n[kept], interactions.user_n[kept]))]
    return Interactions(
        interactions.user_n[kept], interactions.item_n[kept], interactions.ts_ms_n[kept]
    )


def pair_blocks(interactions: Interactions, config: PairConfig) -> Iterator[Pairs]:
    """Pairs at distance 1, 2, … of each user's row of items, one block a distance.

    An item counts once a user, so that no pair of one user occurs twice. `user_pairs_max` holds;
    `item_pairs_max` needs all pairs at once: `mine_pairs`.
    """
    rows = in_order(interactions)
    users, user_code_n = np.unique(rows.user_n, return_inverse=True)
    left_room = np.full(len(users), config.user_pairs_max, np.int64)
    for distance in range(1, min(config.window_items, max(len(rows) - 1, 0)) + 1):
        together = user_code_n[distance:] == user_code_n[:-distance]
        if not together.any():
            return
        if config.window_ms:
            together &= rows.ts_ms_n[distance:] - rows.ts_ms_n[:-distance] <= config.window_ms
        at = np.flatnonzero(together)
        at = at[_rank_from_end(user_code_n[at]) < left_room[user_code_n[at]]]
        left_room -= np.bincount(user_code_n[at], minlength=len(users))
        if len(at):
            later = at + distance
            yield Pairs(rows.item_n[at], rows.item_n[later], rows.user_n[at], rows.ts_ms_n[later])


def mine_pairs(interactions: Interactions, config: PairConfig) -> Pairs:
    """All pairs, in order of time, with both limits."""
    blocks = list(pair_blocks(interactions, config))
    empty = np.zeros(0, np.int64)
    pairs = Pairs(
        *(
            np.concatenate([getattr(block, name) for block in blocks] or [empty])
            for name in ("left_P", "right_P", "user_P", "ts_ms_P")
        )
    )
    if config.item_pairs_max:
        pairs = _limited(pairs, config)
    order = np.lexsort((pairs.right_P, pairs.left_P, pairs.user_P, pairs.ts_ms_P))
    return Pairs(*(getattr(pairs, n)[order] for n in ("left_P", "right_P", "user_P", "ts_ms_P")))


def _limited(pairs: Pairs, config: PairConfig) -> Pairs:
    """Without what exceeds `item_pairs_max` on the left, and then on the right."""
    lottery = np.random.default_rng(config.seed).permutation(len(pairs))
    for name in ("left_P", "right_P"):
        item_P = getattr(pairs, name)
        order = np.lexsort((lottery, item_P))
        keep = np.empty(len(pairs), np.bool_)
        keep[order] = _rank(item_P[order]) < config.item_pairs_max
        pairs, lottery = pairs.where(keep), lottery[keep]
    return pairs


def _rank(group_n: I64) -> I64:
    """Place of each row within its run of equal values."""
    new = np.ones(len(group_n), np.bool_)
    new[1:] = np.diff(group_n) != 0
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(group_n)))
    return np.arange(len(group_n)) - np.repeat(starts, lengths)


def _rank_from_end(group_n: I64) -> I64:
    """The same, counted from the run's end."""
    return _rank(group_n[::-1])[::-1]


def nearest_pairs(pairs: Pairs, items_N: I64, vectors_ND: NDArray[np.float32]) -> Pairs:
    """Of the pairs with one right item at one time of one user, that whose left is most like it.

    The trigger of QARM's user-to-item pairs: of what a user took lately, the item closest to the
    target in an id space. `items_N` sorted keys of `vectors_ND`, which are of unit length; pairs
    with an item that has none are left out.
    """
    pairs = pairs.where(np.isin(pairs.left_P, items_N) & np.isin(pairs.right_P, items_N))
    left = vectors_ND[np.searchsorted(items_N, pairs.left_P)]
    right = vectors_ND[np.searchsorted(items_N, pairs.right_P)]
    cosine_P = np.einsum("pd,pd->p", left, right)
    order = np.lexsort((-cosine_P, pairs.right_P, pairs.user_P))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(pairs.user_P[order]) != 0) | (np.diff(pairs.right_P[order]) != 0)
    keep = np.zeros(len(pairs), np.bool_)
    keep[order[first]] = True
    return pairs.where(keep)


def hard_negatives(pairs: Pairs, shown: Interactions, taken: Interactions) -> tuple[I64, I64]:
    """For each pair the item that its user last passed over, and whether there is one (0, 1) [P].

    Passed over: shown at or before the pair's time and never taken by that user.
    """
    both = (
        np.concatenate((taken.user_n, shown.user_n)),
        np.concatenate((taken.item_n, shown.item_n)),
    )
    _, code = np.unique(np.stack(both), axis=1, return_inverse=True)
    code = code.ravel()
    passed = shown.where(~np.isin(code[len(taken) :], code[: len(taken)]))
    order = np.lexsort((passed.ts_ms_n, passed.user_n))
    passed = Interactions(passed.user_n[order], passed.item_n[order], passed.ts_ms_n[order])
    if not len(passed):
        return np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
    # Both in one order of (user, time): the place of a pair is that of its last passed-over item.
    users = np.concatenate((passed.user_n, pairs.user_P))
    times = np.concatenate((passed.ts_ms_n, pairs.ts_ms_P))
    is_pair = np.arange(len(users)) >= len(passed)
    merged = np.lexsort((is_pair, times, users))
    last = np.maximum.accumulate(np.where(is_pair[merged], -1, merged))
    at_P = np.empty(len(pairs), np.int64)
    at_P[merged[is_pair[merged]] - len(passed)] = last[is_pair[merged]]
    found_P = (at_P >= 0) & (passed.user_n[np.maximum(at_P, 0)] == pairs.user_P)
    return np.where(found_P, passed.item_n[np.maximum(at_P, 0)], 0), found_P.astype(np.int64)
