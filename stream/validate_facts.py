"""Facts about gathered impressions and clicks: duplicates, joins, labels, positions, disorder.

Pure arithmetic on columns; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stream.columns import I64, EventColumns
from stream.partition_clock import ClockLimits, PartitionClock, advice
from stream.records import TopicPartition

POSITIONS_MAX = 50


class _Joinable:
    """Columns that can be put one behind the other."""

    __slots__ = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]  # as below

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """All rows in order."""
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses
        empty = np.zeros(0, np.int64)
        return cls(
            **{n: np.concatenate([getattr(part, n) for part in parts] or [empty]) for n in names}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(_Joinable):
    """Impressions of items."""

    request_n: I64
    item_n: I64
    user_n: I64
    ts_ms_n: I64
    position_n: NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clicks(_Joinable):
    """Clicks and organic events."""

    request_n: I64
    item_n: I64
    user_n: I64
    ts_ms_n: I64
    kind_n: NDArray[np.int16]
    organic_n: NDArray[np.bool_]


class Clocks:
    """Lag of events behind their partition's clock, the running maximum of its times."""

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._clock_ms: dict[TopicPartition, int] = {}
        self._events: dict[TopicPartition, int] = {}
        self._lags: dict[TopicPartition, list[I64]] = {}

    def take(self, partition: TopicPartition, ts_ms_n: I64) -> None:
        """Add events of one partition, in its order."""
        if not len(ts_ms_n):
            return
        clock = np.maximum.accumulate(np.concatenate([[self._clock_ms.get(partition, 0)], ts_ms_n]))
        self._clock_ms[partition] = int(clock[-1])
        self._events[partition] = self._events.get(partition, 0) + len(ts_ms_n)
        lag = clock[1:] - ts_ms_n
        self._lags.setdefault(partition, []).append(lag[lag > 0])

    def facts(self) -> dict[str, Any]:
        """Events behind the clock, and the share behind it by more than the allowed lateness."""
        by_partition = {}
        for partition in sorted(self._events):
            lag = np.concatenate(self._lags[partition])
            late = int((lag > self._lateness_ms).sum())
            by_partition[f"{partition.topic}/{partition.partition}"] = {
                "events": self._events[partition],
                "behind": len(lag),
                "lag_max_ms": int(lag.max(initial=0)),
                "late": late,
                "late_share": late / self._events[partition],
            }
        lags = [lag for parts in self._lags.values() for lag in parts]
        everything = np.concatenate([np.zeros(0, np.int64), *lags])
        return {
            "lateness_ms": self._lateness_ms,
            "behind": len(everything),
            "lag_max_ms": int(everything.max(initial=0)),
            "lag_p99_ms": float(np.percentile(everything, 99)) if len(everything) else 0.0,
            "by_partition": by_partition,
        }


class Jumps:
    """Events that claim a later time than their partition's clock goes along with."""

    def __init__(self, limits: ClockLimits) -> None:
        self._limits = limits
        self._clocks: dict[TopicPartition, PartitionClock] = {}
        self._events = self._cut = self._behind_max_ms = 0

    def take(self, partition: TopicPartition, columns: EventColumns) -> None:
        """Add events of one partition, in its order."""
        clock = self._clocks.setdefault(partition, PartitionClock())
        walk = clock.walk(columns, 0, self._limits)
        behind_n = columns.ts_ms_n[walk.cut_n] - walk.clock_n[walk.cut_n]
        self._events += len(columns)
        self._cut += len(walk.cut_n)
        self._behind_max_ms = max(self._behind_max_ms, int(behind_n.max(initial=0)))

    def advice(self) -> str | None:
        """A line where they are more than few."""
        return advice(self._cut, self._events, self._limits.max_jump_ms)

    def facts(self) -> dict[str, Any]:
        """How many, and how far the clock was behind them at most."""
        return {
            "max_jump_ms": self._limits.max_jump_ms,
            "events": self._events,
            "cut": self._cut,
            "behind_max_ms": self._behind_max_ms,
            "advice": self.advice(),
        }


def _pairs(*columns: NDArray[Any]) -> NDArray[np.void]:
    """Rows of several int64 columns as one comparable value each."""
    stacked = np.ascontiguousarray(np.stack([c.astype(np.int64) for c in columns], axis=1))
    return stacked.view([(f"c{i}", np.int64) for i in range(len(columns))])[:, 0]


def _first_rows(*columns: NDArray[Any]) -> I64:
    """Places of the first of each distinct row, in order of place."""
    order = np.lexsort([np.arange(len(columns[0])), *columns])
    new = np.ones(len(order), np.bool_)
    changed = [np.diff(column[order]) != 0 for column in columns]
    new[1:] = np.logical_or.reduce(changed)
    return np.sort(order[new])


