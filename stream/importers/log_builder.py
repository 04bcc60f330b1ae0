"""Events of any data set to an ordered record log: partitions, envelopes, offsets, order.

Knows no data set. Partitions are those that Kafka's default partitioner gives the same keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from kafka.partitioner import murmur2

from stream.codec_write import encode_envelope, encode_event
from stream.importers.import_config import ImportConfig, ImportCounts, Progress
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


class Record(NamedTuple):
    """One record before it has an offset; `ts_ms` is the time of its latest event."""

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
    config: ImportConfig,
    on_records: Progress,
    *,
    organic: int = 0,
) -> ImportCounts:
    """Write an ordered log with as many partitions of each topic of `streams` as configured.

    Events of a partition are sorted by time, ties keep their order; `envelope` > 1 packs so many
    neighbours into a row envelope without key, stamped with its latest time. Record timestamps
    are the events' times, as sending times are unknown. `on_records` hears of progress; `organic`
    clicks are told as they are given.
    """
    records: dict[str, list[list[Record]]] = {}
    events = dict.fromkeys(TOPIC_RANK, 0)
    for topic, outgoing in streams.items():
        groups = _partitioned(outgoing, config.partitions)
        events[topic] = sum(_events_in(one) for group in groups for one in group)
        records[topic] = [list(_packed(group, config.envelope)) for group in groups]
    built = write_records(path, records, on_records=on_records)
    return ImportCounts(
        impressions=events["impressions"], clicks=events["clicks"], organic=organic,
        items=events["items"], records=built.records, source_id=built.source_id,
    )  # fmt: skip


def _events_in(one: Outgoing) -> int:
    """Items described or shown, clicks on what was shown."""
    if one.type_ == "impression":
        return len(one.body["items"])
    return int(one.type_ == "item" or "request_id" in one.body)


def write_records(
    path: Path,
    records: Mapping[str, Sequence[Sequence[Record]]],
    *,
    on_records: Progress,
) -> BuiltLog:
    """Write an ordered log of finished records by topic and partition, each in its own order."""
    placed: list[tuple[int, int, int, int, str, Record]] = []
    for topic, groups in records.items():
        for partition, group in enumerate(groups):
            clock = 0
            for offset, record in enumerate(group):
                clock = max(clock, record.ts_ms)
                placed.append((clock, TOPIC_RANK[topic], partition, offset, topic, record))
    placed.sort(key=lambda one: one[:4])
    counts = dict.fromkeys(records, 0)
    partitions = {topic: len(groups) for topic, groups in records.items()}
    with RecordLogWriter(path, partitions, ordered=True) as log:
        for _, _, partition, offset, topic, record in placed:
            log.write(topic, partition, offset, record.ts_ms, record.key, record.value)
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


def _packed(events: list[Outgoing], envelope: int) -> Iterator[Record]:
    waiting: list[Outgoing] = []
    for event in events:
        finished = event.message
        if waiting and (finished is not None or event.type_ != waiting[0].type_):
            yield _envelope(waiting)
            waiting = []
        if finished is not None:
            yield Record(event.ts_ms, event.key, finished)
        elif envelope == 1:
            yield Record(event.ts_ms, event.key, encode_event(event.type_, event.body))
        else:
            waiting.append(event)
            if len(waiting) == envelope:
                yield _envelope(waiting)
                waiting = []
    if waiting:
        yield _envelope(waiting)


def _envelope(events: list[Outgoing]) -> Record:
    value = encode_envelope(f"{events[0].type_}s", [event.body for event in events])
    return Record(events[-1].ts_ms, None, value)
