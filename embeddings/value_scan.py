"""Stored item vectors to rows of numbers, many at a time: compiled loops, no objects.

Takes what `encode_item_vector` writes and leaves the rest, wrong or merely rare, to `vector_codec`:
says of no value what is wrong with it. All that the loops call is in this file, because numba's
cache does not see changes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from embeddings.int8_rows import SCALE_MAX

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
# Scalars of compiled code: numpy's types differ after each operation, the compiler's do not.
Int = Any

F = TypeVar("F", bound=Callable[..., object])
_compiled = cast("Callable[[F], F]", numba.njit(cache=True, nogil=True))

# Kinds of a value: its type of numbers, or one of these.
_FLOAT16, _FLOAT32, _INT8 = 0, 1, 2
_NO_VECTOR, _UNUSUAL = -1, -2
_DTYPES: tuple[np.dtype[Any], ...] = (np.dtype("<f2"), np.dtype("<f4"), np.dtype("i1"))
_BITS = {_FLOAT16: ("<u2", 0x7FFF, 0x7C00), _FLOAT32: ("<u4", 0x7FFF_FFFF, 0x7F80_0000)}
"""Integers of the same size, all bits but the sign's, and the bits of infinity."""

_NAME_BYTES_MAX = 7


def _word(text: str) -> int:
    """As `_name` gives it: the bytes as one integer, and above them how many they are."""
    return int.from_bytes(text.encode(), "big") | len(text) << 56


_TYPE, _ENCODER, _DTYPE, _DIM = map(_word, ("type", "encoder", "dtype", "dim"))
_DATA, _SCALE, _DELETED = map(_word, ("data", "scale", "deleted"))
_NAME_FLOAT16, _NAME_FLOAT32, _NAME_INT8 = map(_word, ("float16", "float32", "int8"))
_ITEM_VECTOR = np.frombuffer(b"item_vector", np.uint8)
_REQUIRED = 0b1_1111
"""Of the bits of the fields, those that each value has: type, encoder, dtype, dim, data."""


def read_rows(
    values: Sequence[bytes | None],
    encoder: str,
    out_mD: NDArray[Any],
    has_vector_m: NDArray[np.bool_],
) -> list[int]:
    """Fills `out_mD` and `has_vector_m`, both zeros before; gives the places that it left.

    A row is `decode_stored(value).vector()` in the type of `out_mD`. Zeros stay where a value is
    None or has no vector, and at the places that were left: values of another encoder or length,
    deleted, not finite, or of another form than `encode_item_vector` writes.
    """
    blob = np.frombuffer(b"".join([value or b"" for value in values]), np.uint8)
    end_m = np.fromiter((len(value or b"") for value in values), np.int64, len(values)).cumsum()
    kind_m, at_m2 = np.empty(len(values), np.int64), np.zeros((len(values), 2), np.int64)
    name = np.frombuffer(encoder.encode(), np.uint8)
    _scan(blob, end_m, name, _ITEM_VECTOR, out_mD.shape[1], kind_m, at_m2)
    left = [np.flatnonzero(kind_m == _UNUSUAL)]
    for kind, dtype in enumerate(_DTYPES):
        places_k = np.flatnonzero(kind_m == kind)
        if not len(places_k):
            continue
        rows_kD = np.empty((len(places_k), out_mD.shape[1]), dtype)
        _copy(blob, at_m2[places_k, 0], rows_kD.view(np.uint8))
        if kind == _INT8:
            bytes_k8 = np.empty((len(places_k), 8), np.uint8)
            _copy(blob, at_m2[places_k, 1], bytes_k8)
            scale_k1 = bytes_k8.view(">f8")
            good_k1 = (scale_k1 >= 0) & (scale_k1 <= SCALE_MAX)  # False for a NaN
            rows_kD = rows_kD * np.where(good_k1, scale_k1, 0).astype(np.float32)
            good_k = good_k1[:, 0]
        else:
            bits, magnitude, infinity = _BITS[kind]
            good_k = np.all((rows_kD.view(bits) & magnitude) < infinity, axis=1)
        if not good_k.all():
            left.append(places_k[~good_k])
            places_k, rows_kD = places_k[good_k], rows_kD[good_k]
        with np.errstate(over="ignore"):
            out_mD[places_k] = rows_kD
        has_vector_m[places_k] = True
    places: list[int] = np.concatenate(left).tolist()
    return places


@_compiled
def _byte(b: U8, at: Int) -> Int:
    return np.int64(b[at])


@_compiled
def _number(b: U8, at: Int, stop: Int) -> Int:
    """The big-endian integer of at most 7 bytes."""
    value = np.int64(0)
    for j in range(at, stop):
        value = (value << 8) | np.int64(b[j])
    return value


