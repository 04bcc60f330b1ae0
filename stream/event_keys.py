"""Released rows to the arrays that the join reads: identity, click and counter keys. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream import kernels as k
from stream import key_kernels as kk
from stream.columns import EventKind
from stream.feature_plan import FeaturePlan
from stream.items import ItemTable
from stream.keys import salt_of
from stream.sequencer import Released

I64 = NDArray[np.int64]
Name = tuple[int | str, int | str, int | str]
_WHERE = {
    "user": kk.USER, "item": kk.ITEM, "event": kk.EVENT, "multi-event": kk.MULTI_EVENT,
    "attribute": kk.ATTRIBUTE, "multi-attribute": kk.MULTI_ATTRIBUTE,
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Chunk:
    """A chunk for `JoinState.advance`. `names` are those of impression rows with string ids."""

    events: k.Events
    shown: k.Shown
    names: list[Name | None] | None = None


class EventKeys:
    """Computes keys for whole chunks."""

    def __init__(self, plan: FeaturePlan, items: ItemTable) -> None:
        """`items` gives the attributes that counters are keyed with."""
        self._plan = plan
        self._items = items
        kinds, unknown = plan.config.click_kinds, salt_of("unknown")
        self._salts = kk.Salts(
            impression=np.array([salt_of("impression")]).view(np.uint64),
            click=np.array(
                [*(salt_of(f"click:{kind}") for kind in kinds), unknown]
            ).view(np.uint64),
            organic=np.array(
                [*(salt_of(f"organic:{kind}") for kind in kinds), unknown]
            ).view(np.uint64),
        )  # fmt: skip
        columns = [column for counter in plan.counters for column in counter.columns]
        lengths = [0, 0, *(len(counter.columns) for counter in plan.counters)]
        self._columns = kk.CounterColumns(
            first=np.cumsum(lengths),
            where=np.array([_WHERE[column.where] for column in columns], np.int64),
            place=np.array([column.place for column in columns], np.int64),
            salt=np.array(
                [0, *(counter.salt for counter in plan.counters)], np.int64
            ).view(np.uint64),
        )  # fmt: skip
        self._wants_items = any(column.where.endswith("attribute") for column in columns)

    def chunk(self, released: Released) -> Chunk:
        """The keys of released rows."""
        kind, item, request = released.kind_n, released.item_n, released.request_n
        n = len(kind)
        key, impression_key = np.zeros(n, np.int64), np.zeros(n, np.int64)
        kk.identities(
            kind, _words(request), _words(item), _words(released.user_n),
            _words(released.ts_ms_n), released.click_kind_n, self._salts, _words(key),
            _words(impression_key),
        )  # fmt: skip
        events = k.Events(
            kind=kind, clock=released.clock_n, ts=released.ts_ms_n, key=key,
            impression_key=impression_key, request=request, item=item, user=released.user_n,
            click_kind=released.click_kind_n, row=released.imp_n, verdict=np.zeros(n, np.uint8),
        )  # fmt: skip
        return self._with_shown(released, events)

    def _with_shown(self, released: Released, events: k.Events) -> Chunk:
        imp = released.impressions
        m = len(imp.ids_mF)
        click_keys = np.zeros((m, self._plan.shape.labels), np.int64)
        kk.click_keys(
            events.kind, events.row, _words(events.key), self._salts.click, _words(click_keys)
        )
        multi = [c for c in imp.multi_mM if c.shape[1]]
        shown = k.Shown(
            ids=np.ascontiguousarray(imp.ids_mF),
            multi=np.ascontiguousarray(np.concatenate(multi, axis=1)) if multi
            else np.zeros((m, 0), np.int64),
            dense=np.ascontiguousarray(imp.dense_mX), click_keys=click_keys,
            counter_keys=np.zeros((m, self._plan.shape.counters), np.int64),
        )  # fmt: skip
        chunk = Chunk(events=events, shown=shown, names=imp.names)
        self.refresh(chunk, 0)
        return chunk

    def refresh(self, chunk: Chunk, start: int) -> None:
        """Compute the counter keys of impressions from event `start` on, by items as they are."""
        e, shown = chunk.events, chunk.shown
        rows = start + np.flatnonzero(e.kind[start:] == EventKind.IMPRESSION)
        if not len(rows):
            return
        m = e.row[rows]
        user, item = e.user[rows], e.item[rows]
        attribute = (np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int64))
        if self._wants_items:
            found = self._items.attribute_columns(item)
            multi = [np.zeros((len(rows), 0), np.int64), *found.multi_nM]
            attribute = (found.ids_nA, np.concatenate(multi, axis=1))
        shown.counter_keys[m, 0] = self._plan.prior_key
        sources = kk.Sources(*map(_words, (user, item, shown.ids, shown.multi, *attribute)))
        kk.counter_keys(m.astype(np.int64), sources, self._columns, _words(shown.counter_keys))

    def tick(self, clock_ms: int) -> Chunk:
        """A chunk of one watermark: event time alone goes on."""
        one = np.array([clock_ms], np.int64)
        zero = np.zeros(1, np.int64)
        shape = self._plan.shape
        events = k.Events(
            kind=np.full(1, EventKind.WATERMARK, np.uint8), clock=one, ts=one, key=zero,
            impression_key=zero, request=zero, item=zero, user=zero,
            click_kind=np.full(1, -1, np.int16), row=np.full(1, -1, np.int32),
            verdict=np.zeros(1, np.uint8),
        )  # fmt: skip
        shown = k.Shown(
            ids=np.zeros((0, shape.ids), np.int64), multi=np.zeros((0, shape.multi), np.int64),
            dense=np.zeros((0, shape.dense), np.float32),
            click_keys=np.zeros((0, shape.labels), np.int64),
            counter_keys=np.zeros((0, shape.counters), np.int64),
        )  # fmt: skip
        return Chunk(events=events, shown=shown)


def _words(keys: I64) -> NDArray[np.uint64]:
    """The same words, without sign."""
    return np.ascontiguousarray(keys).view(np.uint64)
