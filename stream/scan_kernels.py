"""Well-formed impressions and clicks in row form, from bytes to columns: compiled, no objects.

Takes what is usual (integer ids, ASCII texts up to 128 bytes) and gives up on a whole record at
the first thing that is not, wrong or merely rare: `codec` then reads that record by msgspec, which
decides. So nothing here says what is wrong, and what it takes means the same as there. All that
these kernels call is in this file, because numba's cache does not see changes elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
U64 = np.uint64
# Scalars of compiled code: numpy's types differ after each operation, the compiler's do not.
Int = Any
Word = Any

_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True, _nrt=False))  # type: ignore[call-overload]  # not in numba's stubs

TEXT_BYTES_MAX = 128
NESTED_MAX = 64
GIVE_UP = -1

# What a field may hold, as bits.
AS_ID, AS_NUMBER = 1, 2

# Where the ids and numbers of a row come from.
CONTEXT, FEATURES, USER, ITEM, HOUR, WEEKDAY, POSITION, NOTHING = range(8)


def _word(text: str) -> np.uint64:
    return U64(int.from_bytes(text.encode(), "little"))


_V, _TYPE, _EVENTS, _TS_MS, _ITEMS = map(_word, ("v", "type", "events", "ts_ms", "items"))
_USER_ID, _ITEM_ID, _CONTEXT, _KIND = map(_word, ("user_id", "item_id", "context", "kind"))
_FEATURES, _POSITION, _REQUEST, _ID = map(_word, ("features", "position", "request_", "id"))
_SERVED, _FEATURE_, _VERSION = map(_word, ("served", "feature_", "version"))

_GAMMA, _M1, _M2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_ZERO_KEY = np.int64(0x5DEECE66D1234567)
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000

# XXH3 (xxHash 0.8): the first 128 bytes of its default secret, and its primes.
_SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    ),
    np.uint64,
)
_PRIME1, _PRIME2 = U64(0x9E3779B185EBCA87), U64(0xC2B2AE3D27D4EB4F)
_PRIME3, _MX1, _MX2 = U64(0x165667B19E3779F9), U64(0x165667919E3779F9), U64(0x9FB21C651E98DF25)
_LOW = U64(0xFFFFFFFF)


class Wanted(NamedTuple):
    """Names that are read of a map, one behind the other, and what each may hold."""

    text: U8
    start: I64
    wants: I64


class Sources(NamedTuple):
    """Where each id (with its salt) and each number comes from: a kind, and a place in its map."""

    id_kind: I64
    id_place: I64
    id_salt: I64
    number_kind: I64
    number_place: I64


class Found(NamedTuple):
    """Values of the wanted names of one map: plain keys, numbers."""

    key: I64
    number: NDArray[np.float64]


class Limits(NamedTuple):
    """Bounds of an event: outside of them, msgspec's way."""

    time_min: int
    time_max: int
    max_future_ms: int
    events_max: int
    timezone_ms: int


class Logged(NamedTuple):
    """Numbers that a server logged: their name, how many an item (0: not read), and room for them.

    `values_sN` takes those of an item as a row; `used` [1] counts its rows. `place_n` is that of
    a row of `Rows`, -1 for none; the key of their version is in the last column of `Rows.ids`.
    """

    name: Wanted
    width: int
    values_sN: NDArray[np.float32]
    used: I64
    place_n: I64


class Rows(NamedTuple):
    """Columns that are filled, with room for the rows of a batch."""

    record: I64
    place: I64
    ts: I64
    request: I64
    item: I64
    user: I64
    user_id: I64
    kind: I64
    position: NDArray[np.int32]
    ids: I64
    numbers: NDArray[np.float32]


@_compiled
def mix(z: Word) -> Word:
    """SplitMix64's finalizer, as `keys.mix`."""
    z ^= z >> U64(30)
    z *= _M1
    z ^= z >> U64(27)
    z *= _M2
    return z ^ (z >> U64(31))


@_compiled
def key_of_int(value: Int) -> Int:
    """As `keys.keys_of_ints`."""
    z = np.int64(mix(U64(value) + _GAMMA))
    return _ZERO_KEY if z == 0 else z


@_compiled
def salted_key(key: Int, salt: Int) -> Int:
    """As `keys.salted`."""
    z = np.int64(mix(U64(key) ^ U64(salt)))
    return _ZERO_KEY if z == 0 else z


