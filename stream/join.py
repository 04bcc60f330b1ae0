"""Join: impressions meet their clicks in event time, with user state frozen at the impression.

Holds the arrays that `stream/kernels` works on, makes room before each call, reads samples out,
and exports all of it. Decides nothing about labels beyond the windows (`stream/label_policy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from stream import kernels as k
from stream.counters import CounterTable, GlobalCounters
from stream.samples import Samples
from stream.user_state import UserState, grown_table, table_of, table_rows

KINDS_MAX = 31
_QUEUES = ("heap", "free", "fresh", "out", "pending")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinShape:
    """Widths of the arrays.

    Id fields, several-valued places, dense fields, label kinds, all click kinds, counters, decayed
    counters, and the lengths of the histories. `served`: how many of `dense`, the last ones, and
    with them the last of `ids`, are what servers logged.
    """

    ids: int
    multi: int
    dense: int
    labels: int
    kinds: int
    counters: int
    decayed: int
    histories: tuple[int, ...]
    served: int = 0


class JoinState:
    """All state between released events and samples, in arrays."""

    def __init__(self, shape: JoinShape, params: k.Params) -> None:
        """Empty state; raises ValueError when there are too many click kinds."""
        if shape.kinds > KINDS_MAX:
            raise ValueError(f"at most {KINDS_MAX} click kinds fit, got {shape.kinds}")
        self.shape, self.params = shape, params
        self.users = UserState(
            histories=len(shape.histories), ring=params.ring,
            users_max=params.users_max, items_max=params.items_max,
        )  # fmt: skip
        self.user_counters = CounterTable("user_counters", shape.labels, params.counters_max)
        self.global_counters = GlobalCounters(shape.labels, params.counters_max)
        self.names: dict[int, tuple[int | str, int | str, int | str]] = {}
        self.truncated_histories = 0
        self.opened = _open_arrays(shape, 0)
        self.queues = k.Queues(
            seen=np.zeros((1 << 12, 2), np.int64), forget=np.zeros((1 << 12, 3), np.int64),
            heap=np.zeros((0, 3), np.int64), free=np.zeros(0, np.int64),
            fresh=np.zeros((0, 2), np.int64), out=np.zeros(0, np.int64),
            pending=np.zeros((0, 4), np.int64), scalars=np.zeros(k.SCALARS, np.int64),
            tallies=np.zeros((shape.kinds + 1, k.TALLIES), np.int64),
            delayed=np.zeros((0, 5), np.int64),
            delayed_rows=np.zeros((0, shape.counters), np.int32),
        )  # fmt: skip
        self.reserve(1 << 10)

    def advance(self, events: k.Events, start: int, stop: int, shown: k.Shown) -> tuple[int, int]:
        """(next event, DONE | BATCH); see `kernels.advance`. Room must have been reserved."""
        i, status = k.advance(
            events, start, stop, shown, self.queues, self.opened, self.users.arrays,
            self._counters, self.params,
        )  # fmt: skip
        return int(i), int(status)

    @property
    def _counters(self) -> k.Counters:
        own, other = self.user_counters, self.global_counters
        return k.Counters(own.records, other.records, own.decayed, other.decayed)

    def apply_pending(self) -> None:
        """Let the events of the last key time change state, as the next event would."""
        o, p, q = self.opened, self.params, self.queues
        exposures = k.Exposures(o.number, o.counter_row, o.user_row, o.ts)
        if p.delay_ms:
            k.delay_pending(
                q.pending, q.delayed, q.delayed_rows, q.scalars, exposures, p.exposed, p.delay_ms
            )
            k.apply_delayed(q, self.users.arrays, self._counters, self.clock_ms + 1, p)
            return
        k.apply_pending(
            q.pending, q.scalars, exposures, self.users.arrays, self._counters, p.is_global,
            p.exposed, p.history_mask, p.ring, p.items_max, p.session_gap_ms,
        )  # fmt: skip

    def reserve(self, n: int) -> None:
        """Make room for n more events of any kind."""
        q, s, shape = self.queues, self.queues.scalars, self.shape
        if s[k.N_FREE] < n:
            self._grow_slots(n)
            q = self.queues
        slots = len(self.opened.key)
        q = q._replace(
            seen=grown_table(q.seen, int(s[k.N_SEEN]) + n),
            heap=_room(q.heap, slots), out=_room(q.out, slots),
            fresh=_room(q.fresh, int(s[k.N_FRESH]) + n),
            pending=_room(q.pending, int(s[k.N_PENDING]) + n * (1 + shape.labels)),
        )  # fmt: skip
        waiting = int(s[k.FORGET_TAIL] - s[k.FORGET_HEAD])
        if waiting + n > len(q.forget):
            q = q._replace(forget=_grown_ring(q.forget, s, waiting + n))
        later = int(s[k.DELAYED_TAIL] - s[k.DELAYED_HEAD])
        if self.params.delay_ms:
            # All that is open may settle, beside what the events bring.
            most = later + int(s[k.N_HEAP] + s[k.N_PENDING]) + n * (2 + shape.labels)
            if most > len(q.delayed):
                q = _grown_delayed(q, most)
        self.queues = q
        self.users.reserve(int(s[k.N_USERS]), int(s[k.N_ITEMS]) + later, n)
        is_global, has_decay = self.params.is_global.astype(bool), self.params.decay_row >= 0
        for table, mask, used, copies in (
            (self.user_counters, ~is_global, k.N_USER_COUNTERS, k.N_USER_DECAYED),
            (self.global_counters, is_global, k.N_GLOBAL_COUNTERS, k.N_GLOBAL_DECAYED),
        ):
            moved = table.reserve(
                int(s[used]), n * int(mask.sum()), int(s[copies]), n * int((mask & has_decay).sum())
            )
            if moved is not None:
                for rows in (self.opened.counter_row, self.queues.delayed_rows):
                    rows[:, mask] = moved[rows[:, mask]]

    def _grow_slots(self, n: int) -> None:
        q, s = self.queues, self.queues.scalars
        old = len(self.opened.key)
        new = max(1 << 11, 2 * old)
        while new - old + int(s[k.N_FREE]) < n:
            new *= 2
        self.opened = k.Open(*(_room(a, new) for a in self.opened))
        self.opened.counter_row[old:] = -1
        free = _room(q.free, new)
        free[s[k.N_FREE] : s[k.N_FREE] + new - old] = np.arange(new - 1, old - 1, -1)
        s[k.N_FREE] += new - old
        self.queues = q._replace(free=free)

    @property
    def clock_ms(self) -> int:
        """Clock of the last released event."""
        return int(self.queues.scalars[k.CLOCK])

    @property
    def last_settle_ms(self) -> int:
        """Latest time at which an open impression settles; 0 without any."""
        heap = self.queues.heap[: self.queues.scalars[k.N_HEAP], 0]
        return int(heap.max()) if len(heap) else 0

    def scalar(self, place: int) -> int:
        """One of the counts in `kernels`."""
        return int(self.queues.scalars[place])

    def fresh(self) -> NDArray[np.int64]:
        """Slots admitted since the last call, oldest first; evicted ones are left out."""
        s = self.queues.scalars
        rows = self.queues.fresh[: s[k.N_FRESH]]
        s[k.N_FRESH] = 0
        slots = rows[:, 0]
        kept: NDArray[np.int64] = slots[self.opened.number[slots] == rows[:, 1]]
        return kept

    def out(self) -> NDArray[np.int64]:
        """Slots of the samples that wait for their batch, in order of settling."""
        return self.queues.out[: self.queues.scalars[k.N_OUT]].copy()

    def free(self, slots: NDArray[np.int64]) -> None:
        """Give the slots of the learned batch back."""
        s = self.queues.scalars
        assert len(slots) == s[k.N_OUT], (len(slots), int(s[k.N_OUT]))
        s[k.N_OUT] = 0
        self.opened.number[slots] = -1
        for key in self.opened.key[slots].tolist() if self.names else ():
            self.names.pop(key, None)
        self.queues.free[s[k.N_FREE] : s[k.N_FREE] + len(slots)] = slots[::-1]
        s[k.N_FREE] += len(slots)

    def drop_names_of_closed(self) -> None:
        """Forget the string ids of impressions that were evicted."""
        q, s = self.queues, self.queues.scalars
        slots = np.concatenate([q.heap[: s[k.N_HEAP], 2], self.out()])
        alive = set(self.opened.key[slots].tolist())
        self.names = {key: name for key, name in self.names.items() if key in alive}

    def is_open(self, key: int) -> bool:
        """Whether the impression with this key is open or waits for its batch."""
        place = k.find(self.queues.seen, key)
        if place >= 0 and self.queues.seen[place, 1] >= k.OPEN_SLOT:
            return True
        return bool((self.opened.key[self.out()] == key).any())

    def samples(self, slots: NDArray[np.int64], *, settled: bool = False) -> Samples:
        """The rows of these slots, copied out; `settled` ones count what their histories lost."""
        o = self.opened
        histories, lengths = [], []
        for h, length in enumerate(self.shape.histories):
            keys = np.empty((len(slots), length), np.int64)
            length_n = np.empty(len(slots), np.int64)
            lost = k.read_histories(
                slots, o, self.users.arrays, h, self.params.ring, keys, length_n
            )
            self.truncated_histories += lost if settled else 0
            histories.append(keys)
            lengths.append(length_n)

        def take(column: NDArray[Any]) -> NDArray[Any]:
            # A ninth of the time of column[slots] where there are several axes.
            return column.take(slots, axis=0)

        return Samples(
            key_n=take(o.key), number_n=take(o.number), request_n=take(o.request),
            item_n=take(o.item), user_n=take(o.user), ts_ms_n=take(o.ts),
            click_ts_nK=take(o.click_ts), ids_nF=take(o.ids), multi_nM=take(o.multi),
            dense_nX=take(o.dense), counts_nJC=take(o.counts), decayed_nDC=take(o.decayed),
            gap_ms_n=take(o.gap_ms), session_position_n=take(o.session_position),
            clicked_n=take(o.clicked), interactions_n2=take(o.interactions),
            sample_rate_n=np.ones(len(slots), np.float32),
            history_nL=tuple(histories), history_len_n=tuple(lengths),
            settle_ms=self.clock_ms - self.params.lateness_ms,
        )  # fmt: skip

    def slots_in_use(self) -> NDArray[np.int64]:
        """Slots of open impressions and of samples that wait for their batch, ascending."""
        q = self.queues
        return np.union1d(q.heap[: q.scalars[k.N_HEAP], 2], self.out())

    def export_full(self) -> Sequence[Part]:
        """Open impressions, ids, queues (`join`); users; both kinds of counters."""
        q, s = self.queues, self.queues.scalars
        used = self.slots_in_use()
        arrays: dict[str, NDArray[Any]] = {f"open_{n}": getattr(self.opened, n)[used]
                                           for n in k.Open._fields}  # fmt: skip
        for name, n in zip(
            _QUEUES, (k.N_HEAP, k.N_FREE, k.N_FRESH, k.N_OUT, k.N_PENDING), strict=True
        ):
            arrays[name] = getattr(q, name)[: s[n]].copy()
        order = np.arange(s[k.FORGET_HEAD], s[k.FORGET_TAIL]) & (len(q.forget) - 1)
        later = np.arange(s[k.DELAYED_HEAD], s[k.DELAYED_TAIL]) & (len(q.delayed) - 1)
        arrays |= {"delayed": q.delayed[later], "delayed_rows": q.delayed_rows[later]}
        arrays |= {"used": used, "seen": table_rows(q.seen), "forget": q.forget[order],
                   "scalars": s.copy(), "tallies": q.tallies.copy()}  # fmt: skip
        names = [[key, *self.names[key]] for key in sorted(self.names)]
        meta = {"slots": len(self.opened.key), "names": names,
                "truncated_histories": self.truncated_histories,
                "served": self.shape.served}  # fmt: skip
        return [
            Part(name="join", part_class="train", arrays=arrays, meta=meta),
            self.users.export(int(s[k.N_USERS])),
            self.user_counters.export("serve"),
            self.global_counters.export("serve"),
        ]

    def export_since(self, mark: int) -> Sequence[Part]:
        """Full parts: open impressions turn over within minutes, so nothing would be saved."""
        del mark
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the state of parts; raises KeyError, TypeError or ValueError on a misfit."""
        part = parts["join"]
        slots, used = int(part.meta["slots"]), part.array("used", np.int64)
        opened = _open_arrays(self.shape, slots)
        for name in k.Open._fields:
            target, source = getattr(opened, name), part.array(f"open_{name}")
            source = _with_served(name, source, part.meta.get("served", 0), self.shape.served)
            if target.shape[1:] != source.shape[1:] or target.dtype != source.dtype:
                raise ValueError(
                    f"part 'join', array 'open_{name}': expected rows of {target.shape[1:]} "
                    f"{target.dtype}, got {source.shape[1:]} {source.dtype}"
                )
            target[used] = source
        scalars, tallies = part.array("scalars", np.int64).copy(), part.array("tallies", np.int64)
        forget = part.array("forget", np.int64)
        fits = tallies.shape == self.queues.tallies.shape and forget.shape[1:] == (3,)
        if not fits or len(scalars) != k.SCALARS:
            raise ValueError("part 'join': other click kinds, or of another version")
        delayed, rows = part.array("delayed", np.int64), part.array("delayed_rows", np.int32)
        if rows.shape[1:] != (self.shape.counters,) or (len(rows) and not self.params.delay_ms):
            raise ValueError("part 'join': other counters, or another stream.feature_delay_ms")
        scalars[k.FORGET_HEAD], scalars[k.FORGET_TAIL] = 0, len(forget)
        scalars[k.DELAYED_HEAD], scalars[k.DELAYED_TAIL] = 0, len(delayed)
        places = 1 << len(delayed).bit_length() if len(delayed) else 0
        queues = {n: _room(part.array(n, np.int64).copy(), slots) for n in _QUEUES}
        capacity = 1 << max(12, len(forget).bit_length())
        self.opened = opened
        self.queues = k.Queues(
            seen=table_of(part.array("seen", np.int64)),
            forget=np.concatenate([forget, np.zeros((capacity - len(forget), 3), np.int64)]),
            scalars=scalars, tallies=tallies.copy(),
            delayed=_padded(delayed, places), delayed_rows=_padded(rows, places), **queues,
        )  # fmt: skip
        self.names = {row[0]: (row[1], row[2], row[3]) for row in part.meta["names"]}
        self.truncated_histories = int(part.meta["truncated_histories"])
        self.users.apply(parts)
        self.user_counters.apply(parts)
        self.global_counters.apply(parts)
        self.reserve(1)


