"""64-bit keys of ids. Integer ids can be read back from their keys; string ids cannot.

A key is never 0, which marks an empty place everywhere. Two string ids collide with probability
2^-64 a pair (0.03 % for 100 million live ids together): accepted, and said here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_INV_M1 = np.uint64(pow(0xBF58476D1CE4E5B9, -1, 1 << 64))
_INV_M2 = np.uint64(pow(0x94D049BB133111EB, -1, 1 << 64))
_ZERO_KEY = np.int64(0x5DEECE66D1234567)
"""Stands for the one integer whose mix is 0."""


def mix(x: U64) -> U64:
    """SplitMix64 finalizer of `x`: a bijection of 64-bit words (Steele et al. 2014)."""
    z = x.copy()
    z ^= z >> np.uint64(30)
    z *= _M1
    z ^= z >> np.uint64(27)
    z *= _M2
    z ^= z >> np.uint64(31)
    return z


def _unshift(z: U64, k: int) -> U64:
    x = z.copy()
    for _ in range(64 // k):
        x = z ^ (x >> np.uint64(k))
    return x


def _unmix(z: U64) -> U64:
    z = _unshift(z, 31) * _INV_M2
    z = _unshift(z, 27) * _INV_M1
    return _unshift(z, 30)


def keys_of_ints(ids: NDArray[Any]) -> I64:
    """Keys of integer ids, int64 [n]."""
    z = mix(ids.astype(np.int64).view(np.uint64) + _GAMMA).view(np.int64)
    return np.where(z == 0, _ZERO_KEY, z)


def ints_of_keys(keys: I64) -> I64:
    """Integer ids of keys that `keys_of_ints` made, int64 [n]."""
    z = np.where(keys == _ZERO_KEY, np.int64(0), keys).view(np.uint64)
    return (_unmix(z) - _GAMMA).view(np.int64)


def key_of_str(text: str) -> int:
    """Key of a string id, as a signed 64-bit integer."""
    h = xxhash.xxh3_64_intdigest(text.encode())
    h = h - (1 << 64) if h >= 1 << 63 else h
    return h or int(_ZERO_KEY)


def key_of(value: int | str) -> int:
    """Key of one id."""
    if isinstance(value, str):
        return key_of_str(value)
    return int(keys_of_ints(np.array([value], np.int64))[0])


def salt_of(name: str) -> np.int64:
    """Salt of a field, mixed into its keys so that equal ids of two fields differ."""
    return np.int64(key_of_str(f"field:{name}"))


def salted(keys: I64, salt: np.int64) -> I64:
    """Keys of a field from plain keys; a key of 0 becomes the field's key for "missing"."""
    z = mix(keys.view(np.uint64) ^ salt.view(np.uint64)).view(np.int64)
    return np.where(z == 0, _ZERO_KEY, z)


def unsalted(keys: I64, salt: np.int64) -> I64:
    """Plain keys of a field's keys: the inverse of `salted`, 0 for its key for "missing"."""
    z = np.where(keys == _ZERO_KEY, np.int64(0), keys).view(np.uint64)
    return (_unmix(z) ^ salt.view(np.uint64)).view(np.int64)


def combined(columns: list[I64], salt: np.int64) -> I64:
    """One key a row from several keys, in order; never 0."""
    if not columns:
        raise ValueError("combined: no columns")
    z = columns[0]
    for column in columns[1:]:
        z = mix(z.view(np.uint64) * _GAMMA + column.view(np.uint64)).view(np.int64)
    return salted(z, salt)