@_compiled
def word(buf: U8, p: Int, n: Int) -> Word:
    """Up to 8 bytes as a little-endian number."""
    out = U64(0)
    for i in range(n):
        out |= U64(buf[p + i]) << U64(8 * i)
    return out


@_compiled
def word8(buf: U8, p: Int) -> Word:
    """8 bytes as a little-endian number; compiles to one load."""
    return (
        U64(buf[p]) | U64(buf[p + 1]) << U64(8) | U64(buf[p + 2]) << U64(16)
        | U64(buf[p + 3]) << U64(24) | U64(buf[p + 4]) << U64(32) | U64(buf[p + 5]) << U64(40)
        | U64(buf[p + 6]) << U64(48) | U64(buf[p + 7]) << U64(56)
    )  # fmt: skip


@_compiled
def folded(a: Word, b: Word) -> Word:
    """Both halves of the 128-bit product, xored."""
    a0, a1, b0, b1 = a & _LOW, a >> U64(32), b & _LOW, b >> U64(32)
    low, mid, other = a0 * b0, a1 * b0, a0 * b1
    carry = (low >> U64(32)) + (mid & _LOW) + other
    high = (mid >> U64(32)) + (carry >> U64(32)) + a1 * b1
    return ((carry << U64(32)) | (low & _LOW)) ^ high


@_compiled
def mixed16(buf: U8, p: Int, s: Int) -> Word:
    """XXH3's mix of 16 bytes with the secret from word s on."""
    return folded(word8(buf, p) ^ _SECRET[s], word8(buf, p + 8) ^ _SECRET[s + 1])


@_compiled
def swapped(x: Word) -> Word:
    """Bytes in the other order."""
    out = U64(0)
    for i in range(8):
        out |= ((x >> U64(8 * i)) & U64(255)) << U64(56 - 8 * i)
    return out


