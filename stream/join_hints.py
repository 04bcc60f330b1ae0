"""What the join's loop will read next, hinted at before it does. Changes no value.

The one exception to the rule that a loop and all that it calls share a file, because numba's cache
does not see changes elsewhere: a hint that is out of date is slower, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.prefetch import prefetch

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True, _nrt=False))  # type: ignore[call-overload]  # not in numba's stubs

# A call of these is given all arrays anew, so it is made for several events. Measured: hints that
# are further ahead are gone from the nearest cache when they are needed.
HINTED: Final = 8
_FAR: Final = 8
_NEAR: Final = 3
_SAMPLES: Final = 4
_LINE_WORDS: Final = 8


@_compiled
def hint_far(
    at: int, kind: U8, row: I32, key: I64, impression_key: I64, user: I64, item: I64, ids: I64,
    counter_keys: I64, seen: I64, users: I64, items: I64, by_user: NDArray[Any],
    by_other: NDArray[Any], is_global: U8,
) -> None:  # fmt: skip
    """Where the entries of some events a little behind `at` begin, in every table."""
    for i in range(at + _FAR, min(at + _FAR + HINTED, kind.shape[0])):
        prefetch(seen, key[i] & (seen.shape[0] - 1), 0)
        prefetch(seen, impression_key[i] & (seen.shape[0] - 1), 0)
        prefetch(users, user[i] & (users.shape[0] - 1), 0)
        if kind[i] != 0:
            continue
        m = row[i]
        prefetch(items, item[i] & (items.shape[0] - 1), 0)
        prefetch(ids, m, 0)
        for j in range(counter_keys.shape[1]):
            if is_global[j]:
                prefetch(by_other, counter_keys[m, j] & (by_other.shape[0] - 1), 0)
            else:
                prefetch(by_user, counter_keys[m, j] & (by_user.shape[0] - 1), 0)


@_compiled
def hint_near(
    at: int, kind: U8, row: I32, user: I64, counter_keys: I64, users: I64, seq: I64, last_ts: I64,
    session: I64, clicked: I64, interactions: I64, by_user: NDArray[Any], by_other: NDArray[Any],
    user_decayed: NDArray[Any], other_decayed: NDArray[Any], is_global: U8, decay_row: I64,
) -> None:  # fmt: skip
    """What the entries of the next events lead to: users' state and decayed copies."""
    for i in range(at + _NEAR, min(at + _NEAR + HINTED, kind.shape[0])):
        place = user[i] & (users.shape[0] - 1)
        if users[place, 0] == user[i]:
            own = users[place, 1]
            prefetch(seq, own, 0)
            prefetch(last_ts, own, 0)
            prefetch(session, own, 0)
            prefetch(clicked, own, 0)
            prefetch(interactions, own, 0)
        if kind[i] != 0:
            continue
        for j in range(counter_keys.shape[1]):
            if decay_row[j] < 0:
                continue
            if is_global[j]:
                place = counter_keys[row[i], j] & (by_other.shape[0] - 1)
                prefetch(other_decayed, by_other[place]["decayed"], 0)
            else:
                place = counter_keys[row[i], j] & (by_user.shape[0] - 1)
                prefetch(user_decayed, by_user[place]["decayed"], 0)


@_compiled
def hint_settling(
    heap: I64, n: int, seen: I64, keys: I64, counter_row: I32, by_user: NDArray[Any],
    by_other: NDArray[Any], user_decayed: NDArray[Any], other_decayed: NDArray[Any],
    is_global: U8, decay_row: I64,
) -> None:  # fmt: skip
    """What the next of n open impressions need when they settle.

    The one that is second or third in the heap now is the first soon: its counters' records are
    near by then, and lead to the decayed copies.
    """
    for i in range(min(n, 3)):
        slot = heap[i, 2]
        prefetch(seen, keys[slot] & (seen.shape[0] - 1), 0)
        for j in range(counter_row.shape[1]):
            row = counter_row[slot, j]
            if i > 0:
                if is_global[j]:
                    prefetch(by_other, row, 0)
                else:
                    prefetch(by_user, row, 0)
            elif decay_row[j] >= 0 and row >= 0:
                if is_global[j]:
                    prefetch(other_decayed, by_other[row]["decayed"], 0)
                else:
                    prefetch(user_decayed, by_user[row]["decayed"], 0)


@_compiled
def hint_history(slots: I64, i: int, user_row: I64, rings: I64, first: int, ring: int) -> None:
    """The ring of a sample a few behind the i-th."""
    row = user_row[slots[min(i + _SAMPLES, slots.shape[0] - 1)]]
    for q in range(first, first + ring, _LINE_WORDS):
        prefetch(rings, row, q)
