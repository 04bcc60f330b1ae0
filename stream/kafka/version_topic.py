"""The encoder versions on the item-vectors topic: counted, and one of them removed by tombstones.

Reads outside of any group. Encodes nothing, and takes away no version by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from infra.errors import FaultError
from stream.kafka.closing import stop_client
from stream.kafka.settings import ShellConfig
from stream.version_rows import VersionRows, hash_of

_POLL_MS: Final = 300
_RECORDS_MAX: Final = 2_000
_UNDER_WAY_MAX: Final = 5_000
_STALL_S: Final = 60.0

Told = Callable[[int, int], None]
"""Is told records read, and records in all."""


async def read_versions(config: ShellConfig, partitions: int, told: Told) -> VersionRows:
    """All rows that are on the topic now; raises FaultError where the broker fails."""
    rows = VersionRows()
    async for _, records in _records(config, partitions, told):
        rows.take((record.key, record.value) for record in records)
    return rows


async def remove_version(config: ShellConfig, partitions: int, version: str, told: Told) -> int:
    """Write a tombstone for each record key whose last row is of `version`; how many.

    Interrupted, it may be begun again. Raises FaultError where the broker fails.
    """
    doomed = (await read_versions(config, partitions, told)).keys(version)
    removed = len(doomed)
    producer = AIOKafkaProducer(
        bootstrap_servers=config.kafka.servers, client_id="millrace-migrate", acks="all",
        linger_ms=5,
    )  # fmt: skip
    waiting: list[Any] = []
    try:
        await producer.start()
        async with contextlib.aclosing(_records(config, partitions, told)) as batches:
            async for tp, records in batches:
                for record in records:
                    if record.key is None or hash_of(record.key) not in doomed:
                        continue
                    doomed.discard(hash_of(record.key))
                    sent = await producer.send(
                        tp.topic, key=record.key, value=None, partition=tp.partition
                    )
                    # The first that fails is raised: nobody waits for the others' reasons.
                    sent.add_done_callback(lambda one: one.cancelled() or one.exception())
                    waiting.append(sent)
                if len(waiting) >= _UNDER_WAY_MAX:
                    await _arrived(waiting)
        await _arrived(waiting)
    except KafkaError as error:
        raise FaultError(f"broker {config.kafka.broker}: {error}") from error
    finally:
        await stop_client(producer)
    return removed


async def _arrived(waiting: list[Any]) -> None:
    for sent in waiting:
        await sent
    waiting.clear()


async def _records(
    config: ShellConfig, partitions: int, told: Told
) -> AsyncGenerator[tuple[KafkaPartition, Sequence[Any]], None]:
    """The topic's records up to its end as of now, each partition's in its order."""
    tps = [KafkaPartition(config.topics.item_vectors, p) for p in range(partitions)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=config.kafka.servers, client_id="millrace-migrate",
        enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=_POLL_MS,
    )  # fmt: skip
    try:
        await consumer.start()
        consumer.assign(tps)
        firsts, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        await consumer.seek_to_beginning(*tps)
        at, fixed, more, moved_s = dict(firsts), dict(ends), True, time.monotonic()
        while more or any(at[tp] < fixed[tp] for tp in tps):
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
            for tp, records in sorted(fetched.items()):
                if fixed[tp] == ends[tp]:
                    # The embedded broker's end is that of its last batch's first record.
                    fixed[tp] = max(ends[tp], consumer.highwater(tp) or 0)
                if mine := [record for record in records if record.offset < fixed[tp]]:
                    yield tp, mine
            for tp in tps:
                at[tp] = max(at[tp], await consumer.position(tp))
            more = any(records[0].offset < fixed[tp] for tp, records in fetched.items())
            if fetched:
                moved_s = time.monotonic()
            elif time.monotonic() - moved_s > _STALL_S:
                raise FaultError(
                    f"no records came from '{config.topics.item_vectors}' in {_STALL_S:g} s: is "
                    f"broker {config.kafka.broker} away?"
                )
            total = sum(fixed[tp] - firsts[tp] for tp in tps)
            told(sum(min(at[tp], fixed[tp]) - firsts[tp] for tp in tps), total)
    except KafkaError as error:
        raise FaultError(f"broker {config.kafka.broker}: {error}") from error
    finally:
        await stop_client(consumer)