def shown_facts(shown: Shown) -> dict[str, Any]:
    """Counts, span and positions of the impressions; the span is None where there are none."""
    first = _first_rows(shown.request_n, shown.item_n)
    position, count = np.unique(shown.position_n[first], return_counts=True)
    return {
        "events": len(shown.ts_ms_n),
        "distinct": len(first),
        "duplicates": len(shown.ts_ms_n) - len(first),
        "requests": len(np.unique(shown.request_n)),
        "users": len(np.unique(shown.user_n)),
        "items": len(np.unique(shown.item_n)),
        "from_ms": int(shown.ts_ms_n.min()) if len(first) else None,
        "to_ms": int(shown.ts_ms_n.max()) if len(first) else None,
        "positions": {
            str(p): int(n)
            for p, n in zip(position[:POSITIONS_MAX], count[:POSITIONS_MAX], strict=True)
        },
        "positions_beyond": int(count[POSITIONS_MAX:].sum()),
    }


def join_facts(
    shown: Shown, clicks: Clicks, kinds: Sequence[str], windows_ms: Sequence[int]
) -> dict[str, Any]:
    """What joins: by kind, distinct clicks, orphans, clicks outside the window, label shares.

    Without impressions there are no delays and no label shares (None).
    """
    organic = clicks.organic_n.astype(np.bool_)
    o = np.flatnonzero(organic)
    c = np.flatnonzero(~organic)
    organic_first = _first_rows(
        clicks.user_n[o], clicks.item_n[o], clicks.kind_n[o], clicks.ts_ms_n[o]
    )
    clicks_first = c[_first_rows(clicks.request_n[c], clicks.item_n[c], clicks.kind_n[c])]
    first = _first_rows(shown.request_n, shown.item_n)
    place = _find(
        (shown.request_n[first], shown.item_n[first]),
        (clicks.request_n[clicks_first], clicks.item_n[clicks_first]),
    )
    shown_ms = shown.ts_ms_n[first][np.maximum(place, 0)] if len(first) else np.zeros_like(place)
    delay_ms = clicks.ts_ms_n[clicks_first] - shown_ms
    by_kind = {}
    for number, (kind, window_ms) in enumerate(zip(kinds, windows_ms, strict=True)):
        of_kind = clicks.kind_n[clicks_first] == number
        if of_kind.any():
            by_kind[kind] = _kind_facts(
                place[of_kind], delay_ms[of_kind], window_ms, impressions=len(first)
            )
    return {
        "events": len(c),
        "distinct": len(clicks_first),
        "duplicates": len(c) - len(clicks_first),
        "orphans": int((place < 0).sum()),
        "organic": len(o),
        "organic_duplicates": len(o) - len(organic_first),
        "organic_users": len(np.unique(clicks.user_n[o])),
        "organic_items": len(np.unique(clicks.item_n[o])),
        "organic_by_kind": {
            kind: int((clicks.kind_n[o] == number).sum())
            for number, kind in enumerate(kinds)
            if (clicks.kind_n[o] == number).any()
        },
        "by_kind": by_kind,
    }


def _kind_facts(place: I64, delay_ms: I64, window_ms: int, *, impressions: int) -> dict[str, Any]:
    joined = place >= 0
    delays = delay_ms[joined]
    positives = int((delays <= window_ms).sum())
    return {
        "distinct": len(place),
        "joined": int(joined.sum()),
        "orphans": int((~joined).sum()),
        "join_rate": float(joined.mean()),
        "window_ms": window_ms,
        "outside_window": int((delays > window_ms).sum()),
        "before_impression": int((delays < 0).sum()),
        "delay_p50_ms": float(np.percentile(delays, 50)) if len(delays) else 0.0,
        "delay_p99_ms": float(np.percentile(delays, 99)) if len(delays) else 0.0,
        "delay_max_ms": int(delays.max(initial=0)),
        "positives": positives,
        "label_share": positives / impressions if impressions else None,
    }


def _find(known: tuple[I64, I64], wanted: tuple[I64, I64]) -> I64:
    """Place of each wanted pair among the known ones, -1 where it is not."""
    if not len(known[0]):
        return np.full(len(wanted[0]), -1)
    table = _pairs(*known)
    order = np.argsort(table)
    places = np.searchsorted(table, _pairs(*wanted), sorter=order)
    places = order[np.minimum(places, len(table) - 1)]
    found = (known[0][places] == wanted[0]) & (known[1][places] == wanted[1])
    return np.where(found, places, -1)
