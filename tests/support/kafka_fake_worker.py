"""The worker's shell around a pipeline that only counts. Run as a script: BROKER GROUP DIR.

Options come as JSON in MILLRACE_TEST_WORKER: names of topics (`topics`), `every` (records between
snapshots), `slow_s` (time a batch takes), `fail_at` (records before an exception), `bad` (values
that become dead letters), `idle_ms`, `new_log`, `batch`, `item_room`, `session_s`,
`watch_s` (between two looks at the topics).
Snapshots are JSON files DIR/<epoch>.json; every call prints a JSON line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import InputError
from stream.item_pending import ItemPosition
from stream.kafka.logs import set_up_logs
from stream.kafka.settings import KafkaConfig, ShellConfig, TopicsConfig, WorkerConfig
from stream.kafka.worker import run_worker
from stream.positions import Position
from stream.records import TopicPartition
from stream.sequencer import DeadLetter


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


@dataclass
class Report:
    dead_letters: list[DeadLetter] = field(default_factory=list)


class CountingPipeline:
    """Positions as the real one keeps them; holds fetching back in turn, as a sequencer does."""

    def __init__(self, options: dict[str, Any], items: dict[int, ItemPosition]) -> None:
        self._options = options
        self._positions: dict[TopicPartition, Position] = {}
        self._items = items
        self.records = self.item_records = self.idles = 0

    def assign(self, partitions):
        self._positions = dict(partitions)
        say("assign", starts={f"{tp.topic}/{tp.partition}": p.next_offset
                              for tp, p in partitions.items()})  # fmt: skip

    def process(self, batches, now_ms):
        report = Report()
        for batch in batches:
            time.sleep(self._options.get("slow_s", 0))
            self.records += len(batch)
            if self.records > self._options.get("fail_at", 1 << 60):
                raise ValueError("planted failure")
            last = (batch.keys[-1], batch.values[-1])
            self._positions[batch.tp] = self._positions[batch.tp].after(batch.offset_n, last, 0)
            report.dead_letters += [
                DeadLetter(
                    tp=batch.tp,
                    offset=int(batch.offset_n[i]),
                    index=-1,
                    reason="malformed",
                    detail="planted",
                    key=batch.keys[i],
                    value=value,
                )
                for i, value in enumerate(batch.values)
                if value is None or value.startswith(b"bad")
            ]
        say("batch", n=sum(map(len, batches)), total=self.records)
        return report

    def wants(self):
        if not self._options.get("in_turn"):
            return None
        least = min(p.next_offset for p in self._positions.values())
        return frozenset(tp for tp, p in self._positions.items() if p.next_offset < least + 500)

    def positions(self):
        return dict(self._positions)

    def idle(self, silent, elapsed_ms, now_ms):
        self.idles += 1
        say("idle", silent=len(silent), elapsed_ms=elapsed_ms)
        return Report()

    def offer_items(self, source_id, batches):
        for batch in batches:
            self.item_records += len(batch)
            self._items[batch.tp.partition] = ItemPosition(source_id, int(batch.offset_n[-1]), 1)
        say("items", n=sum(map(len, batches)), total=self.item_records)
        return Report()

    def wants_items(self):
        return self.item_records < self._options.get("item_room", 1 << 60)

    def item_positions(self):
        return dict(self._items)

    def status(self):
        return {"records": self.records, "idles": self.idles}


class JsonCheckpoints:
    """One JSON file an epoch, written in the calling thread."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        folder.mkdir(parents=True, exist_ok=True)
        epochs = sorted(int(f.name) for f in folder.iterdir() if f.is_dir())
        self.restored: dict[str, Any] = {"positions": [], "items": []}
        for epoch in reversed(epochs):
            file = folder / str(epoch) / "snapshot.json"
            if file.exists():
                self.restored = json.loads(file.read_text())
                break
        self.epoch = (epochs or [0])[-1] + 1
        (folder / str(self.epoch)).mkdir()
        self._durable = None
        self._taken = 0
        self.pipeline: CountingPipeline

    def due(self):
        return self.pipeline.records - self._taken >= self._every

    def take(self):
        positions = self.pipeline.positions()
        text = json.dumps({
            "positions": [p.to_map() for p in positions.values()],
            "items": [[p, *at] for p, at in self.pipeline.item_positions().items()],
        })  # fmt: skip
        temporary = self._folder / f".{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(self._folder / str(self.epoch) / "snapshot.json")
        self._taken = self.pipeline.records
        self._durable = positions
        say("snapshot", records=self._taken)

    def durable(self):
        durable, self._durable = self._durable, None
        return durable

    def fenced(self):
        return (self._folder / str(self.epoch + 1)).exists()

    def final(self):
        self.take()
        return self.durable()

    def close(self):
        say("closed")


@dataclass
class FakeEngine:
    pipeline: CountingPipeline
    checkpoints: JsonCheckpoints
    restored: dict[TopicPartition, Position]


def main() -> int:
    broker, group, folder = sys.argv[1:]
    options = json.loads(os.environ.get("MILLRACE_TEST_WORKER", "{}"))
    set_up_logs()

    def make_engine(partitions):
        checkpoints = JsonCheckpoints(Path(folder), options.get("every", 1 << 60))
        items = {p: ItemPosition(*at) for p, *at in checkpoints.restored["items"]}
        pipeline = checkpoints.pipeline = CountingPipeline(options, items)
        positions = [Position.from_map(p) for p in checkpoints.restored["positions"]]
        return FakeEngine(pipeline, checkpoints, {p.tp: p for p in positions})

    try:
        config = ShellConfig(
            kafka=KafkaConfig(
                broker=broker,
                group=group,
                connect_timeout_s=options.get("connect_s", 5.0),
                session_timeout_s=options.get("session_s", 6.0),
            ),
            topics=TopicsConfig(**options.get("topics", {})),
            worker=WorkerConfig(
                tick_ms=100,
                batch_records=options.get("batch", 500),
                stop_timeout_s=20.0,
                dead_letter_timeout_s=options.get("letters_s", 10.0),
                status_file=str(Path(folder) / "status.json"),
            ),
        )
        run_worker(
            config,
            make_engine,
            idle_ms=options.get("idle_ms", 600_000),
            new_log=options.get("new_log", False),
            watch_every_s=options.get("watch_s", 30.0),
        )
    except InputError as error:
        print(f"millrace: {error}")
        return 2
    except Exception as error:  # noqa: BLE001
        print(f"millrace: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