@_compiled
def _span(b: U8, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the text or the bytes at `at` begin and stop; 0, 0 where there are none, or cut off."""
    t = _byte(b, at)
    if 0xA0 <= t <= 0xBF:
        start, size = at + 1, t & 31
    else:
        if t in (0xC4, 0xD9):
            start = at + 2
        elif t in (0xC5, 0xDA):
            start = at + 3
        elif t in (0xC6, 0xDB):
            start = at + 5
        else:
            return 0, 0
        if start > end:
            return 0, 0
        size = _number(b, at + 1, start)
    return (start, start + size) if start + size <= end else (0, 0)


@_compiled
def _name(b: U8, at: Int, end: Int) -> Int:
    """The short text at `at` as `_word` gives it; 0 where there is none."""
    start, stop = _span(b, at, end)
    size = stop - start
    if not 1 <= size <= _NAME_BYTES_MAX:
        return 0
    return _number(b, start, stop) | size << 56


@_compiled
def _equals(b: U8, at: Int, end: Int, text: U8) -> bool:
    """Whether the text at `at` is this one."""
    start, stop = _span(b, at, end)
    if start == 0 or stop - start != text.shape[0]:
        return False
    for j in range(text.shape[0]):  # noqa: SIM110  # the compiler knows no generators
        if b[start + j] != text[j]:
            return False
    return True


@_compiled
def _after(b: U8, at: Int, end: Int) -> Int:
    """Where the value at `at` stops, 0 where it is cut off or of an extension type."""
    waiting = np.int64(1)
    while waiting > 0:
        if at >= end:
            return 0
        waiting -= 1
        t = _byte(b, at)
        if 0xA0 <= t <= 0xBF or 0xC4 <= t <= 0xC6 or 0xD9 <= t <= 0xDB:
            at = _span(b, at, end)[1]
            if at == 0:
                return 0
        elif t < 0x80 or t >= 0xE0 or t in (0xC0, 0xC2, 0xC3):
            at += 1
        elif t < 0xA0:
            waiting += (t & 15) * (2 if t < 0x90 else 1)
            at += 1
        elif t in (0xDC, 0xDE) and at + 3 <= end:
            waiting += _number(b, at + 1, at + 3) * (2 if t == 0xDE else 1)
            at += 3
        elif t in (0xCA, 0xCB):
            at += 5 if t == 0xCA else 9
        elif 0xCC <= t <= 0xD3:
            at += 1 + (1 << (t & 3))
        else:
            return 0
    return at if at <= end else 0


@_compiled
def _small(b: U8, at: Int, end: Int) -> Int:
    """The integer from 0 to 65,535 at `at`, -1 where there is none."""
    t = _byte(b, at)
    if t < 0x80:
        return t
    if t == 0xCC and at + 2 <= end:
        return _byte(b, at + 1)
    if t == 0xCD and at + 3 <= end:
        return _number(b, at + 1, at + 3)
    return -1


@_compiled
def _scan(
    b: U8, end_m: I64, encoder: U8, item_vector: U8, dim: Int, kind_m: I64, at_m2: I64
) -> None:
    """The kind of each value, and where its numbers and the 8 bytes of its scale begin."""
    at = np.int64(0)
    for m in range(end_m.shape[0]):
        end = end_m[m]
        kind_m[m] = _NO_VECTOR
        if at < end:
            kind_m[m] = _kind(b, at, end, encoder, item_vector, dim, at_m2[m])
        at = end


@_compiled
def _kind(b: U8, at: Int, end: Int, encoder: U8, item_vector: U8, dim: Int, at_2: I64) -> Int:
    """The kind of one value; its bits are of type, encoder, dtype, dim, data, scale, deleted."""
    entries = _byte(b, at) - 0x80
    if not 0 <= entries <= 15:
        return _UNUSUAL
    at += 1
    seen, kind, stored_dim, size = 0, _UNUSUAL, np.int64(-1), np.int64(-1)
    for _ in range(entries):
        value = _after(b, at, end)
        if value == 0 or value >= end:
            return _UNUSUAL
        name = _name(b, at, end)
        at = _after(b, value, end)
        if at == 0:
            return _UNUSUAL
        bit = 0
        if name == _TYPE:
            bit = 1 if _equals(b, value, end, item_vector) else -1
        elif name == _ENCODER:
            bit = 2 if _equals(b, value, end, encoder) else -1
        elif name == _DTYPE:
            bit = 4
            stated = _name(b, value, end)
            if stated == _NAME_FLOAT16:
                kind = _FLOAT16
            elif stated == _NAME_FLOAT32:
                kind = _FLOAT32
            elif stated == _NAME_INT8:
                kind = _INT8
        elif name == _DIM:
            bit, stored_dim = 8, _small(b, value, end)
        elif name == _DATA:
            bit = 16 if 0xC4 <= _byte(b, value) <= 0xC6 else -1
            start, stop = _span(b, value, end)
            at_2[0], size = start, stop - start
        elif name == _SCALE:
            bit = 32 if _byte(b, value) == 0xCB else -1
            at_2[1] = value + 1
        elif name == _DELETED:
            bit = 64 if _byte(b, value) == 0xC2 else -1
        if bit < 0 or seen & bit:
            return _UNUSUAL
        seen |= bit
    scaled = seen & 32 != 0
    if at != end or seen & _REQUIRED != _REQUIRED or kind < 0 or scaled != (kind == _INT8):
        return _UNUSUAL
    if stored_dim == 0 and size == 0:
        return _NO_VECTOR
    number_bytes = 2 if kind == _FLOAT16 else (4 if kind == _FLOAT32 else 1)
    return kind if stored_dim == dim and size == dim * number_bytes else _UNUSUAL


@_compiled
def _copy(b: U8, at_k: I64, out_kN: U8) -> None:
    for k in range(out_kN.shape[0]):
        at = at_k[k]
        for j in range(out_kN.shape[1]):
            out_kN[k, j] = b[at + j]