def _open_arrays(shape: JoinShape, n: int) -> k.Open:
    def i64(*width: int) -> k.I64:
        return np.zeros((n, *width), np.int64)

    def f32(*width: int) -> NDArray[np.float32]:
        return np.zeros((n, *width), np.float32)

    return k.Open(
        key=i64(), number=i64() - 1, request=i64(), item=i64(), user=i64(), ts=i64(),
        user_row=i64(), click_ts=i64(shape.labels), ids=i64(shape.ids), multi=i64(shape.multi),
        dense=f32(shape.dense), counter_row=np.full((n, shape.counters), -1, np.int32),
        counts=np.zeros((n, shape.counters, 2 + shape.labels), np.int32),
        decayed=f32(shape.decayed, 1 + shape.labels), history_seq=i64(len(shape.histories)),
        gap_ms=i64(), session_position=i64(), clicked=i64(), interactions=i64(2),
    )  # fmt: skip


def _with_served(name: str, given: NDArray[Any], had: int, want: int) -> NDArray[Any]:
    """Rows of open impressions with `want` logged numbers: zeros, where there were not as many."""
    if had == want or name not in ("ids", "dense"):
        return given
    old, new = (int(had > 0), int(want > 0)) if name == "ids" else (had, want)
    kept = given[:, : given.shape[1] - old]
    return np.concatenate([kept, np.zeros((len(kept), new), kept.dtype)], axis=1)


