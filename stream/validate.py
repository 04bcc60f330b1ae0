"""What is in a record log and what is wrong with it, counted exactly over whole columns.

Not the streaming join: this is the plain second opinion to compare it with. Keeps some tens of
bytes an event in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embeddings.vector_codec import BadVector, decode_item_vector
from infra.errors import InputError
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.codec_items import ItemEvent, decode_items
from stream.codec_spec import DecodeSpec
from stream.codec_unknown import unknown_fields
from stream.columns import I64, EventColumns, EventKind, Reason, Rejected
from stream.events import TopicRole
from stream.keys import key_of
from stream.partition_clock import ClockLimits
from stream.record_log import RecordLog
from stream.records import RecordBatch
from stream.validate_facts import Clicks, Clocks, Jumps, Shown, join_facts, shown_facts

CHUNK_RECORDS: Final = 16_384
EXAMPLES_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateConfig:
    """What is late, what a window is, which fields are read, and how the topics are called.

    `windows_ms` by kind of click; kinds that it does not name have `default_window_ms`.
    `paths`: the fields that configuration reads; those that no event has are reported.
    """

    lateness_ms: int = 5_000
    windows_ms: Mapping[str, int] = field(default_factory=dict)
    default_window_ms: int = 900_000
    max_future_ms: int = 3_600_000
    max_jump_ms: int = 600_000
    paths: tuple[str, ...] = ()
    topics: Mapping[str, TopicRole] = field(
        default_factory=lambda: {role.value: role for role in TopicRole}
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.lateness_ms, self.default_window_ms, *self.windows_ms.values()) < 0:
            raise ValueError("lateness and windows must not be negative")


class _Tally:
    """Everything that one pass over the log gathers."""

    def __init__(self, config: ValidateConfig) -> None:
        self.records: Counter[str] = Counter()
        self.events: Counter[tuple[str, str]] = Counter()
        self.rejects: Counter[tuple[str, str]] = Counter()
        self.examples: list[dict[str, Any]] = []
        self.fields: Counter[str] = Counter()
        self.clocks = Clocks(config.lateness_ms)
        self.jumps = Jumps(
            ClockLimits(max_jump_ms=config.max_jump_ms, max_future_ms=config.max_future_ms)
        )
        self.shown: list[Shown] = []
        self.clicks: list[Clicks] = []
        self.items: list[I64] = []
        self._max_future_ms = config.max_future_ms
        impressions = DecodeSpec(role=TopicRole.IMPRESSIONS, max_future_ms=config.max_future_ms)
        clicks = DecodeSpec(
            role=TopicRole.CLICKS,
            max_future_ms=config.max_future_ms,
            click_kinds=tuple(config.windows_ms),
        )
        self._impressions = ImpressionDecoder(impressions)
        self.click_decoder = ClickDecoder(clicks, open_kinds=True)
        self._spec = impressions

    def take(self, batch: RecordBatch, role: TopicRole) -> None:
        """Count one batch."""
        self.records[batch.tp.topic] += len(batch)
        if role is TopicRole.ITEMS:
            self._take_items(batch)
            return
        if role is TopicRole.ITEM_VECTORS:
            self._take_vectors(batch)
            return
        is_click = role is TopicRole.CLICKS
        columns = (self.click_decoder if is_click else self._impressions).decode(batch)
        self.fields.update(unknown_fields(batch, self._spec, every=1))
        for kind, n in zip(*np.unique(columns.kind_n, return_counts=True), strict=True):
            self.events[batch.tp.topic, EventKind(kind).name.lower()] += int(n)
        self._reject(batch, columns.rejected)
        self.clocks.take(batch.tp, columns.ts_ms_n[columns.kind_n != EventKind.REJECTED])
        self.jumps.take(batch.tp, columns)
        if is_click:
            self.clicks.append(_clicks_of(columns))
        else:
            self.shown.append(_shown_of(columns))

    def _take_items(self, batch: RecordBatch) -> None:
        rejected, keys = [], []
        for one in decode_items(batch, self._max_future_ms):
            if isinstance(one, ItemEvent):
                keys.append(key_of(one.item.item_id))
            else:
                rejected.append(one)
        self.events[batch.tp.topic, "item"] += len(keys)
        self._reject(batch, rejected)
        self.items.append(np.array(keys, np.int64))

    def _take_vectors(self, batch: RecordBatch) -> None:
        rejected = []
        for record, value in enumerate(batch.values):
            if value is None:  # compaction's tombstone
                continue
            found = decode_item_vector(value)
            if isinstance(found, BadVector):
                reason = Reason(found.reason)
                rejected.append(
                    Rejected(record=record, index=0, reason=reason, detail=found.detail)
                )
        self.events[batch.tp.topic, "item_vector"] += len(batch) - len(rejected)
        self._reject(batch, rejected)

    def _reject(self, batch: RecordBatch, rejected: list[Rejected]) -> None:
        for one in rejected:
            self.rejects[batch.tp.topic, one.reason.value] += 1
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(
                    {
                        "topic": batch.tp.topic,
                        "partition": batch.tp.partition,
                        "offset": int(batch.offset_n[one.record]),
                        "index": one.index,
                        "reason": one.reason.value,
                        "detail": one.detail,
                    }
                )


def validate(
    log: RecordLog, config: ValidateConfig, on_records: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """The report, as plain maps and numbers; see the module's command for its keys.

    A log may hold clicks alone: without a topic of impressions, these are not missed. Raises
    InputError when the log has neither topic, or nothing in it that can be used, and
    RecordLogUnusable when it is damaged.
    """
    roles = {config.topics.get(topic) for topic in log.partitions}
    if not roles & {TopicRole.IMPRESSIONS, TopicRole.CLICKS}:
        raise InputError(
            f"record log {log.path}: no topic of impressions or clicks, only "
            f"{', '.join(log.partitions)}"
        )
    tally = _Tally(config)
    ignored: Counter[str] = Counter()
    for chunk in log.batches(CHUNK_RECORDS):
        for batch in chunk:
            role = config.topics.get(batch.tp.topic)
            if role is None:
                ignored[batch.tp.topic] += len(batch)
            else:
                tally.take(batch, role)
        on_records(sum(map(len, chunk)))
    shown = Shown.joined(tally.shown)
    needed = "impression" if TopicRole.IMPRESSIONS in roles else "click"
    if not len(shown.ts_ms_n) and (needed == "impression" or not any(map(len, tally.clicks))):
        reasons = ", ".join(f"{n} {reason}" for (_, reason), n in tally.rejects.most_common(3))
        raise InputError(
            f"record log {log.path}: no usable {needed} in it ({reasons or 'no records'})"
        )
    return _report(log, config, tally, shown, ignored)


def _report(
    log: RecordLog, config: ValidateConfig, tally: _Tally, shown: Shown, ignored: Counter[str]
) -> dict[str, Any]:
    kinds = tally.click_decoder.kinds
    windows = [config.windows_ms.get(kind, config.default_window_ms) for kind in kinds]
    fields = {name: n for name, n in sorted(tally.fields.items()) if _is_open(name)}
    return {
        "log": {
            "path": str(Path(log.path)),
            "source_id": log.source_id,
            "ordered": log.ordered,
            "partitions": dict(log.partitions),
        },
        "records": dict(tally.records),
        "ignored_topics": dict(ignored),
        "events": _nested(tally.events),
        "rejected": {
            "total": sum(tally.rejects.values()),
            "by_topic": _nested(tally.rejects),
            "examples": tally.examples,
        },
        "impressions": shown_facts(shown),
        "clicks": join_facts(shown, Clicks.joined(tally.clicks), kinds, windows),
        "items": _item_facts(tally.items, shown),
        "disorder": tally.clocks.facts(),
        "jumps": tally.jumps.facts(),
        "fields": fields,
        "missing_fields": [
            path
            for path in config.paths
            if path.startswith(("context.", "features.")) and path not in fields
        ],
        "unknown_fields": {n: c for n, c in sorted(tally.fields.items()) if not _is_open(n)},
    }


def _is_open(name: str) -> bool:
    return name.startswith(("context.", "features."))


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (outer, inner), n in sorted(counts.items()):
        nested.setdefault(outer, {})[inner] = n
    return nested


def _item_facts(items: list[I64], shown: Shown) -> dict[str, int]:
    described = np.unique(np.concatenate([*items, np.zeros(0, np.int64)]))
    seen = np.unique(shown.item_n)
    return {
        "described": len(described),
        "shown": len(seen),
        "shown_without_description": int((~np.isin(seen, described)).sum()),
    }


def _rows(columns: EventColumns, kinds: tuple[EventKind, ...]) -> NDArray[np.bool_]:
    return np.isin(columns.kind_n, kinds)


def _shown_of(columns: EventColumns) -> Shown:
    rows = _rows(columns, (EventKind.IMPRESSION,))
    return Shown(
        request_n=columns.request_n[rows],
        item_n=columns.item_n[rows],
        user_n=columns.user_n[rows],
        ts_ms_n=columns.ts_ms_n[rows],
        position_n=columns.impressions.position_m[columns.imp_n[rows]],
    )


def _clicks_of(columns: EventColumns) -> Clicks:
    rows = _rows(columns, (EventKind.CLICK, EventKind.ORGANIC))
    return Clicks(
        request_n=columns.request_n[rows],
        item_n=columns.item_n[rows],
        user_n=columns.user_n[rows],
        ts_ms_n=columns.ts_ms_n[rows],
        kind_n=columns.click_kind_n[rows],
        organic_n=columns.kind_n[rows] == EventKind.ORGANIC,
    )