@_compiled
def xxh3(buf: U8, p: Int, n: Int) -> Word:
    """XXH3 with 64 bits and seed 0 of 1 to 128 bytes, as the library `xxhash` gives it."""
    if n <= 3:
        c = U64(buf[p]) << U64(16) | U64(buf[p + (n >> 1)]) << U64(24)
        c |= U64(buf[p + n - 1]) | U64(n) << U64(8)
        h = c ^ ((_SECRET[0] & _LOW) ^ (_SECRET[0] >> U64(32)))
        h = (h ^ (h >> U64(33))) * _PRIME2
        h = (h ^ (h >> U64(29))) * _PRIME3
        return h ^ (h >> U64(32))
    if n <= 8:
        both = word(buf, p + n - 4, 4) + (word(buf, p, 4) << U64(32))
        h = both ^ (_SECRET[1] ^ _SECRET[2])
        h ^= ((h << U64(49)) | (h >> U64(15))) ^ ((h << U64(24)) | (h >> U64(40)))
        h *= _MX2
        h = (h ^ ((h >> U64(35)) + U64(n))) * _MX2
        return h ^ (h >> U64(28))
    if n <= 16:
        low = word8(buf, p) ^ (_SECRET[3] ^ _SECRET[4])
        high = word8(buf, p + n - 8) ^ (_SECRET[5] ^ _SECRET[6])
        h = U64(n) + swapped(low) + high + folded(low, high)
    else:
        h = U64(n) * _PRIME1
        for i in range((n - 1) // 32, -1, -1):
            h += mixed16(buf, p + 16 * i, 4 * i)
            h += mixed16(buf, p + n - 16 * (i + 1), 4 * i + 2)
    h = (h ^ (h >> U64(37))) * _MX1
    return h ^ (h >> U64(32))


@_compiled
def big(buf: U8, p: Int, n: Int) -> Int:
    """Several bytes as a big-endian number."""
    out = np.int64(0)
    for i in range(n):
        out = (out << 8) | np.int64(buf[p + i])
    return int(out)


@_compiled
def size_of(buf: U8, p: Int, end: Int, fix: Int, fix_max: Int, first: Int) -> tuple[Int, Int]:
    """(place behind the header, size) of a map, list or text; or GIVE_UP.

    `fix` is the tag of the short form; `first` that of the form with one byte of size (texts) or
    one less than that with two (maps, lists).
    """
    if p >= end:
        return GIVE_UP, 0
    b = np.int64(buf[p])
    if fix <= b <= fix + fix_max:
        return p + 1, b - fix
    if not first <= b <= first + 2 or (b == first and fix_max != 31):
        return GIVE_UP, 0
    width = 1 << (b - first)
    if p + 1 + width > end:
        return GIVE_UP, 0
    return p + 1 + width, big(buf, p + 1, width)


@_compiled
def map_size(buf: U8, p: Int, end: Int) -> tuple[Int, Int]:
    """Header of a map."""
    return size_of(buf, p, end, 0x80, 15, 0xDD)


@_compiled
def list_size(buf: U8, p: Int, end: Int) -> tuple[Int, Int]:
    """Header of a list."""
    return size_of(buf, p, end, 0x90, 15, 0xDB)


@_compiled
def text_size(buf: U8, p: Int, end: Int) -> tuple[Int, Int]:
    """Header of a text; the text ends before `end`."""
    q, n = size_of(buf, p, end, 0xA0, 31, 0xD9)
    return (GIVE_UP, 0) if q < 0 or q + n > end else (q, n)


@_compiled
def integer(buf: U8, p: Int, end: Int) -> tuple[Int, Int]:
    """(place behind, value) of an integer of 64 bits, or GIVE_UP."""
    if p >= end:
        return GIVE_UP, 0
    b = np.int64(buf[p])
    if b <= 0x7F:
        return p + 1, b
    if b >= 0xE0:
        return p + 1, b - 256
    if not (0xCC <= b <= 0xD3):
        return GIVE_UP, 0
    width = 1 << ((b - 0xCC) & 3)
    if p + 1 + width > end:
        return GIVE_UP, 0
    value = big(buf, p + 1, width)
    if b <= 0xCF:
        return (GIVE_UP, 0) if value < 0 else (p + 1 + width, value)
    sign = np.int64(1) << (8 * width - 1)
    return p + 1 + width, (value ^ sign) - sign if width < 8 else value


@_compiled
def behind(buf: U8, p: Int, end: Int) -> Int:
    """Place behind a value of any kind, or GIVE_UP."""
    left, nested = np.int64(1), 0
    while left > 0:
        if p >= end:
            return GIVE_UP
        b = np.int64(buf[p])
        left -= 1
        if b <= 0x7F or b >= 0xE0 or b in (0xC0, 0xC2, 0xC3):
            p += 1
        elif 0xA0 <= b <= 0xBF:
            p += 1 + b - 0xA0
        elif 0xCA <= b <= 0xD3:
            p += 1 + (4 << (b - 0xCA) if b <= 0xCB else 1 << ((b - 0xCC) & 3))
        elif 0xD9 <= b <= 0xDB or 0xC4 <= b <= 0xC6:
            width = 1 << (b - (0xD9 if b >= 0xD9 else 0xC4))
            if p + 1 + width > end:
                return GIVE_UP
            p += 1 + width + big(buf, p + 1, width)
        else:
            pairs = b <= 0x8F or b >= 0xDE
            q, n = map_size(buf, p, end) if pairs else list_size(buf, p, end)
            nested += 1
            if q < 0 or nested > NESTED_MAX:
                return GIVE_UP
            left += 2 * n if pairs else n
            p = q
    return p if p <= end else GIVE_UP


@_compiled
def is_ascii(buf: U8, p: Int, n: Int) -> Any:
    """Whether a text is plain ASCII, so that it is UTF-8 for certain."""
    every = np.uint8(0)
    for i in range(p, p + n):
        every |= buf[i]
    return every < 128


@_compiled
def take_value(buf: U8, p: Int, end: Int, wants: Int, found: Found, w: Int) -> Int:
    """Read the value of wanted name w; the place behind it, or GIVE_UP."""
    if p >= end:
        return GIVE_UP
    b = np.int64(buf[p])
    if b == 0xC0:
        return p + 1  # missing, as it began
    if b in (0xC2, 0xC3):
        found.key[w] = key_of_int(b - 0xC2)
        found.number[w] = b - 0xC2
        return p + 1
    if b == 0xCB and wants == AS_NUMBER:
        if p + 9 > end:
            return GIVE_UP
        found.number[w] = np.int64(big(buf, p + 1, 8)).view(np.float64)
        return p + 9
    if 0xA0 <= b <= 0xBF or b == 0xD9:
        q, n = text_size(buf, p, end)
        usual = q >= 0 and 0 < n <= TEXT_BYTES_MAX
        if wants != AS_ID or not usual or not is_ascii(buf, q, n):
            return GIVE_UP
        key = np.int64(xxh3(buf, q, n))
        found.key[w] = key
        return GIVE_UP if key == 0 else q + n
    q, value = integer(buf, p, end)
    found.key[w] = key_of_int(value)
    found.number[w] = value
    return q


@_compiled
def take_map(buf: U8, p: Int, end: Int, wanted: Wanted, found: Found) -> Int:
    """Read the wanted names of a map; the place behind it, or GIVE_UP."""
    found.key[:] = 0
    found.number[:] = 0.0
    p, n = map_size(buf, p, end)
    taken = np.int64(0)
    for _ in range(n):
        if p < 0:
            return GIVE_UP
        q, length = text_size(buf, p, end)
        if q < 0:
            return GIVE_UP
        p = q + length
        w = -1
        for i in range(wanted.wants.shape[0]):
            first = wanted.start[i]
            if wanted.start[i + 1] - first != length:
                continue
            j = 0
            while j < length and buf[q + j] == wanted.text[first + j]:
                j += 1
            if j == length:
                w = i
                break
        if w < 0:
            p = behind(buf, p, end)
        else:
            if (taken >> w) & 1:
                return GIVE_UP
            taken |= np.int64(1) << w
            p = take_value(buf, p, end, wanted.wants[w], found, w)
    return p


@_compiled
def head(buf: U8, p: Int, end: Int, single: I64, envelope: I64, events_max: Int) -> tuple[Int, Int]:
    """(place, number) of a record's events; a single event's own map is its place, number 0.

    `v` and `type` come first, `events` last, as all writers have it; else GIVE_UP.
    """
    begin = p
    p, n = map_size(buf, p, end)
    is_single, is_envelope, version = False, False, False
    for i in range(n):
        q, length = text_size(buf, p, end)
        if q < 0 or length > 8:
            return GIVE_UP, 0
        name = word(buf, q, length)
        p = q + length
        if name == _V:
            p, value = integer(buf, p, end)
            version = value == 1
        elif name == _TYPE:
            q, length = text_size(buf, p, end)
            if q < 0 or length not in (single[0], envelope[0]):
                return GIVE_UP, 0
            one = U64(word(buf, q, min(length, 8)))
            rest = U64(word(buf, q + 8, length - 8)) if length > 8 else U64(0)
            is_single = length == single[0] and one == U64(single[1]) and rest == U64(single[2])
            is_envelope = (
                length == envelope[0] and one == U64(envelope[1]) and rest == U64(envelope[2])
            )
            p = q + length
        elif name == _EVENTS and is_envelope and version and i == n - 1:
            p, many = list_size(buf, p, end)
            return (p, many) if 0 < many <= events_max else (GIVE_UP, 0)
        else:
            return GIVE_UP, 0
        if p < 0:
            return GIVE_UP, 0
        if is_single and version:
            return begin, 0
    return GIVE_UP, 0


@_compiled
def take_shown(
    buf: U8, p: Int, end: Int, wanted: Wanted, found: Found, position: Int
) -> tuple[Int, Int, Int]:  # fmt: skip
    """(place behind, item id, position) of one item shown, or GIVE_UP."""
    p, n = map_size(buf, p, end)
    item, taken = np.int64(0), 0
    found.key[:] = 0
    found.number[:] = 0.0
    for _ in range(n):
        q, length = text_size(buf, p, end) if p >= 0 else (GIVE_UP, 0)
        if q < 0:
            return GIVE_UP, 0, 0
        p = q + length
        name = word(buf, q, min(length, 8))
        bit = 0
        if length == 7 and name == _ITEM_ID:
            p, item = integer(buf, p, end)
            bit = 1
        elif length == 8 and name == _POSITION:
            p, value = integer(buf, p, end)
            if not -(2**31) <= value < 2**31:
                return GIVE_UP, 0, 0
            position = value if value >= 0 else position
            bit = 2
        elif length == 8 and name == _FEATURES and wanted.wants.shape[0]:
            p = take_map(buf, p, end, wanted, found)
            bit = 4
        elif length == 10 and name != _REQUEST:  # perhaps a propensity
            return GIVE_UP, 0, 0
        else:
            p = behind(buf, p, end)
        if taken & bit:
            return GIVE_UP, 0, 0
        taken |= bit
    return (p, int(item), position) if taken & 1 else (GIVE_UP, 0, 0)


@_compiled
def take_raw(buf: U8, p: Int, end: Int, many: Int, logged: Logged) -> Int:
    """Read the logged numbers of `many` items as float32 bytes; the place behind, or GIVE_UP."""
    p, n = size_of(buf, p, end, 0x100, 31, 0xC4)
    if p < 0 or n != 4 * many * logged.width or p + n > end:
        return GIVE_UP
    first, finite = logged.used[0], True
    for i in range(many):
        for j in range(logged.width):
            value = np.uint32(word(buf, p, 4)).view(np.float32)
            finite &= np.isfinite(value)
            logged.values_sN[first + i, j] = value
            p += 4
    return p if finite else GIVE_UP


@_compiled
def take_list(buf: U8, p: Int, end: Int, many: Int, logged: Logged) -> Int:
    """Read the logged numbers of `many` items as a list; the place behind, or GIVE_UP."""
    p, n = list_size(buf, p, end)
    if p < 0 or n != many * logged.width:
        return GIVE_UP
    first = logged.used[0]
    for i in range(many):
        for j in range(logged.width):
            if p < 0 or p >= end:
                return GIVE_UP
            b = np.int64(buf[p])
            number: Any = 0.0
            if b == 0xCB and p + 9 <= end:
                number = np.int64(swapped(word8(buf, p + 1))).view(np.float64)
                p += 9
            elif b == 0xCA and p + 5 <= end:
                number = np.uint32(big(buf, p + 1, 4)).view(np.float32)
                p += 5
            else:
                p, value = integer(buf, p, end)
                number = np.float64(value)
            narrow = np.float32(number)
            if not np.isfinite(narrow):
                return GIVE_UP
            logged.values_sN[first + i, j] = narrow
    return p


@_compiled
def take_served(buf: U8, p: Int, end: Int, many: Int, logged: Logged) -> tuple[Int, Int]:
    """(place behind, key of the version) of what was logged with `many` items, or GIVE_UP.

    The key is 0 where no numbers were; those that were are in the next `many` rows.
    """
    if p < end and buf[p] == 0xC0:
        return p + 1, 0
    p, n = map_size(buf, p, end)
    key, taken, given = np.int64(0), 0, 0
    for _ in range(n):
        q, length = text_size(buf, p, end) if p >= 0 else (GIVE_UP, 0)
        if q < 0:
            return GIVE_UP, 0
        p = q + length
        name = word(buf, q, min(length, 8))
        bit = 0
        if length == 15 and name == _FEATURE_ and word(buf, q + 8, 7) == _VERSION:
            q, length = text_size(buf, p, end)
            if q < 0 or not 0 < length <= TEXT_BYTES_MAX or not is_ascii(buf, q, length):
                return GIVE_UP, 0
            key = np.int64(xxh3(buf, q, length))
            p = q + length if key != 0 else GIVE_UP
            bit = 1
        elif length == 8 and name == _FEATURES:
            p, given = take_logged(buf, p, end, many, logged)
            bit = 2
        else:
            p = behind(buf, p, end)
        if taken & bit:
            return GIVE_UP, 0
        taken |= bit
    return (p, key if given else 0) if taken == 3 else (GIVE_UP, 0)


@_compiled
def take_logged(buf: U8, p: Int, end: Int, many: Int, logged: Logged) -> tuple[Int, Int]:
    """(place behind, whether the wanted numbers were there) of the logged features, or GIVE_UP."""
    if logged.used[0] + many > logged.values_sN.shape[0]:
        return GIVE_UP, 0
    p, n = map_size(buf, p, end)
    met, given = 0, 0
    for _ in range(n):
        q, length = text_size(buf, p, end) if p >= 0 else (GIVE_UP, 0)
        if q < 0:
            return GIVE_UP, 0
        p = q + length
        if number_of(buf, q, length, logged.name) < 0:
            p = behind(buf, p, end)
            continue
        if met or p >= end:
            return GIVE_UP, 0
        met = 1
        if buf[p] == 0xC0:
            p += 1
            continue
        given = 1
        if 0xC4 <= buf[p] <= 0xC6:
            p = take_raw(buf, p, end, many, logged)
        else:
            p = take_list(buf, p, end, many, logged)
    return p, given


@_compiled
def add_served(
    buf: U8, p: Int, end: Int, logged: Logged, rows: Rows, first: Int, last: Int
) -> Any:  # fmt: skip
    """Add what was logged at p (-1: nothing) to rows `first` to `last`; False to give up."""
    key, place = np.int64(0), logged.used[0]
    if p >= 0:
        p, key = take_served(buf, p, end, last - first, logged)
        if p < 0:
            return False
    for row in range(first, last):
        logged.place_n[row] = place + row - first if key != 0 else -1
        rows.ids[row, rows.ids.shape[1] - 1] = key
    if key != 0:
        logged.used[0] += last - first
    return True


@_compiled
def take_impression(
    buf: U8, p: Int, end: Int, stamp: Int, context: Wanted, features: Wanted, ctx: Found,
    feat: Found, sources: Sources, limits: Limits, rows: Rows, n_rows: Int,
) -> tuple[Int, Int, Int]:  # fmt: skip
    """(place behind, rows so far, place of `served` or -1) of one impression, or GIVE_UP."""
    p, n = map_size(buf, p, end)
    request, user, ts, items, taken = np.int64(0), np.int64(0), np.int64(0), -1, 0
    served = -1
    ctx.key[:] = 0
    ctx.number[:] = 0.0
    for _ in range(n):
        q, length = text_size(buf, p, end) if p >= 0 else (GIVE_UP, 0)
        if q < 0:
            return GIVE_UP, 0, GIVE_UP
        p = q + length
        name = word(buf, q, min(length, 8))
        bit = 0
        if length == 10 and name == _REQUEST and word(buf, q + 8, 2) == _ID:
            p, request = integer(buf, p, end)
            bit = 1
        elif length == 7 and name == _USER_ID:
            p, user = integer(buf, p, end)
            bit = 2
        elif length == 5 and name == _TS_MS:
            p, ts = integer(buf, p, end)
            bit = 4
        elif length == 5 and name == _ITEMS:
            items = p
            p = behind(buf, p, end)
            bit = 8
        elif length == 7 and name == _CONTEXT and context.wants.shape[0]:
            p = take_map(buf, p, end, context, ctx)
            bit = 16
        else:
            if length == 6 and name == _SERVED:
                served, bit = p, 32
            p = behind(buf, p, end)
        if taken & bit:
            return GIVE_UP, 0, GIVE_UP
        taken |= bit
    late = ts < limits.time_min or ts >= limits.time_max
    future = stamp > 0 and ts - stamp > limits.max_future_ms
    if p < 0 or (taken & 15) != 15 or late or future:
        return GIVE_UP, 0, GIVE_UP
    q, many = list_size(buf, items, end)
    if q < 0 or many == 0 or n_rows + many > rows.ts.shape[0]:
        return GIVE_UP, 0, GIVE_UP
    for i in range(many):
        q, item, position = take_shown(buf, q, end, features, feat, i)
        if q < 0:
            return GIVE_UP, 0, GIVE_UP
        rows.ts[n_rows], rows.user_id[n_rows] = ts, user
        rows.request[n_rows], rows.user[n_rows] = key_of_int(request), key_of_int(user)
        rows.item[n_rows], rows.position[n_rows] = key_of_int(item), position
        if not fill(ctx, feat, sources, limits, rows, n_rows):
            return GIVE_UP, 0, GIVE_UP
        n_rows += 1
    return p, n_rows, served


@_compiled
def of_time(kind: Int, ts: Int, position: Int, timezone_ms: Int) -> Int:
    """Hour, weekday (0 is Monday) or position."""
    if kind == HOUR:
        return (ts + timezone_ms) // _HOUR_MS % 24
    if kind == WEEKDAY:
        return ((ts + timezone_ms) // _DAY_MS + 3) % 7
    return position


@_compiled
def fill(
    ctx: Found, feat: Found, sources: Sources, limits: Limits, rows: Rows, row: Int
) -> Any:  # fmt: skip
    """Fill the ids and numbers of a row; False for a number that is not finite."""
    for f in range(sources.id_kind.shape[0]):
        kind, place = sources.id_kind[f], sources.id_place[f]
        if kind == NOTHING:
            rows.ids[row, f] = 0
            continue
        if kind == CONTEXT:
            key = ctx.key[place]
        elif kind == FEATURES:
            key = feat.key[place]
        elif kind == USER:
            key = rows.user[row]
        elif kind == ITEM:
            key = rows.item[row]
        else:
            key = key_of_int(of_time(kind, rows.ts[row], rows.position[row], limits.timezone_ms))
        rows.ids[row, f] = salted_key(key, sources.id_salt[f])
    for x in range(sources.number_kind.shape[0]):
        kind, place = sources.number_kind[x], sources.number_place[x]
        number = 0.0
        if kind == CONTEXT:
            number = ctx.number[place]
        elif kind == FEATURES:
            number = feat.number[place]
        elif kind != NOTHING:
            number = of_time(kind, rows.ts[row], rows.position[row], limits.timezone_ms)
        rows.numbers[row, x] = number
        if not np.isfinite(rows.numbers[row, x]):
            return False
    return True


@_compiled
def take_click(
    buf: U8, p: Int, end: Int, stamp: Int, kinds: Wanted, limits: Limits, rows: Rows, row: Int
) -> Int:  # fmt: skip
    """Read one click into a row; the place behind it, or GIVE_UP."""
    p, n = map_size(buf, p, end)
    taken, ts = 0, np.int64(0)
    if row >= rows.ts.shape[0]:
        return GIVE_UP
    rows.request[row] = 0
    for _ in range(n):
        q, length = text_size(buf, p, end) if p >= 0 else (GIVE_UP, 0)
        if q < 0:
            return GIVE_UP
        p = q + length
        name = word(buf, q, min(length, 8))
        bit = 0
        if length == 10 and name == _REQUEST and word(buf, q + 8, 2) == _ID:
            if p < end and buf[p] == 0xC0:
                p += 1
            else:
                p, value = integer(buf, p, end)
                rows.request[row] = key_of_int(value)
            bit = 1
        elif length == 7 and name == _USER_ID:
            p, value = integer(buf, p, end)
            rows.user_id[row], rows.user[row] = value, key_of_int(value)
            bit = 2
        elif length == 5 and name == _TS_MS:
            p, ts = integer(buf, p, end)
            rows.ts[row] = ts
            bit = 4
        elif length == 7 and name == _ITEM_ID:
            p, value = integer(buf, p, end)
            rows.item[row] = key_of_int(value)
            bit = 8
        elif length == 4 and name == _KIND:
            q, length = text_size(buf, p, end)
            rows.kind[row] = number_of(buf, q, length, kinds) if q >= 0 else -1
            p = q + length if q >= 0 and rows.kind[row] >= 0 else GIVE_UP
            bit = 16
        else:
            p = behind(buf, p, end)
        if taken & bit:
            return GIVE_UP
        taken |= bit
    late = ts < limits.time_min or ts >= limits.time_max
    future = stamp > 0 and ts - stamp > limits.max_future_ms
    return GIVE_UP if (taken & 30) != 30 or late or future else p


@_compiled
def number_of(buf: U8, q: Int, length: Int, names: Wanted) -> Int:
    """Place of a text among the names, or -1."""
    for i in range(names.wants.shape[0]):
        first = names.start[i]
        if names.start[i + 1] - first != length:
            continue
        j = 0
        while j < length and buf[q + j] == names.text[first + j]:
            j += 1
        if j == length:
            return i
    return -1


@_compiled
def scan(
    buf: U8, ends: I64, stamps: I64, usable: U8, forms: I64, kinds: Wanted, context: Wanted,
    features: Wanted, ctx: Found, feat: Found, sources: Sources, limits: Limits, logged: Logged,
    rows: Rows,
) -> Int:  # fmt: skip
    """Rows of all usable records; a record that is given up is no longer `usable` after it.

    `forms` holds length and first 16 bytes of the types of a single event and of an envelope, and
    whether they are clicks.
    """
    n_rows = 0
    logged.used[0] = 0
    is_click = forms[6] != 0
    for r in range(ends.shape[0]):
        if not usable[r]:
            continue
        begin = ends[r - 1] if r else 0
        p, many = head(buf, begin, ends[r], forms[:3], forms[3:6], limits.events_max)
        row = n_rows
        for i in range(max(many, 1)):
            if p < 0:
                break
            before = row
            if is_click:
                p = take_click(buf, p, ends[r], stamps[r], kinds, limits, rows, row)
                row += 1
            else:
                p, row, served = take_impression(
                    buf, p, ends[r], stamps[r], context, features, ctx, feat, sources, limits,
                    rows, row,
                )  # fmt: skip
                if logged.width and p >= 0:
                    good = add_served(buf, served, ends[r], logged, rows, before, row)
                    p = p if good else GIVE_UP
            for j in range(before, row):
                rows.record[j] = r
                rows.place[j] = i
        if p == ends[r]:
            n_rows = row
        else:
            usable[r] = 0
    return n_rows
