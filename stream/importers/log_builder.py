"""Events of any data set to an ordered record log: partitions, envelopes, offsets, order.

Knows no data set. Partitions are those that Kafka's default partitioner gives the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from kafka.partitioner import murmur2

from stream.codec_write import encode_envelope, encode_event
from stream.record_log import RecordLogWriter

TOPIC_RANK: Final = {"items": 0, "item-vectors": 1, "impressions": 2, "clicks": 3}
"""Order of records whose partitions' clocks are equal."""
_PROGRESS_RECORDS: Final = 10_000


class Outgoing(NamedTuple):
    """One event with its type, or a finished message (`message` bytes, `events` in it)."""

    ts_ms: int
    key: bytes
    type_: str
    body: Mapping[str, Any]
    message: bytes | None = None


class _Record(NamedTuple):
    """One record before it has an offset; sorts by time only."""

    ts_ms: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltLog:
    """What was written: identity, records, and their number by topic."""

    source_id: str
    records: Mapping[str, int]


def write_log(
    path: Path,
    streams: Mapping[str, Iterable[Outgoing]],
    *,
    partitions: int,
    envelope: int,
    on_records: Callable[[int], None],
) -> BuiltLog:
    """Write an ordered log with `partitions` of each topic of `streams`.

    Events of a partition are sorted by time, ties keep their order; `envelope` > 1 packs so many
    neighbours into a row envelope without key, stamped with its latest time. Record timestamps
    are the events' times, as sending times are unknown. `on_records` hears of progress.
    """
    records: list[tuple[int, int, int, int, str, _Record]] = []
    for topic, events in streams.items():
        for partition, group in enumerate(_partitioned(events, partitions)):
            for offset, record in enumerate(_packed(group, envelope)):
                records.append((record.ts_ms, TOPIC_RANK[topic], partition, offset, topic, record))
    # Times rise within a partition, so each record's time is its partition's clock.
    records.sort(key=lambda one: one[:4])
    counts = dict.fromkeys(streams, 0)
    with RecordLogWriter(path, dict.fromkeys(streams, partitions), ordered=True) as log:
        for ts_ms, _, partition, offset, topic, record in records:
            log.write(topic, partition, offset, ts_ms, record.key, record.value)
            counts[topic] += 1
            if offset % _PROGRESS_RECORDS == 0:
                on_records(sum(counts.values()))
    return BuiltLog(source_id=log.source_id, records=counts)


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of a key by Kafka's default partitioner (murmur2)."""
    return int((murmur2(key) & 0x7FFF_FFFF) % partitions)


def _partitioned(events: Iterable[Outgoing], partitions: int) -> list[list[Outgoing]]:
    groups: list[list[Outgoing]] = [[] for _ in range(partitions)]
    # Murmur2 in Python takes 2 µs; keys repeat.
    known: dict[bytes, list[Outgoing]] = {}
    for event in events:
        group = known.get(event.key)
        if group is None:
            group = known[event.key] = groups[partition_of(event.key, partitions)]
        group.append(event)
    for group in groups:
        group.sort(key=lambda event: event.ts_ms)
    return groups


def _packed(events: list[Outgoing], envelope: int) -> Iterator[_Record]:
    waiting: list[Outgoing] = []
    for event in events:
        finished = event.message
        if waiting and (finished is not None or event.type_ != waiting[0].type_):
            yield _envelope(waiting)
            waiting = []
        if finished is not None:
            yield _Record(event.ts_ms, event.key, finished)
        elif envelope == 1:
            yield _Record(event.ts_ms, event.key, encode_event(event.type_, event.body))
        else:
            waiting.append(event)
            if len(waiting) == envelope:
                yield _envelope(waiting)
                waiting = []
    if waiting:
        yield _envelope(waiting)


def _envelope(events: list[Outgoing]) -> _Record:
    value = encode_envelope(f"{events[0].type_}s", [event.body for event in events])
    return _Record(events[-1].ts_ms, None, value)