def _room(array: NDArray[Any], n: int) -> NDArray[Any]:
    """The array with at least n rows: itself, or a copy grown with zeros."""
    if len(array) >= n:
        return array
    new = np.zeros((max(n, 2 * len(array)), *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    return new


def _padded(array: NDArray[Any], n: int) -> NDArray[Any]:
    """A copy with exactly n rows, zeros at the end."""
    new = np.zeros((n, *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    return new


def _grown_delayed(q: k.Queues, need: int) -> k.Queues:
    """Queues with more places for changes that wait; the first one moves to 0."""
    s, capacity = q.scalars, 1 << need.bit_length()
    order = np.arange(s[k.DELAYED_HEAD], s[k.DELAYED_TAIL]) & (len(q.delayed) - 1)
    delayed = np.zeros((capacity, q.delayed.shape[1]), np.int64)
    rows = np.full((capacity, q.delayed_rows.shape[1]), -1, np.int32)
    delayed[: len(order)], rows[: len(order)] = q.delayed[order], q.delayed_rows[order]
    s[k.DELAYED_HEAD], s[k.DELAYED_TAIL] = 0, len(order)
    return q._replace(delayed=delayed, delayed_rows=rows)


def _grown_ring(ring: k.I64, s: k.I64, need: int) -> k.I64:
    """A larger ring with the same entries; its head moves to 0."""
    capacity = len(ring)
    while capacity < need:
        capacity *= 2
    new = np.zeros((capacity, 3), np.int64)
    order = np.arange(s[k.FORGET_HEAD], s[k.FORGET_TAIL]) & (len(ring) - 1)
    new[: len(order)] = ring[order]
    s[k.FORGET_HEAD], s[k.FORGET_TAIL] = 0, len(order)
    return new
