"""Where a worker starts: restored positions against what the broker's log holds. Seeks nothing.

A position out of the log, or of another log, is refused: aiokafka would silently start elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from infra.errors import InputError
from stream.kafka.closing import stop_client
from stream.kafka.settings import KafkaConfig
from stream.positions import Position, record_hash
from stream.records import TopicPartition

CHOICES = (
    "choose: `--new-log` keeps the model and begins at the start of this log; another kafka.group "
    "with another snapshot directory starts afresh"
)
_READ_TIMEOUT_S = 15.0


async def starting_positions(
    kafka: KafkaConfig,
    sources: Mapping[TopicPartition, str],
    restored: Mapping[TopicPartition, Position],
    *,
    new_log: bool,
) -> dict[TopicPartition, Position]:
    """A position for each partition of `sources` (its log's identity), proved where possible.

    The record before each restored position is read again and its hash compared; where retention
    has removed it, only the range is checked. Partitions without a restored position begin at the
    start of the log, as do those of another log when `new_log` is set. Raises InputError with the
    choices where a position does not fit the log.
    """
    gone = restored.keys() - sources.keys()
    if gone and not new_log:
        raise InputError(
            f"the snapshot has positions in {_names(gone)}, which the broker lacks: {CHOICES}"
        )
    async with _Log(kafka) as log:
        earliest = await log.earliest(list(sources))
        starts: dict[TopicPartition, Position] = {}
        to_prove: dict[TopicPartition, Position] = {}
        for tp, source in sources.items():
            position = restored.get(tp)
            if position is not None and position.source_id != source and not new_log:
                raise InputError(
                    f"the snapshot's position in {_names([tp])} is of another log "
                    f"('{position.source_id}', the broker has '{source}'): was the topic "
                    f"recreated, or is it another broker? {CHOICES}"
                )
            if position is None or position.source_id != source:
                starts[tp] = Position(
                    source_id=source,
                    topic=tp.topic,
                    partition=tp.partition,
                    next_offset=earliest[tp],
                )
                continue
            if earliest[tp] > position.next_offset:
                raise InputError(
                    f"{_names([tp])} begins at offset {earliest[tp]}, the snapshot continues at "
                    f"{position.next_offset}: records were deleted before they were read; {CHOICES}"
                )
            starts[tp] = position
            if position.next_offset > 0:
                to_prove[tp] = position
        await _prove(log, to_prove, earliest)
    return starts


async def _prove(
    log: _Log, positions: Mapping[TopicPartition, Position], earliest: Mapping[TopicPartition, int]
) -> None:
    """Read the record before each position; raises InputError when it is another one, or none."""
    before = {tp: p.next_offset - 1 for tp, p in positions.items() if earliest[tp] < p.next_offset}
    found = await log.records_at(before)
    for tp, offset in before.items():
        position, record = positions[tp], found.get(tp)
        if record is None:
            raise InputError(
                f"{_names([tp])} has no record at offset {offset}, before which the snapshot has "
                f"read: the log ends before the snapshot's position; {CHOICES}"
            )
        if record.offset != offset:
            continue  # compacted away or a transaction's marker: in range, not provable
        if position.last_hash and record_hash(record.key, record.value) != position.last_hash:
            raise InputError(
                f"the record at offset {offset} of {_names([tp])} is not the one that the snapshot "
                f"has read there: {CHOICES}"
            )


class _Log:
    """Reads single records outside of any group."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka.servers,
            client_id="millrace-check",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=65_536,
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await stop_client(self._consumer)

    async def earliest(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """First offset of each partition."""
        offsets = await self._consumer.beginning_offsets([KafkaPartition(*tp) for tp in tps])
        return {TopicPartition(*tp): int(offset) for tp, offset in offsets.items()}

    async def records_at(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
        """The first record at or behind each offset; none where the log ends before it."""
        found: dict[TopicPartition, Any] = {}
        if not offsets:
            return found
        waiting = {KafkaPartition(*tp) for tp in offsets}
        self._consumer.assign(list(waiting))
        for tp, offset in offsets.items():
            self._consumer.seek(KafkaPartition(*tp), offset)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                while waiting:
                    waiting -= await self._take(waiting, found)
        except TimeoutError:
            pass  # the embedded broker answers nothing for offsets out of range
        return found

    async def _take(
        self, waiting: set[KafkaPartition], found: dict[TopicPartition, Any]
    ) -> set[KafkaPartition]:
        try:
            batches = await self._consumer.getmany(*waiting, timeout_ms=500)
        except OffsetOutOfRangeError as error:
            outside = {KafkaPartition(*tp) for tp in error.args[0]}
            self._consumer.pause(*outside)
            return outside
        except KafkaError as error:
            raise InputError(f"positions could not be checked: {error}") from error
        for tp, records in batches.items():
            found[TopicPartition(*tp)] = records[0]
        if batches:
            self._consumer.pause(*batches)
        return set(batches)


def _names(tps: Any) -> str:
    return ", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(tps))
