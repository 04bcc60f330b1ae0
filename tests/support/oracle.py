"""The join once more, with dictionaries and one event at a time: slow, plain, the test's truth.

Takes events in released order as (clock, kind, fields) and gives samples. Shares no code with the
pipeline.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """A sample: identity, facts, frozen state."""

    key: tuple[Any, Any]
    user: Any
    ts: int
    number: int
    counts: dict[str, tuple[int, int, int, int]]
    history: list[Any]
    gap: int
    session: int
    clicked: int
    interactions: tuple[int, int]
    clicks: dict[str, int] = field(default_factory=dict)


class Oracle:
    """State machine of rules 3, 4, 10 and 11 for the small configuration."""

    windows = {"click": 2_000, "like": 6_000}  # noqa: RUF012  # never written
    history_kinds = ("click", "watch")
    session_gap = 1_000
    exposed = ("user",)

    def __init__(
        self, *, lateness: int, linger: int, horizon: int, batch: int, delay: int = 0
    ) -> None:
        self.delay = delay
        self.later: list[tuple[int, str, Any]] = []
        self.lateness, self.linger, self.horizon, self.batch = lateness, linger, horizon, batch
        self.window = max(self.windows.values())
        self.clock = 0
        self.floor = 0
        self.seen: dict[Any, int] = {}  # identity -> forget after
        self.early: dict[Any, int] = {}
        self.open: dict[Any, Row] = {}
        self.done: set[Any] = set()
        self.pending: list[tuple[str, Any]] = []
        self.counters: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.histories: dict[Any, list[Any]] = defaultdict(list)
        self.last: dict[Any, int] = {}
        self.session: dict[Any, int] = {}
        self.clicked: set[Any] = set()
        self.user_interactions: dict[Any, int] = defaultdict(int)
        self.item_interactions: dict[Any, int] = defaultdict(int)
        self.out: list[Row] = []
        self.batches: list[list[Row]] = []
        self.number = 0
        self.tallies: dict[str, int] = defaultdict(int)

    def event(self, clock: int, kind: str, e: dict[str, Any]) -> None:
        """One released row."""
        if clock > self.clock:
            self._move(clock)
        if kind == "watermark":
            return
        if e["ts"] < self.floor:
            self.tallies["too_late"] += 1
            return
        identity = self._identity(kind, e)
        if identity in self.seen:
            self.tallies["duplicate_" + kind] += 1
            return
        self.seen[identity] = self.clock + self.window + self.horizon
        if kind == "impression":
            self._impression(identity[1:], e)
        elif kind == "click":
            self._click(identity, e)
        else:
            self.tallies["organic"] += 1
            self.pending.append(("interacted", (e["user"], e["item"], e["click_kind"])))

    @staticmethod
    def _identity(kind: str, e: dict[str, Any]) -> Any:
        if kind == "impression":
            return ("i", e["request"], e["item"])
        if kind == "click":
            return ("c", e["request"], e["item"], e["click_kind"])
        return ("o", e["user"], e["item"], e["click_kind"], e["ts"])

    def _move(self, clock: int) -> None:
        # Delayed by 0, a change is seen from the next key time on.
        self.later += [(self.clock + max(self.delay, 1), *change) for change in self.pending]
        self.pending.clear()
        self.clock = clock
        while self.later and self.later[0][0] <= clock:
            _, what, value = self.later.pop(0)
            if what == "settled":
                self._count(value)
                continue
            if what == "exposed":
                for key in value[1]:
                    self.counters[key][1] += key[0] in self.exposed
                user, ts = value[0].user, value[0].ts
                goes_on = ts - self.last.get(user, 0) <= self.session_gap
                self.session[user] = self.session[user] + 1 if goes_on else 1
                self.clicked.discard(user)
                self.last[user] = ts
                continue
            user, item, kind = value
            self.clicked.add(user)
            if kind in self.history_kinds:
                self.histories[user].append(item)
            if what == "interacted":
                self.user_interactions[user] += 1
                self.item_interactions[item] += 1
        mark = clock - self.lateness
        self.floor = max(self.floor, mark - self.window - self.horizon)
        for identity in [i for i, until in self.seen.items() if until < mark]:
            del self.seen[identity]
            self.done.discard(identity)
            if self.early.pop(identity, None) is not None:
                self.tallies["orphan"] += 1
        due = sorted(
            (r for r in self.open.values() if r.ts + self.window < mark),
            key=lambda r: (r.ts + self.window, r.number),
        )
        for row in due:
            self._settle(row)
        if self.out and (
            len(self.out) >= self.batch or mark > self.out[0].ts + self.window + self.linger
        ):
            self._close()

    def _settle(self, row: Row) -> None:
        if self.out and self.out[-1].key[0] != row.key[0]:
            late = row.ts + self.window > self.out[0].ts + self.window + self.linger
            if len(self.out) >= self.batch or late:
                self._close()
        del self.open[row.key]
        if ("i", *row.key) in self.seen:
            self.done.add(("i", *row.key))
        if self.delay:
            self.later.append((self.clock + self.delay, "settled", row))
        else:
            self._count(row)
        self.out.append(row)

    def _count(self, row: Row) -> None:
        for key in self._keys(row.user, row.key[1], row.tab):  # type: ignore[attr-defined]
            c = self.counters[key]
            c[0] += 1
            c[2] += "click" in row.clicks
            c[3] += "like" in row.clicks

    def _close(self) -> None:
        self.batches.append(self.out)
        self.out = []

    @staticmethod
    def _keys(user: Any, item: Any, tab: Any) -> list[Any]:
        return [("prior",), ("user", user), ("item", item), ("user_tab", user, tab)]

    def _impression(self, key: tuple[Any, Any], e: dict[str, Any]) -> None:
        user = e["user"]
        keys = self._keys(user, e["item"], e["tab"])
        row = Row(
            key=key,
            user=user,
            ts=e["ts"],
            number=self.number,
            counts={k[0]: tuple(self.counters[k]) for k in keys},  # type: ignore[misc]  # 4 of them
            history=self.histories[user][-5:],
            gap=max(e["ts"] - self.last[user], 0) if user in self.last else -1,
            session=self.session[user]
            if e["ts"] - self.last.get(user, 0) <= self.session_gap
            else 0,
            clicked=(1 if user in self.clicked else -1) if user in self.last else 0,
            interactions=(self.user_interactions[user], self.item_interactions[e["item"]]),
        )
        row.tab = e["tab"]  # type: ignore[attr-defined]
        self.number += 1
        self.open[key] = row
        for kind, window in self.windows.items():
            ts = self.early.pop(("c", *key, kind), None)
            if ts is None:
                continue
            if ts <= e["ts"] + window:
                row.clicks[kind] = ts
                self.pending.append(("clicked", (user, e["item"], kind)))
            else:
                self.tallies["late"] += 1
                self.pending.append(("interacted", (user, e["item"], kind)))
        self.pending.append(("exposed", (row, keys)))

    def _click(self, identity: Any, e: dict[str, Any]) -> None:
        key, kind = (e["request"], e["item"]), e["click_kind"]
        row = self.open.get(key)
        if row is not None and e["ts"] <= row.ts + self.windows[kind]:
            row.clicks[kind] = e["ts"]
            self.pending.append(("clicked", (row.user, e["item"], kind)))
        elif row is not None or ("i", *key) in self.done:
            self.tallies["late"] += 1
            user = row.user if row is not None else e["user"]
            self.pending.append(("interacted", (user, e["item"], kind)))
        else:
            self.early[identity] = e["ts"]
