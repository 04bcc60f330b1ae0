"""The sequential loop of the join: compiled, over arrays, one released event after the other.

Does no allocation and raises nothing: `stream/join` reserves room before each call. Everything
that these kernels call is in this file, because numba's cache does not see changes elsewhere; but
for hints at what is read next, which change no value.
Runs unchanged as plain Python with NUMBA_DISABLE_JIT=1.

Events of one key time (`clock`) see the same state: what they change waits in `pending` until the
clock moves. Nothing settles while `pending` is filled, so a slot is never freed with its exposure
still to be counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.prefetch import prefetch
from stream.join_hints import HINTED, hint_far, hint_history, hint_near, hint_settling

I64 = NDArray[np.int64]

# Nothing here allocates, so nothing needs numba's reference counts: they took a quarter of the
# time, as each function that is handed a tuple of arrays counts every one of them.
_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True, _nrt=False))  # type: ignore[call-overload]  # not in numba's stubs

# Status of `advance`.
DONE, BATCH = 0, 1

# Verdicts on events.
OK, DUPLICATE, TOO_LATE = 0, 1, 2

# Values of the table `seen`: an open slot, done, or (above 0) the time of an early click.
OPEN_SLOT = 1 << 62
SEEN_DONE = -1

# Places in `scalars`.
(
    CLOCK, FLOOR, ADMITTED, N_FREE, N_HEAP, N_FRESH, N_OUT, N_PENDING, FORGET_HEAD, FORGET_TAIL,
    N_SEEN, N_USERS, N_USER_COUNTERS, N_GLOBAL_COUNTERS, N_ITEMS, FIRST_SETTLE, DUPLICATES,
    TOO_LATE_IMPRESSIONS, LATE_IMPRESSIONS, OVERFLOW_USERS, OVERFLOW_COUNTERS,
    EVICTED, OPEN_COUNT, WAITING, FORCED_FORGETS, N_USER_DECAYED, N_GLOBAL_DECAYED, DELAYED_HEAD,
    DELAYED_TAIL, DELAYED_EARLY, SCALARS,
) = range(31)  # fmt: skip

# Places in a row of `tallies` (one row a click kind; the last row is for unknown kinds).
(
    JOINED, LATE, DUPLICATE_CLICK, ORPHAN, ORGANIC, POSITIVE, NEGATIVE, EVICTED_OPEN,
    TOO_LATE_CLICK, TALLIES,
) = range(10)  # fmt: skip

# How many ids ahead the place of one that is to be forgotten is hinted at.
IDS_AHEAD = 8

# Operations in `pending` and `delayed`.
EXPOSED, CLICKED, INTERACTED, SETTLED = 0, 1, 2, 3


class Events(NamedTuple):
    """A chunk of released events, in key order. `key` identifies the event for ever (rule 11)."""

    kind: NDArray[np.uint8]
    clock: I64
    ts: I64
    key: I64
    impression_key: I64
    request: I64
    item: I64
    user: I64
    click_kind: NDArray[np.int16]
    row: NDArray[np.int32]
    verdict: NDArray[np.uint8]


class Shown(NamedTuple):
    """What the impression rows of a chunk bring: features, keys of their clicks and counters."""

    ids: I64
    multi: I64
    dense: NDArray[np.float32]
    click_keys: I64
    counter_keys: I64


class Open(NamedTuple):
    """Open impressions by slot: their fields, frozen state, and the facts known of them."""

    key: I64
    number: I64
    request: I64
    item: I64
    user: I64
    ts: I64
    user_row: I64
    click_ts: I64
    ids: I64
    multi: I64
    dense: NDArray[np.float32]
    counter_row: NDArray[np.int32]
    counts: NDArray[np.int32]
    decayed: NDArray[np.float32]
    history_seq: I64
    gap_ms: I64
    session_position: I64
    clicked: I64
    interactions: I64


class Exposures(NamedTuple):
    """Columns of the open impressions that an exposure needs."""

    number: I64
    counter_row: NDArray[np.int32]
    user_row: I64
    ts: I64


class Queues(NamedTuple):
    """Tables and queues around the slots."""

    seen: I64
    forget: I64
    heap: I64
    free: I64
    fresh: I64
    out: I64
    pending: I64
    scalars: I64
    tallies: I64
    delayed: I64
    delayed_rows: NDArray[np.int32]


class Users(NamedTuple):
    """User state: histories as rings, last impression, session, interactions; item counts.

    `clicked`: 1 from a click until the next impression.
    """

    table: I64
    ring: I64
    seq: I64
    last_ts: I64
    session: I64
    clicked: I64
    interactions: I64
    items: I64


class Counters(NamedTuple):
    """Counter records and decayed copies: keyed with the user id, and without it (rule 12)."""

    by_user: NDArray[Any]
    by_other: NDArray[Any]
    user_decayed: NDArray[Any]
    other_decayed: NDArray[Any]


class Params(NamedTuple):
    """Constants of a run."""

    lateness_ms: int
    window_ms: int
    horizon_ms: int
    linger_ms: int
    batch_size: int
    open_max: int
    ids_max: int
    users_max: int
    counters_max: int
    items_max: int
    bucket_ms: int
    session_gap_ms: int
    delay_ms: int
    windows_ms: I64
    history_mask: I64
    ring: int
    is_global: NDArray[np.uint8]
    exposed: I64
    decay_row: I64
    decay: NDArray[np.float32]


@_compiled
def find(table: I64, key: int) -> int:
    """Place of `key` in a linear-probing table, or -1."""
    mask = table.shape[0] - 1
    i = key & mask
    while True:
        k = table[i, 0]
        if k == key:
            return int(i)
        if k == 0:
            return -1
        i = (i + 1) & mask


@_compiled
def insert(table: I64, key: int, value: int) -> None:
    """Put a key that is not there yet."""
    mask = table.shape[0] - 1
    i = key & mask
    while table[i, 0] != 0:
        i = (i + 1) & mask
    table[i, 0] = key
    table[i, 1] = value


@_compiled
def delete(table: I64, place: int) -> None:
    """Remove the entry at `place`; later ones of its run move up (backward-shift deletion)."""
    mask = table.shape[0] - 1
    i = place
    j = place
    while True:
        j = (j + 1) & mask
        k = table[j, 0]
        if k == 0:
            break
        if ((j - (k & mask)) & mask) >= ((j - i) & mask):
            table[i, 0] = k
            table[i, 1] = table[j, 1]
            i = j
    table[i, 0] = 0
    table[i, 1] = 0


@_compiled
def rehash(old: I64, new: I64) -> None:
    """Fill the empty table `new` from `old`."""
    for i in range(old.shape[0]):
        if old[i, 0] != 0:
            insert(new, old[i, 0], old[i, 1])


@_compiled
def rehash_counters(old: NDArray[Any], new: NDArray[Any], moved: I64) -> None:
    """Fill the empty counter table `new` from `old`; `moved[old row]` is the new row."""
    mask = new.shape[0] - 1
    for i in range(old.shape[0]):
        key = old[i]["key"]
        if key != 0:
            j = key & mask
            while new[j]["key"] != 0:
                j = (j + 1) & mask
            new[j] = old[i]
            moved[i] = j


@_compiled
def counter_row(
    table: NDArray[Any], key: int, scalars: I64, used: int, limit: int, decayed: int
) -> int:
    """Row of a counter, made when it is new; -1 when the table is at its limit.

    `decayed` is the place of the number of decayed copies, or -1 for a counter without one.
    """
    mask = table.shape[0] - 1
    i = key & mask
    while True:
        k = table[i]["key"]
        if k == key:
            return int(i)
        if k == 0:
            if scalars[used] >= limit:
                scalars[OVERFLOW_COUNTERS] += 1
                return -1
            table[i]["key"] = key
            scalars[used] += 1
            if decayed >= 0:
                scalars[decayed] += 1
                table[i]["decayed"] = scalars[decayed]
            return int(i)
        i = (i + 1) & mask


@_compiled
def user_row(table: I64, key: int, scalars: I64, limit: int) -> int:
    """Row of a user, made when it is new; -1 when there are too many."""
    i = find(table, key)
    if i >= 0:
        return int(table[i, 1])
    if scalars[N_USERS] >= limit:
        scalars[OVERFLOW_USERS] += 1
        return -1
    row = scalars[N_USERS]
    scalars[N_USERS] += 1
    insert(table, key, row)
    return int(row)


@_compiled
def push_heap(heap: I64, n: int, settle: int, number: int, slot: int) -> None:
    """Add (settle time, admission number, slot) to a heap of n entries."""
    i = n
    while i > 0:
        p = (i - 1) >> 1
        if heap[p, 0] < settle or (heap[p, 0] == settle and heap[p, 1] < number):
            break
        heap[i, 0] = heap[p, 0]
        heap[i, 1] = heap[p, 1]
        heap[i, 2] = heap[p, 2]
        i = p
    heap[i, 0] = settle
    heap[i, 1] = number
    heap[i, 2] = slot


@_compiled
def pop_heap(heap: I64, n: int) -> None:
    """Drop the first of n entries."""
    last = n - 1
    settle, number, slot = heap[last, 0], heap[last, 1], heap[last, 2]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= last:
            break
        right = child + 1
        if right < last and (
            heap[right, 0] < heap[child, 0]
            or (heap[right, 0] == heap[child, 0] and heap[right, 1] < heap[child, 1])
        ):
            child = right
        if settle < heap[child, 0] or (settle == heap[child, 0] and number < heap[child, 1]):
            break
        heap[i, 0] = heap[child, 0]
        heap[i, 1] = heap[child, 1]
        heap[i, 2] = heap[child, 2]
        i = child
    heap[i, 0] = settle
    heap[i, 1] = number
    heap[i, 2] = slot


@_compiled
def remember(seen: I64, ring: I64, s: I64, key: int, value: int, ts: int, keep_ms: int) -> None:
    """Note an id in `seen`, and when it may be forgotten.

    An event may be ahead of the clock, which walks through a gap: its id stays until the clock has
    passed its own time, too.
    """
    insert(seen, key, value)
    s[N_SEEN] += 1
    tail = s[FORGET_TAIL] & (ring.shape[0] - 1)
    ring[tail, 0] = key
    ring[tail, 1] = s[CLOCK] + keep_ms
    ring[tail, 2] = max(ts, s[CLOCK]) + keep_ms
    s[FORGET_TAIL] += 1


@_compiled
def forget(queues: Queues, watermark: int, p: Params) -> None:
    """Drop ids whose time is over; an early click among them is an orphan (rule 11).

    Where there are too many ids the oldest go before their time, and the floor rises above them:
    what could be a duplicate of them is then too late.
    """
    s = queues.scalars
    ring = queues.forget
    last = s[FORGET_TAIL]
    while s[FORGET_HEAD] < last:
        head = s[FORGET_HEAD] & (ring.shape[0] - 1)
        if ring[head, 1] >= watermark and s[N_SEEN] < p.ids_max:
            break
        if ring[head, 2] > ring[head, 1] and ring[head, 2] >= watermark:
            key, keep = ring[head, 0], ring[head, 2]
            tail = s[FORGET_TAIL] & (ring.shape[0] - 1)
            ring[tail, 0] = key
            ring[tail, 1] = min(keep, s[CLOCK] + p.window_ms + p.horizon_ms)
            ring[tail, 2] = keep
            s[FORGET_TAIL] += 1
            s[FORGET_HEAD] += 1
            continue
        if ring[head, 1] >= watermark:
            s[FORCED_FORGETS] += 1
            s[FLOOR] = max(s[FLOOR], ring[head, 1] - p.window_ms - p.horizon_ms + 1)
        next_id = ring[(head + IDS_AHEAD) & (ring.shape[0] - 1), 0]
        prefetch(queues.seen, next_id & (queues.seen.shape[0] - 1), 0)
        place = find(queues.seen, ring[head, 0])
        value = queues.seen[place, 1]
        if 0 < value < OPEN_SLOT:
            queues.tallies[value & 31, ORPHAN] += 1
            s[WAITING] -= 1
        delete(queues.seen, place)
        s[N_SEEN] -= 1
        s[FORGET_HEAD] += 1


@_compiled
def expose(
    rows: NDArray[np.int32], at: int, user: int, ts: int, users: Users, counters: Counters,
    is_global: NDArray[np.uint8], exposed: I64, session_gap_ms: int,
) -> None:  # fmt: skip
    """Count an impression as shown; `at` is the row of its counters, `user` that of its user."""
    for j in exposed:
        row = rows[at, j]
        if row >= 0:
            if is_global[j]:
                counters.by_other[row]["x"] += 1
            else:
                counters.by_user[row]["x"] += 1
    if user >= 0:
        if ts - users.last_ts[user] > session_gap_ms:
            users.session[user] = 0
        users.session[user] += 1
        users.clicked[user] = 0
        users.last_ts[user] = ts


@_compiled
def interact(
    op: int, user: int, item: int, kind: int, s: I64, users: Users, history_mask: I64, ring: int,
    items_max: int,
) -> None:  # fmt: skip
    """Let a click change its user's state and, unless it is a label's, counts of interactions."""
    if user >= 0:
        users.clicked[user] = 1
        for h in range(history_mask.shape[0]):
            if (history_mask[h] >> kind) & 1:
                seq = users.seq[user, h]
                users.ring[user, h * ring + (seq & (ring - 1))] = item
                users.seq[user, h] = seq + 1
        if op == INTERACTED:
            users.interactions[user] += 1
    if op == INTERACTED:
        place = find(users.items, item)
        if place >= 0:
            users.items[place, 1] += 1
        elif s[N_ITEMS] < items_max:
            insert(users.items, item, 1)
            s[N_ITEMS] += 1


@_compiled
def apply_pending(
    pending: I64, s: I64, opened: Exposures, users: Users, counters: Counters,
    is_global: NDArray[np.uint8], exposed: I64, history_mask: I64, ring: int, items_max: int,
    session_gap_ms: int,
) -> None:  # fmt: skip
    """Let the events of the key time that is over change user state and counters."""
    for i in range(s[N_PENDING]):
        op, a = pending[i, 0], pending[i, 1]
        if op != EXPOSED:
            interact(op, a, pending[i, 2], pending[i, 3], s, users, history_mask, ring, items_max)
        elif opened.number[a] == pending[i, 2]:  # else evicted within its own key time
            expose(
                opened.counter_row, a, opened.user_row[a], opened.ts[a], users, counters,
                is_global, exposed, session_gap_ms,
            )  # fmt: skip
    s[N_PENDING] = 0


@_compiled
def push_delayed(
    delayed: I64, s: I64, op: int, a: int, item: int, kind: int, delay_ms: int
) -> int:  # fmt: skip
    """Note a change that is to be seen `delay_ms` after the clock; its place."""
    place = s[DELAYED_TAIL] & (delayed.shape[0] - 1)
    delayed[place, 0] = s[CLOCK] + delay_ms
    delayed[place, 1] = op
    delayed[place, 2] = a
    delayed[place, 3] = item
    delayed[place, 4] = kind
    s[DELAYED_TAIL] += 1
    return int(place)


@_compiled
def delay_pending(
    pending: I64, delayed: I64, rows: NDArray[np.int32], s: I64, opened: Exposures, exposed: I64,
    delay_ms: int,
) -> None:  # fmt: skip
    """Move the changes of the key time that is over to `delayed`, with all that they need.

    Their impressions may have settled and left their slots before the changes are due.
    """
    for i in range(s[N_PENDING]):
        op, a = pending[i, 0], pending[i, 1]
        if op != EXPOSED:
            push_delayed(delayed, s, op, a, pending[i, 2], pending[i, 3], delay_ms)
        elif opened.number[a] == pending[i, 2]:
            place = push_delayed(delayed, s, op, opened.user_row[a], opened.ts[a], 0, delay_ms)
            for j in exposed:
                rows[place, j] = opened.counter_row[a, j]
    s[N_PENDING] = 0


@_compiled
def apply_delayed(queues: Queues, users: Users, counters: Counters, clock: int, p: Params) -> None:
    """Let the changes that are due at `clock` be seen (rule 18).

    Where more of them wait than ids may be remembered, the oldest are seen before their time.
    """
    s, delayed = queues.scalars, queues.delayed
    while s[DELAYED_HEAD] < s[DELAYED_TAIL]:
        at = s[DELAYED_HEAD] & (delayed.shape[0] - 1)
        if delayed[at, 0] > clock:
            if s[DELAYED_TAIL] - s[DELAYED_HEAD] <= p.ids_max:
                break
            s[DELAYED_EARLY] += 1
        op, a, item, kind = delayed[at, 1], delayed[at, 2], delayed[at, 3], delayed[at, 4]
        if op == SETTLED:
            count_outcome(
                queues.delayed_rows, at, a, p.windows_ms.shape[0], counters, item, p.is_global,
                p.decay_row, p.decay,
            )  # fmt: skip
        elif op == EXPOSED:
            expose(
                queues.delayed_rows, at, a, item, users, counters, p.is_global, p.exposed,
                p.session_gap_ms,
            )  # fmt: skip
        else:
            interact(op, a, item, kind, s, users, p.history_mask, p.ring, p.items_max)
        s[DELAYED_HEAD] += 1


@_compiled
def push_pending(pending: I64, s: I64, op: int, a: int, item: int, kind: int) -> None:
    """Note a change for the next key time."""
    i = s[N_PENDING]
    pending[i, 0] = op
    pending[i, 1] = a
    pending[i, 2] = item
    pending[i, 3] = kind
    s[N_PENDING] = i + 1


@_compiled
def count_outcome(
    counter_row: NDArray[np.int32], at: int, hits: int, n_kinds: int, counters: Counters,
    bucket: int, is_global: NDArray[np.uint8], decay_row: I64, decay: NDArray[np.float32],
) -> None:  # fmt: skip
    """Add a settled impression and its outcome to its rate counters, together (rule 4).

    Row `at` of `counter_row` holds its counters; bit k of `hits` says that kind k was clicked.
    """
    for j in range(counter_row.shape[1]):
        row = counter_row[at, j]
        if row < 0:
            continue
        table = counters.by_other if is_global[j] else counters.by_user
        table[row]["n"] += 1
        for k in range(n_kinds):
            table[row]["c"][k] += (hits >> k) & 1
        d = decay_row[j]
        if d >= 0:
            copies = counters.other_decayed if is_global[j] else counters.user_decayed
            own = table[row]["decayed"]
            age = bucket - copies[own]["bucket"]
            factor = decay[d, age] if age < decay.shape[1] else np.float32(0.0)
            copies[own]["bucket"] = bucket
            copies[own]["n"] = copies[own]["n"] * factor + np.float32(1.0)
            for k in range(n_kinds):
                hit = np.float32((hits >> k) & 1)
                copies[own]["c"][k] = copies[own]["c"][k] * factor + hit


@_compiled
def close_first(
    heap: I64, seen: I64, s: I64, tallies: I64, keys: I64, click_ts: I64, place_of: int
) -> int:
    """Take the first open impression off the heap; its slot. Its id stays in `seen` as done."""
    slot = heap[0, 2]
    pop_heap(heap, s[N_HEAP])
    s[N_HEAP] -= 1
    s[OPEN_COUNT] -= 1
    place = find(seen, keys[slot])
    if place >= 0:
        seen[place, 1] = SEEN_DONE
    for k in range(click_ts.shape[1]):
        if place_of == EVICTED_OPEN:
            tallies[k, EVICTED_OPEN] += 1
        elif click_ts[slot, k] > 0:
            tallies[k, POSITIVE] += 1
        else:
            tallies[k, NEGATIVE] += 1
    return int(slot)


@_compiled
def settle(queues: Queues, opened: Open, counters: Counters, watermark: int, p: Params) -> int:
    """Move impressions whose windows are over to `out`; BATCH when a batch is full or due."""
    s = queues.scalars
    bucket, n_kinds = s[CLOCK] // p.bucket_ms, p.windows_ms.shape[0]
    while s[N_HEAP] > 0 and queues.heap[0, 0] < watermark:
        if s[N_OUT] > 0:
            last = queues.out[s[N_OUT] - 1]
            same = opened.request[last] == opened.request[queues.heap[0, 2]]
            full = s[N_OUT] >= p.batch_size
            due = queues.heap[0, 0] > s[FIRST_SETTLE] + p.linger_ms
            if (full or due) and not same:
                return BATCH
        else:
            s[FIRST_SETTLE] = queues.heap[0, 0]
        slot = close_first(
            queues.heap, queues.seen, s, queues.tallies, opened.key, opened.click_ts, POSITIVE
        )
        hint_settling(
            queues.heap, s[N_HEAP], queues.seen, opened.key, opened.counter_row, counters.by_user,
            counters.by_other, counters.user_decayed, counters.other_decayed, p.is_global,
            p.decay_row,
        )  # fmt: skip
        hits = 0
        for k in range(n_kinds):
            hits |= (opened.click_ts[slot, k] > 0) << k
        if p.delay_ms > 0:
            place = push_delayed(queues.delayed, s, SETTLED, hits, bucket, 0, p.delay_ms)
            for j in range(opened.counter_row.shape[1]):
                queues.delayed_rows[place, j] = opened.counter_row[slot, j]
        else:
            count_outcome(
                opened.counter_row, slot, hits, n_kinds, counters, bucket, p.is_global,
                p.decay_row, p.decay,
            )  # fmt: skip
        queues.out[s[N_OUT]] = slot
        s[N_OUT] += 1
    if s[N_OUT] >= p.batch_size:
        return BATCH
    if s[N_OUT] > 0 and watermark > s[FIRST_SETTLE] + p.linger_ms:
        return BATCH
    return DONE


@_compiled
def freeze_counters(
    counter_row_out: NDArray[np.int32], counts: NDArray[np.int32], decayed: NDArray[np.float32],
    slot: int, keys: I64, m: int, counters: Counters, s: I64, bucket: int,
    is_global: NDArray[np.uint8], decay_row: I64, decay: NDArray[np.float32], limit: int,
) -> None:  # fmt: skip
    """Copy the counters of an impression as they are now; their rows are kept for settling."""
    n_kinds = counts.shape[2] - 2
    for j in range(keys.shape[1]):
        d = decay_row[j]
        row = -1
        if keys[m, j] != 0:
            if is_global[j]:
                place = N_GLOBAL_DECAYED if d >= 0 else -1
                row = counter_row(counters.by_other, keys[m, j], s, N_GLOBAL_COUNTERS, limit, place)
            else:
                place = N_USER_DECAYED if d >= 0 else -1
                row = counter_row(counters.by_user, keys[m, j], s, N_USER_COUNTERS, limit, place)
        counter_row_out[slot, j] = row
        if row < 0:
            for k in range(2 + n_kinds):
                counts[slot, j, k] = 0
            if d >= 0:
                for k in range(1 + n_kinds):
                    decayed[slot, d, k] = np.float32(0.0)
            continue
        table = counters.by_other if is_global[j] else counters.by_user
        counts[slot, j, 0] = table[row]["n"]
        counts[slot, j, 1] = table[row]["x"]
        for k in range(n_kinds):
            counts[slot, j, 2 + k] = table[row]["c"][k]
        if d >= 0:
            copies = counters.other_decayed if is_global[j] else counters.user_decayed
            at = table[row]["decayed"]
            age = bucket - copies[at]["bucket"]
            factor = decay[d, age] if age < decay.shape[1] else np.float32(0.0)
            decayed[slot, d, 0] = copies[at]["n"] * factor
            for k in range(n_kinds):
                decayed[slot, d, 1 + k] = copies[at]["c"][k] * factor


@_compiled
def join_early_clicks(
    seen: I64, pending: I64, s: I64, tallies: I64, click_ts: I64, slot: int, ts: int, row: int,
    item: int, keys: I64, m: int, windows_ms: I64,
) -> None:  # fmt: skip
    """Give a new impression the clicks that came before it."""
    for k in range(windows_ms.shape[0]):
        click_ts[slot, k] = 0
        if s[WAITING] == 0:
            continue
        place = find(seen, keys[m, k])
        if place < 0:
            continue
        value = seen[place, 1]
        if not 0 < value < OPEN_SLOT:
            continue
        seen[place, 1] = SEEN_DONE
        s[WAITING] -= 1
        if value >> 5 <= ts + windows_ms[k]:
            click_ts[slot, k] = value >> 5
            tallies[k, JOINED] += 1
            push_pending(pending, s, CLICKED, row, item, k)
        else:
            tallies[k, LATE] += 1
            push_pending(pending, s, INTERACTED, row, item, k)


@_compiled
def admit(
    e: Events, i: int, shown: Shown, queues: Queues, opened: Open, users: Users,
    counters: Counters, p: Params,
) -> None:  # fmt: skip
    """Open a new impression: freeze its state, join what waited for it."""
    s = queues.scalars
    keep_ms = p.window_ms + p.horizon_ms
    if s[OPEN_COUNT] >= p.open_max:
        s[FLOOR] = max(s[FLOOR], queues.heap[0, 0] - p.window_ms)
        old = close_first(
            queues.heap, queues.seen, s, queues.tallies, opened.key, opened.click_ts, EVICTED_OPEN
        )
        opened.number[old] = -1
        s[EVICTED] += 1
        queues.free[s[N_FREE]] = old
        s[N_FREE] += 1
    m = e.row[i]
    s[N_FREE] -= 1
    slot = queues.free[s[N_FREE]]
    number = s[ADMITTED]
    s[ADMITTED] += 1
    s[OPEN_COUNT] += 1
    opened.key[slot] = e.key[i]
    opened.number[slot] = number
    opened.request[slot] = e.request[i]
    opened.item[slot] = e.item[i]
    opened.user[slot] = e.user[i]
    opened.ts[slot] = e.ts[i]
    row = user_row(users.table, e.user[i], s, p.users_max)
    opened.user_row[slot] = row
    opened.gap_ms[slot] = -1
    opened.session_position[slot] = 0
    opened.clicked[slot] = 0
    opened.interactions[slot, 0] = 0
    for h in range(p.history_mask.shape[0]):
        opened.history_seq[slot, h] = users.seq[row, h] if row >= 0 else 0
    if row >= 0:
        opened.interactions[slot, 0] = users.interactions[row]
        if users.last_ts[row] > 0:
            opened.gap_ms[slot] = max(e.ts[i] - users.last_ts[row], 0)
            opened.clicked[slot] = 2 * users.clicked[row] - 1
            if opened.gap_ms[slot] <= p.session_gap_ms:
                opened.session_position[slot] = users.session[row]
    place = find(users.items, e.item[i])
    opened.interactions[slot, 1] = users.items[place, 1] if place >= 0 else 0
    for f in range(shown.ids.shape[1]):
        opened.ids[slot, f] = shown.ids[m, f]
    for f in range(shown.multi.shape[1]):
        opened.multi[slot, f] = shown.multi[m, f]
    for f in range(shown.dense.shape[1]):
        opened.dense[slot, f] = shown.dense[m, f]
    bucket = s[CLOCK] // p.bucket_ms
    freeze_counters(
        opened.counter_row, opened.counts, opened.decayed, slot, shown.counter_keys, m,
        counters, s, bucket, p.is_global, p.decay_row, p.decay, p.counters_max,
    )  # fmt: skip
    remember(queues.seen, queues.forget, s, e.key[i], slot + OPEN_SLOT, e.ts[i], keep_ms)
    join_early_clicks(
        queues.seen, queues.pending, s, queues.tallies, opened.click_ts, slot, e.ts[i], row,
        e.item[i], shown.click_keys, m, p.windows_ms,
    )  # fmt: skip
    push_pending(queues.pending, s, EXPOSED, slot, number, 0)
    due = e.ts[i] + p.window_ms
    if due < s[CLOCK] - p.lateness_ms:
        s[LATE_IMPRESSIONS] += 1
    push_heap(queues.heap, s[N_HEAP], due, number, slot)
    s[N_HEAP] += 1
    queues.fresh[s[N_FRESH], 0] = slot
    queues.fresh[s[N_FRESH], 1] = number
    s[N_FRESH] += 1


@_compiled
def click(
    e: Events, i: int, queues: Queues, rows: I64, shown_ts: I64, click_ts: I64, table: I64,
    windows_ms: I64, keep_ms: int, users_max: int,
) -> None:  # fmt: skip
    """Join a click with its impression, or let it wait, or count it late (rules 4 and 11).

    `rows`, `shown_ts` and `click_ts` are columns of the open impressions, `table` that of users.
    """
    s = queues.scalars
    kind = e.click_kind[i]
    place = find(queues.seen, e.impression_key[i])
    if place < 0:
        waiting = (e.ts[i] << 5) | kind
        remember(queues.seen, queues.forget, s, e.key[i], waiting, e.ts[i], keep_ms)
        s[WAITING] += 1
        return
    value = queues.seen[place, 1]
    remember(queues.seen, queues.forget, s, e.key[i], SEEN_DONE, e.ts[i], keep_ms)
    if value >= OPEN_SLOT:
        slot = value - OPEN_SLOT
        row = rows[slot]
        if e.ts[i] <= shown_ts[slot] + windows_ms[kind]:
            click_ts[slot, kind] = e.ts[i]
            queues.tallies[kind, JOINED] += 1
            push_pending(queues.pending, s, CLICKED, row, e.item[i], kind)
            return
    else:
        row = user_row(table, e.user[i], s, users_max)
    queues.tallies[kind, LATE] += 1
    push_pending(queues.pending, s, INTERACTED, row, e.item[i], kind)


@_compiled
def other_click(e: Events, i: int, known: int, queues: Queues, users: Users, p: Params) -> None:
    """A click of a kind without label: it feeds histories where its impression is known."""
    s = queues.scalars
    keep_ms = p.window_ms + p.horizon_ms
    if known == queues.tallies.shape[0] - 1 or find(queues.seen, e.impression_key[i]) < 0:
        queues.tallies[known, ORPHAN] += 1
        return
    remember(queues.seen, queues.forget, s, e.key[i], SEEN_DONE, e.ts[i], keep_ms)
    queues.tallies[known, JOINED] += 1
    row = user_row(users.table, e.user[i], s, p.users_max)
    push_pending(queues.pending, s, CLICKED, row, e.item[i], known)


@_compiled
def move_clock(
    clock: int, queues: Queues, exposures: Exposures, users: Users, counters: Counters, p: Params
) -> None:
    """Go on to another key time: what waited for it changes state, old ids are forgotten."""
    s, ring = queues.scalars, queues.forget
    if p.delay_ms > 0:
        delay_pending(
            queues.pending, queues.delayed, queues.delayed_rows, s, exposures, p.exposed,
            p.delay_ms,
        )  # fmt: skip
        apply_delayed(queues, users, counters, clock, p)
    elif s[N_PENDING] > 0:
        apply_pending(
            queues.pending, s, exposures, users, counters, p.is_global, p.exposed,
            p.history_mask, p.ring, p.items_max, p.session_gap_ms,
        )  # fmt: skip
    s[CLOCK] = clock
    watermark = clock - p.lateness_ms
    s[FLOOR] = max(s[FLOOR], watermark - p.window_ms - p.horizon_ms)
    if s[FORGET_HEAD] < s[FORGET_TAIL] and (
        ring[s[FORGET_HEAD] & (ring.shape[0] - 1), 1] < watermark or s[N_SEEN] >= p.ids_max
    ):
        forget(queues, watermark, p)


@_compiled
def advance(
    e: Events, start: int, stop: int, shown: Shown, queues: Queues, opened: Open, users: Users,
    counters: Counters, p: Params,
) -> tuple[int, int]:  # fmt: skip
    """(next event, DONE | BATCH) after events `start` to `stop`.

    BATCH: `out` holds a batch; take it, free its slots, and call again from the same event. Where
    a batch closes depends on the events alone, never on `start` and `stop`.
    """
    s = queues.scalars
    n_kinds = p.windows_ms.shape[0]
    keep_ms = p.window_ms + p.horizon_ms
    exposures = Exposures(opened.number, opened.counter_row, opened.user_row, opened.ts)
    for i in range(start, stop):
        if (i - start) % HINTED == 0:
            hint_far(
                i, e.kind, e.row, e.key, e.impression_key, e.user, e.item, shown.ids,
                shown.counter_keys, queues.seen, users.table, users.items, counters.by_user,
                counters.by_other, p.is_global,
            )  # fmt: skip
            hint_near(
                i, e.kind, e.row, e.user, shown.counter_keys, users.table, users.seq,
                users.last_ts, users.session, users.clicked, users.interactions,
                counters.by_user, counters.by_other, counters.user_decayed,
                counters.other_decayed, p.is_global, p.decay_row,
            )  # fmt: skip
        if e.clock[i] > s[CLOCK]:
            move_clock(e.clock[i], queues, exposures, users, counters, p)
        if s[N_PENDING] == 0:
            watermark = s[CLOCK] - p.lateness_ms
            closes = s[N_HEAP] > 0 and queues.heap[0, 0] < watermark
            full = s[N_OUT] >= p.batch_size
            due = s[N_OUT] > 0 and watermark > s[FIRST_SETTLE] + p.linger_ms
            if (closes or full or due) and settle(queues, opened, counters, watermark, p) == BATCH:
                return i, BATCH
        kind = e.kind[i]
        if kind > 2:
            continue
        is_known = kind > 0 and e.click_kind[i] >= 0
        known = e.click_kind[i] if is_known else queues.tallies.shape[0] - 1
        if e.ts[i] < s[FLOOR]:
            e.verdict[i] = TOO_LATE
            if kind == 0:
                s[TOO_LATE_IMPRESSIONS] += 1
            else:
                queues.tallies[known, TOO_LATE_CLICK] += 1
            continue
        if find(queues.seen, e.key[i]) >= 0:
            e.verdict[i] = DUPLICATE
            if kind == 0:
                s[DUPLICATES] += 1
            else:
                queues.tallies[known, DUPLICATE_CLICK] += 1
            continue
        if kind == 0:
            admit(e, i, shown, queues, opened, users, counters, p)
        elif kind == 2:
            remember(queues.seen, queues.forget, s, e.key[i], SEEN_DONE, e.ts[i], keep_ms)
            queues.tallies[known, ORGANIC] += 1
            row = user_row(users.table, e.user[i], s, p.users_max)
            push_pending(queues.pending, s, INTERACTED, row, e.item[i], known)
        elif known < n_kinds:
            click(
                e, i, queues, opened.user_row, opened.ts, opened.click_ts, users.table,
                p.windows_ms, keep_ms, p.users_max,
            )  # fmt: skip
        else:
            other_click(e, i, known, queues, users, p)
    return stop, DONE


@_compiled
def read_histories(
    slots: I64, opened: Open, users: Users, h: int, ring: int, out: I64, length_n: I64
) -> int:
    """Fill `out` [n, L] with each slot's frozen history, oldest first; entries lost to the ring."""
    lost = 0
    length = out.shape[1]
    for i in range(slots.shape[0]):
        hint_history(slots, i, opened.user_row, users.ring, h * ring, ring)
        row = opened.user_row[slots[i]]
        seq = opened.history_seq[slots[i], h]
        n = 0
        if row >= 0:
            first = max(seq - length, 0)
            safe = users.seq[row, h] - ring
            if safe > first:
                lost += min(safe, seq) - first
                first = safe
            for q in range(first, seq):
                out[i, n] = users.ring[row, h * ring + (q & (ring - 1))]
                n += 1
        length_n[i] = n
        for q in range(n, length):
            out[i, q] = 0
    return lost
