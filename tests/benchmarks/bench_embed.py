"""Time from an item event to its vector in the worker's RocksDB, while the worker trains.

python -m tests.benchmarks.bench_embed [--seconds 60] [--items-s 5] [--impressions-s 2000]
    [--threads 1]

A real Kafka (Java and Maven), an embedder and a worker with the preset `kuairand`, all on this
machine. The bundled log's history is sent at once; then its events at a steady rate, and with them
new items: of 64 tokens of text, and in a second run with a JPEG of 500 x 500 as well. The worker
shows an item at the first learn step behind it, so the time between two steps is part of what is
measured; it is printed, and so is the time until the row was on the broker. The RocksDB is opened
as a secondary and looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rocksdict
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from embeddings.vector_codec import ItemVector, decode_item_vector
from embeddings.vector_store import _names
from infra.kafka_broker import KafkaBroker
from stream.codec_write import encode_event, encode_key, item_body
from stream.kafka.event_time import event_time_ms
from stream.keys import key_of
from stream.record_log import RecordLog
from stream.records import RecordBatch
from tests.benchmarks.bench_encoders import pictures, texts
from tests.support.bench import kuairand_log, markdown, setting
from tests.support.kafka_process import Child
from tests.support.kafka_stream import Scene

LOOK_S = 0.02
FIRST_ITEM = 1 << 50
TARGETS_S = {"text": 1.0, "text and picture": 2.0}
ENCODERS = {"text": ["minilm"], "text and picture": ["minilm", "image"]}
PARTITIONS = 4


@dataclass
class Seen:
    """When each new item was sent, had its row on the broker and was in the worker's store."""

    sent: dict[int, float] = field(default_factory=dict)
    embedded: dict[int, float] = field(default_factory=dict)
    visible: dict[int, float] = field(default_factory=dict)
    event_ms: int = 0
    done: bool = False


