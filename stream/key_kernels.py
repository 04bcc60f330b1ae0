"""Keys of released events and of their counters, in one compiled pass each, as `stream/keys` does.

Works on words of 64 bits (`.view(np.uint64)`), and knows no configuration (`stream/event_keys`
does). All that is called is in this file, because numba's cache does not see changes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True))

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_ZERO_KEY = np.uint64(0x5DEECE66D1234567)

# Where a column of a counter's key comes from.
USER, ITEM, EVENT, MULTI_EVENT, ATTRIBUTE, MULTI_ATTRIBUTE = range(6)


class Salts(NamedTuple):
    """Salts of identities; of clicks and organic events by number of their kind, unknown last."""

    impression: U64
    click: U64
    organic: U64


class CounterColumns(NamedTuple):
    """Key columns of the counters, one behind the other; those of counter j begin at `first[j]`."""

    first: I64
    where: I64
    place: I64
    salt: U64


class Sources(NamedTuple):
    """What key columns read: of the rows that are asked for, and of all impressions of a chunk."""

    user: U64
    item: U64
    ids: U64
    multi: U64
    attribute_ids: U64
    attribute_multi: U64


@_compiled
def mixed(z: Any) -> Any:
    """SplitMix64's finalizer."""
    z ^= z >> np.uint64(30)
    z *= _M1
    z ^= z >> np.uint64(27)
    z *= _M2
    return z ^ (z >> np.uint64(31))


@_compiled
def salted(z: Any, salt: Any) -> Any:
    """As `keys.salted`."""
    z = mixed(z ^ salt)
    return _ZERO_KEY if z == 0 else z


@_compiled
def identities(
    kind: NDArray[np.uint8], request: U64, item: U64, user: U64, ts: U64,
    click_kind: NDArray[np.int16], salts: Salts, key: U64, impression_key: U64,
) -> None:  # fmt: skip
    """Fill the key of each event, and of the impression that it is or belongs to (rule 11)."""
    for i in range(kind.shape[0]):
        if kind[i] == 0 or kind[i] == 1:
            own = salted(mixed(request[i] * _GAMMA + item[i]), salts.impression[0])
            impression_key[i] = own
            key[i] = own if kind[i] == 0 else salted(own, salts.click[click_kind[i]])
        elif kind[i] == 2:
            z = mixed(mixed(user[i] * _GAMMA + item[i]) * _GAMMA + ts[i])
            key[i] = salted(z, salts.organic[click_kind[i]])


@_compiled
def click_keys(
    kind: NDArray[np.uint8], row: NDArray[np.int32], key: U64, salts: U64, out: U64
) -> None:
    """Fill the rows of impressions in `out` [m, K] with the keys of their clicks, by kind."""
    for i in range(kind.shape[0]):
        if kind[i] == 0:
            for k in range(out.shape[1]):
                out[row[i], k] = salted(key[i], salts[k])


@_compiled
def counter_keys(rows: I64, sources: Sources, columns: CounterColumns, out: U64) -> None:
    """Fill rows `rows` of `out` [m, J] with the counters' keys, but for counter 0, the prior's."""
    for r in range(rows.shape[0]):
        m = rows[r]
        for j in range(1, out.shape[1]):
            z = np.uint64(0)
            for c in range(columns.first[j], columns.first[j + 1]):
                where, place = columns.where[c], columns.place[c]
                if where == USER:
                    value = sources.user[r]
                elif where == ITEM:
                    value = sources.item[r]
                elif where == EVENT:
                    value = sources.ids[m, place]
                elif where == MULTI_EVENT:
                    value = sources.multi[m, place]
                elif where == ATTRIBUTE:
                    value = sources.attribute_ids[r, place]
                else:
                    value = sources.attribute_multi[r, place]
                z = value if c == columns.first[j] else mixed(z * _GAMMA + value)
            out[m, j] = salted(z, columns.salt[j])
