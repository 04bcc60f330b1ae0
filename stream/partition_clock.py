"""Partition clocks: how far the events of one partition move its event time (pure).

One event may claim any time, and a client with a wrong clock does. Alone it moves the clock by no
more than `max_jump_ms`, however often it comes between events of others. What the event behind it
claims as well is walked towards, and from another user believed at once where it is so far ahead
(`max_future_ms`) that only a gap in the stream explains it. Knows neither records nor the order
between partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.columns import EventColumns, EventKind

I64 = NDArray[np.int64]

_F = TypeVar("_F", bound=Callable[..., Any])
_compiled = cast("Callable[[_F], _F]", njit(cache=True, nogil=True, _nrt=False))  # type: ignore[call-overload]  # not in numba's stubs

# Places in a clock's state, and what they are called outside.
CLOCK, AGREED, LAST_TS, LAST_USER, LAST_REQUEST, SIZE = range(6)
NAMES = ("clock", "agreed", "last_ts", "last_user", "last_request")

CUT_SHARE_USUAL = 0.01
"""Share of events cut short above which gaps, not wrong clocks, are the likely reason."""


def advice(cut: int, events: int, max_jump_ms: int) -> str | None:
    """What to set where many events were ahead of the clock; None where few were."""
    if cut <= CUT_SHARE_USUAL * events:
        return None
    return (
        f"{cut:,} of {events:,} events were over {max_jump_ms:,} ms ahead of their partition's "
        "clock, which follows late: labels settle late, and what the model reads is old. Where "
        "such gaps are usual, set stream.max_jump_ms to the longest of them; where not, clocks of "
        "senders are wrong"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockLimits:
    """How far one event moves a clock, and how far ahead two users have to be to be believed."""

    max_jump_ms: int
    max_future_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where a clock stood after each of n rows, int64 [n].

    `agreed_n`: the time that does not rest on a claim cut short; the very array `clock_n` where
    nothing was in doubt. `cut_n`: places of the rows whose claim was cut short.
    """

    clock_n: I64
    agreed_n: I64
    cut_n: I64


@dataclass(slots=True)
class PartitionClock:
    """A partition's clock between two rows, with the event before it as a witness.

    `state`: clock, agreed time, and time, user and request of the last event; 0 for none.
    """

    state: I64 = field(default_factory=lambda: np.zeros(SIZE, np.int64))

    @property
    def ms(self) -> int:
        """Event time; 0 before the first event."""
        return int(self.state[CLOCK])

    def copy(self) -> Self:
        """One that goes on alone."""
        return type(self)(self.state.copy())

    def walk(self, columns: EventColumns, first: int, limits: ClockLimits) -> Walk:
        """Move on over the rows from `first` on; those before have moved the clock already."""
        n = len(columns)
        clock_n, agreed_n = np.empty(n, np.int64), np.empty(n, np.int64)
        is_cut_n = np.zeros(n, np.bool_)
        doubtful = _walk(
            columns.kind_n, columns.ts_ms_n, columns.user_n, columns.request_n, first,
            limits.max_jump_ms, limits.max_future_ms, self.state, clock_n, agreed_n, is_cut_n,
        )  # fmt: skip
        return Walk(
            clock_n=clock_n,
            agreed_n=agreed_n if doubtful else clock_n,
            cut_n=np.flatnonzero(is_cut_n) if doubtful else np.zeros(0, np.int64),
        )

    def follow(self, walk: Walk, columns: EventColumns, start: int, stop: int) -> None:
        """Move on over rows `start` to `stop` of a walk that another clock has made."""
        if stop <= start:
            return
        self.state[CLOCK], self.state[AGREED] = walk.clock_n[stop - 1], walk.agreed_n[stop - 1]
        spoke = np.flatnonzero(columns.kind_n[start:stop] <= EventKind.ORGANIC)
        if len(spoke):
            i = start + int(spoke[-1])
            self.state[LAST_TS:] = columns.ts_ms_n[i], columns.user_n[i], columns.request_n[i]

    def to_map(self) -> dict[str, int]:
        """A msgpack-able map with `NAMES` as keys."""
        return dict(zip(NAMES, self.state.tolist(), strict=True))

    @classmethod
    def from_map(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_map`; other keys are passed over."""
        return cls(np.array([value[name] for name in NAMES], np.int64))


@_compiled
def _walk(
    kind_n: NDArray[np.uint8], ts_n: I64, user_n: I64, request_n: I64, first: int, jump: int,
    future: int, state: I64, clock_n: I64, agreed_n: I64, is_cut_n: NDArray[np.bool_],
) -> int:  # fmt: skip
    """Rows after which clock and agreed time differ; the kinds are those of `EventKind`."""
    clock, agreed = state[CLOCK], state[AGREED]
    last_ts, last_user, last_request = state[LAST_TS], state[LAST_USER], state[LAST_REQUEST]
    doubtful = 0
    for i in range(kind_n.shape[0]):
        ts = ts_n[i]
        if i >= first and kind_n[i] == 3:
            clock, agreed = max(clock, ts), max(agreed, ts)
        elif i >= first and kind_n[i] < 3:
            if clock == 0:
                clock, agreed = ts, ts
            # Items of one request are one claim.
            is_new = ts != last_ts or request_n[i] != last_request or request_n[i] == 0
            both = min(ts, last_ts)
            if user_n[i] != last_user and both > agreed + future:
                agreed = both
            elif is_new and both > agreed and ts > agreed + jump:
                agreed = min(both, agreed + jump)
            if ts <= agreed + jump:
                agreed = max(agreed, ts)
            else:
                is_cut_n[i] = True
            clock = max(clock, min(ts, agreed + jump))
            last_ts, last_user, last_request = ts, user_n[i], request_n[i]
        clock_n[i], agreed_n[i] = clock, agreed
        doubtful += clock != agreed
    state[CLOCK], state[AGREED] = clock, agreed
    state[LAST_TS], state[LAST_USER], state[LAST_REQUEST] = last_ts, last_user, last_request
    return doubtful
