"""Single click events from a real Kafka to decoded columns: batch transport against a plain agent.

Each side runs in a process of its own, bound to one core, over the same topic. Figures are events
by wall time and by processor time of that process, all its threads together: on a machine that
does other work the second is the one to compare.

    python -m tests.benchmarks.bench_transport [EVENTS [EVENTS_OF_THE_PLAIN_AGENT]]
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PARTITIONS = 4
EVENTS, PLAIN_EVENTS = 600_000, 60_000
# The first batches pay for imports of codecs and the first fetch.
WARM_SHARE = 0.1
ROOT = Path(__file__).parents[2]


async def fill(broker: str, topic: str, events: int) -> None:
    """Clicks with integer ids, one a record, lz4."""
    from aiokafka import AIOKafkaProducer

    from stream.codec_write import click_body, encode_event, encode_key

    producer = AIOKafkaProducer(
        bootstrap_servers=broker, compression_type="lz4", max_batch_size=262_144
    )
    await producer.start()
    try:
        for p in range(PARTITIONS):
            batch, now = producer.create_batch(), time.time_ns() // 1_000_000
            for i in range(events // PARTITIONS):
                body = click_body(
                    request_id=i, item_id=i % 5000, user_id=i % 900, ts_ms=now, kind="click"
                )
                record = {"key": encode_key(i % 900), "value": encode_event("click", body)}
                if batch.append(timestamp=now, **record) is None:
                    await producer.send_batch(batch, topic, partition=p)
                    batch = producer.create_batch()
                    batch.append(timestamp=now, **record)
            await producer.send_batch(batch, topic, partition=p)
        await producer.flush()
    finally:
        await producer.stop()


class Meter:
    """Events from the end of the warm-up to the last; ends the process and prints the figures."""

    def __init__(self, events: int) -> None:
        self.events, self.warm = events, int(events * WARM_SHARE)
        self.done = self.first = 0
        self.wall = self.cpu = 0.0

    def add(self, n: int) -> None:
        self.done += n
        if not self.first and self.done >= self.warm:
            self.first, self.wall, self.cpu = self.done, time.perf_counter(), time.process_time()
        elif self.done >= self.events:
            n = self.done - self.first
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            sys.stdout.write(json.dumps({"events": n, "wall_s": wall, "cpu_s": cpu}) + "\n")
            sys.stdout.flush()
            os._exit(0)


def consume(side: str, broker: str, topic: str, events: int) -> None:
    """One side, in this process; never returns."""
    import faust
    import msgspec

    from stream.codec import ClickDecoder
    from stream.codec_spec import DecodeSpec
    from stream.events import Click, TopicRole
    from stream.kafka.record_batch import record_batch
    from stream.kafka.transport import SCHEME, register
    from stream.records import TopicPartition

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    register()
    meter = Meter(events)
    batch_sizes = {"stream_buffer_maxsize": 4, "broker_max_poll_records": 5000}
    app = faust.App(
        f"bench-{uuid.uuid4().hex}",
        broker=f"{SCHEME if side == 'batch' else 'kafka'}://{broker}",
        value_serializer="raw", key_serializer="raw", store="memory://", web_enabled=False,
        datadir=tempfile.mkdtemp(), topic_allow_declare=False, topic_disable_leader=True,
        table_standby_replicas=0, stream_wait_empty=False,
        **(batch_sizes if side == "batch" else {}),
    )  # fmt: skip

    async def batches(stream):
        decoder = ClickDecoder(DecodeSpec(role=TopicRole.CLICKS, click_kinds=("click",)))
        pool, loop = ThreadPoolExecutor(1), asyncio.get_running_loop()

        def decode(tp, records):
            return len(decoder.decode(record_batch(TopicPartition(*tp), records)))

        async for event in stream.noack().events():
            message = event.message
            meter.add(await loop.run_in_executor(pool, decode, message.tp, message.value))

    async def singles(stream):
        decode = msgspec.msgpack.Decoder(Click).decode
        async for value in stream:
            decode(value)
            meter.add(1)

    if side == "batch":
        app.agent(app.topic(topic, acks=False), name="batches")(batches)
    else:
        app.agent(app.topic(topic, value_type=bytes), name="singles")(singles)
    worker = faust.Worker(
        app, override_logging=False, redirect_stdouts=False, quiet=True, loglevel="WARNING"
    )
    worker.spinner = None
    worker.execute_from_commandline()


def measure(side: str, broker: str, topic: str, events: int) -> dict[str, float]:
    """Figures of one side, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_transport", side, broker, topic,
         str(events)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main(events: int, plain_events: int) -> None:
    """Print the table."""
    from infra.kafka_broker import KafkaBroker
    from tests.support.kafka_topics import make_topics

    with KafkaBroker() as broker:
        make_topics(broker.address, {"clicks": PARTITIONS})
        asyncio.run(fill(broker.address, "clicks", events))
        rows = {
            "batch transport, decoded to columns": measure(
                "batch", broker.address, "clicks", events
            ),
            "plain Faust agent, decoded one by one": measure(
                "plain", broker.address, "clicks", plain_events
            ),
        }
    print("| | events | events/s, wall | events/s of one core | µs/event |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        n = row["events"]
        print(
            f"| {name} | {n:,} | {n / row['wall_s']:,.0f} | {n / row['cpu_s']:,.0f} | "
            f"{row['cpu_s'] / n * 1e6:.2f} |"
        )
    batch, plain = rows.values()
    by_cpu = (batch["events"] / batch["cpu_s"]) / (plain["events"] / plain["cpu_s"])
    print(f"\nbatch transport / plain agent: {by_cpu:.1f} × by processor time")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in {"batch", "plain"}:
        consume(*sys.argv[1:4], int(sys.argv[4]))
    else:
        given = [int(n) for n in sys.argv[1:]]
        main(*(given + [EVENTS, PLAIN_EVENTS][len(given) :]))