class Bench:
    """One run on one broker."""

    def __init__(self, broker: str, folder: Path, args: argparse.Namespace, kind: str) -> None:
        self.broker, self.folder, self.args = broker, folder, args
        encoders = json.dumps(ENCODERS[kind])
        config = ["--config", "kuairand", "--broker", broker, "--set", f"kafka.group={kind[-7:]}"]
        names = ("impressions", "clicks", "items", "item_vectors", "dead_letters", "predictions")
        self.topics = {name: f"{name}-{kind[-7:]}".replace(" ", "") for name in names}
        for name, topic in self.topics.items():
            config += ["--set", f"topics.{name}={topic}"]
        threads = f"embed.threads={args.threads}"
        self.config = [*config, "--set", f"items.encoders={encoders}", "--set", threads]
        self.seen = Seen()
        self.stock = 0  # items of the log that were sent
        count = int(args.seconds * args.items_s)
        bodies = texts(count, 62)
        images = pictures(count, 500) if "image" in ENCODERS[kind] else [None] * count
        self.items = [
            {"title": text.text, **({"image": one.image} if one else {})}
            for text, one in zip(bodies, images, strict=True)
        ]

    def run(self) -> dict[str, Any]:
        """Figures of the run."""
        Scene.run(self, "topics", *self.config)  # type: ignore[arg-type]  # it uses nothing of it
        status = self.folder / "status.json"
        state = self.folder / "worker"
        with (
            Child(["-m", "stream.cli", "embed", *self.config]) as embedder,
            Child(
                ["-m", "stream.cli", "worker", *self.config, "--snapshots", str(state),
                 "--status", str(status)]
            ) as worker,
        ):  # fmt: skip
            asyncio.run(self._stream(status, state, (embedder, worker)))
            steps = self._steps
            assert embedder.stop() == 0, embedder.tail()
            assert worker.stop() == 0, worker.tail()
        return self._figures(steps)

    async def _stream(self, status: Path, state: Path, children: Sequence[Child]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.broker, linger_ms=0)
        rows = AIOKafkaConsumer(
            self.topics["item_vectors"], bootstrap_servers=self.broker, fetch_max_wait_ms=50,
            auto_offset_reset="earliest",
        )  # fmt: skip
        await producer.start()
        await rows.start()
        try:
            chunks = self._chunks()
            await self._history(producer, chunks)
            await self._embedded(rows)
            await self._until(lambda: _lag(status) == 0, children)
            before = _samples(status)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._paced(producer, chunks))
                group.create_task(self._send_items(producer))
                group.create_task(self._follow_rows(rows))
                group.create_task(self._look(state))
            learned = _samples(status) - before
            self._steps = (learned, time.monotonic() - began)
        finally:
            await producer.stop()
            await rows.stop()

    def _chunks(self) -> Iterator[list[RecordBatch]]:
        names = {"impressions": "impressions", "clicks": "clicks", "items": "items"}
        for batches in RecordLog(kuairand_log(1)).batches(64):
            kept = [b for b in batches if b.tp.topic in names]
            if kept:
                yield kept

    async def _history(
        self, producer: AIOKafkaProducer, chunks: Iterator[list[RecordBatch]]
    ) -> None:
        """Items and what is before the first impressions, as fast as it goes."""
        for batches in chunks:
            await self._send(producer, batches)
            if any(b.tp.topic == "impressions" for b in batches):
                break
        await producer.flush()

    async def _embedded(self, rows: AIOKafkaConsumer) -> None:
        """Wait until the log's own items are embedded: they are not what is measured."""
        done, deadline = 0, time.monotonic() + 300
        while done < self.stock:
            assert time.monotonic() < deadline, f"{done} of {self.stock} items embedded"
            done += sum(map(len, (await rows.getmany(timeout_ms=200)).values()))

    async def _send(self, producer: AIOKafkaProducer, batches: list[RecordBatch]) -> None:
        for batch in batches:
            topic = self.topics[batch.tp.topic]
            builder = producer.create_batch()
            for key, value in zip(batch.keys, batch.values, strict=True):
                while builder.append(timestamp=None, key=key, value=value) is None:
                    builder.close()
                    await producer.send_batch(builder, topic, partition=batch.tp.partition)
                    builder = producer.create_batch()
            builder.close()
            await producer.send_batch(builder, topic, partition=batch.tp.partition)
            if batch.tp.topic == "items":
                self.stock += len(batch)
            else:
                times = [t for t in map(event_time_ms, batch.values) if t is not None]
                self.seen.event_ms = max([self.seen.event_ms, *times])

    async def _paced(self, producer: AIOKafkaProducer, chunks: Iterator[list[RecordBatch]]) -> None:
        """The rest of the log at so many impressions a second, until all items are visible."""
        began, impressions = time.monotonic(), 0
        for batches in chunks:
            if self.seen.done:
                return
            await self._send(producer, batches)
            impressions += sum(len(b) for b in batches if b.tp.topic == "impressions")
            due = began + impressions / self.args.impressions_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        raise AssertionError("the log ended before all items were visible")

    async def _send_items(self, producer: AIOKafkaProducer) -> None:
        began = time.monotonic()
        for n, content in enumerate(self.items):
            await asyncio.sleep(max(0.0, began + n / self.args.items_s - time.monotonic()))
            item = FIRST_ITEM + n
            body = item_body(item_id=item, ts_ms=self.seen.event_ms, **content)
            self.seen.sent[item] = time.monotonic()
            await producer.send(
                self.topics["items"], encode_event("item", body), encode_key(item),
                partition=item % PARTITIONS,
            )  # fmt: skip

    async def _follow_rows(self, consumer: AIOKafkaConsumer) -> None:
        while not self.seen.done:
            for records in (await consumer.getmany(timeout_ms=50)).values():
                for one in records:
                    row = decode_item_vector(one.value)
                    if isinstance(row, ItemVector) and row.item_id in self.seen.sent:
                        self.seen.embedded[int(row.item_id)] = time.monotonic()

    async def _look(self, state: Path) -> None:
        """Look into the worker's store until every item was found."""
        (current,) = state.glob("vectors/*/CURRENT")  # noqa: ASYNC240  # a local folder, once
        with tempfile.TemporaryDirectory() as own:
            store: Any = rocksdict.Rdict(
                str(current.parent), rocksdict.Options(raw_mode=True),
                access_type=rocksdict.AccessType.secondary(own),
            )  # fmt: skip
            deadline = time.monotonic() + self.args.seconds + 120
            while len(self.seen.visible) < len(self.items):
                assert time.monotonic() < deadline, f"{len(self.seen.visible)} items visible"
                store.try_catch_up_with_primary()
                waiting = [i for i in self.seen.sent if i not in self.seen.visible]
                keys = _names(np.array([key_of(i) for i in waiting], np.int64))
                for item, value in zip(waiting, store.get(list(keys)) if keys else [], strict=True):
                    if value is not None:
                        self.seen.visible[item] = time.monotonic()
                await asyncio.sleep(LOOK_S)
            store.close()
        self.seen.done = True

    async def _until(self, ready: Any, children: Sequence[Child]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            for child in children:
                assert child.process.poll() is None, child.tail()
            assert time.monotonic() < deadline, [child.tail() for child in children]
            await asyncio.sleep(0.2)

    def _figures(self, steps: tuple[int, float]) -> dict[str, Any]:
        seen = self.seen
        visible = np.array([seen.visible[i] - seen.sent[i] for i in seen.sent])
        embedded = np.array([seen.embedded[i] - seen.sent[i] for i in seen.sent])
        samples_s = steps[0] / steps[1]
        return {
            "items": len(visible), "samples_s": samples_s, "step_s": 512 / max(samples_s, 1e-9),
            "embedded": np.quantile(embedded, [0.5, 0.99]),
            "visible": np.quantile(visible, [0.5, 0.99, 1.0]),
        }  # fmt: skip


def _status(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _lag(file: Path) -> int | None:
    return _status(file).get("lag")


def _samples(file: Path) -> int:
    return int(_status(file).get("pipeline", {}).get("samples", 0))


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--items-s", type=float, default=5.0)
    parser.add_argument("--impressions-s", type=float, default=2_000.0)
    parser.add_argument("--threads", type=int, default=1, help="of the encoders; 0: torch's choice")
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS_S), default=list(TARGETS_S))
    args = parser.parse_args()
    rows: list[list[Any]] = []
    print(f"{setting()}; encoders with {args.threads or 'as many as torch likes'} thread(s)\n")
    with KafkaBroker() as broker, tempfile.TemporaryDirectory() as folder:
        for n, kind in enumerate(args.kinds):
            place = Path(folder, str(n))
            place.mkdir()
            f = Bench(broker.address, place, args, kind).run()
            target = TARGETS_S[kind]
            rows.append([
                kind, f["items"], f["samples_s"], f["step_s"], *f["embedded"], *f["visible"],
                f"< {target:g}", "yes" if f["visible"][1] < target else "no",
            ])  # fmt: skip
    header = ["item", "items", "samples/s learned", "s between steps", "row on the broker, p50 s",
              "p99", "in the worker's store, p50 s", "p99", "max", "p99 target", "met"]  # fmt: skip
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
