"""A Faust app on the batch transport that keeps its positions in a file and prints what it gets.

Run as a script: BROKER GROUP POSITIONS TOPIC... ; options come as JSON in MILLRACE_TEST_APP:
`slow_s` (time a batch takes), `one_owner`, `show` (print the records), `buffer`, `poll`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faust
from faust.types import TP

from stream.kafka.assignor import assignor_for
from stream.kafka.transport import SCHEME, register


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class App(faust.App):
    """Positions in memory, saved to a file after every batch."""

    file: Path
    positions: dict[TP, dict[str, int]]

    def load(self, file: Path) -> None:
        self.file, self.positions = file, {}

    async def start_offsets(self, partitions):
        new = [tp for tp in partitions if tp not in self.positions]
        if new and self.file.exists():
            saved = json.loads(self.file.read_text())
            for tp in new:
                if (key := f"{tp.topic}/{tp.partition}") in saved:
                    self.positions[tp] = saved[key]
        for tp in partitions:
            self.positions.setdefault(tp, {"next": 0, "count": 0, "sum": 0})
        starts = {tp: self.positions[tp]["next"] for tp in partitions}
        say("assigned", starts={f"{tp.topic}/{tp.partition}": n for tp, n in starts.items()})
        return starts

    def save(self) -> None:
        text = json.dumps({f"{tp.topic}/{tp.partition}": p for tp, p in self.positions.items()})
        temporary = self.file.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(self.file)

    async def _on_agent_error(self, agent, exc):
        await self.crash(exc)


def train(app: App, options: dict[str, Any], tp: TP, records: list[Any]) -> None:
    """What the pipeline thread does with a batch: move the position, save it, tell."""
    time.sleep(options.get("slow_s", 0))
    p = app.positions[tp]
    if records[0].offset != p["next"]:
        say("gap", tp=list(tp), expected=p["next"], got=records[0].offset)
    for record in records:
        p["next"] = record.offset + 1
        p["count"] += 1
        p["sum"] += record.offset
    app.save()
    shown = [
        {
            "offset": r.offset,
            "key": None if r.key is None else r.key.decode(),
            "value": None if r.value is None else r.value.decode(),
            "headers": [[k, v.decode()] for k, v in r.headers],
            "timestamp": r.timestamp,
        }
        for r in records
    ]
    say(
        "batch",
        tp=list(tp),
        n=len(records),
        next=records[-1].offset + 1,
        **({"records": shown} if options.get("show") else {}),
    )


def new_app(broker: str, group: str, file: Path, options: dict[str, Any]) -> App:
    """The app, its positions to be kept in `file`."""
    app = App(
        group,
        broker=f"{SCHEME}://{broker}",
        value_serializer="raw",
        key_serializer="raw",
        store="memory://",
        web_enabled=False,
        datadir=str(file.parent / f"faust-{os.getpid()}"),
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_buffer_maxsize=options.get("buffer", 4),
        broker_max_poll_records=options.get("poll", 5000),
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
    )
    app.load(file)
    if options.get("one_owner", True):
        app.assignor_class = assignor_for(time.time_ns() // 1_000_000)
    return app


def connect(app: App, topics: list[str], options: dict[str, Any]) -> None:
    """Agent and signals: a batch at a time, waited for before partitions go."""
    pool = ThreadPoolExecutor(1)
    lock = asyncio.Lock()

    @app.agent(app.topic(*topics, acks=False))
    async def pump(stream):
        async for event in stream.noack().events():
            message = event.message
            async with lock:
                if message.generation_id != app.consumer_generation_id:
                    continue
                await asyncio.get_running_loop().run_in_executor(
                    pool, train, app, options, message.tp, message.value
                )

    async def wait_for_batch(_app, revoked, **_):
        if revoked:
            async with lock:
                say("revoked")

    async def stopping(*_, **__):
        async with lock:
            say("stopping")

    app.on_partitions_revoked.connect(wait_for_batch, weak=False)
    app.on_before_shutdown.connect(stopping, weak=False)


def main() -> None:
    broker, group, file, *topics = sys.argv[1:]
    options = json.loads(os.environ.get("MILLRACE_TEST_APP", "{}"))
    register()
    app = new_app(broker, group, Path(file), options)
    connect(app, topics, options)
    worker = faust.Worker(
        app, override_logging=False, redirect_stdouts=False, quiet=True, loglevel="WARNING"
    )
    worker.spinner = None
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
