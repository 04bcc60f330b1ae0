"""A small click stream as a record log, and the whole program run on it through its commands."""

from __future__ import annotations

import contextlib
import io
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stream import cli
from stream.codec_write import (
    click_body,
    encode_event,
    encode_item,
    encode_key,
    impression_body,
)
from stream.record_log import RecordLogWriter
from tests.support.kafka_process import Child
from tests.support.kafka_topics import unique

PARTITIONS = 2
T0_MS = 1_650_000_000_000

CONFIG = """
[stream]
lateness_ms = 2000
linger_ms = 600000
batch_size = 64
predict_at = "impression"
idle_ms = 600000
[label.click]
window_ms = 20000
[items]
dim = 16
[ranker]
name = "id_content"
label = "click"
[[history]]
name = "recent"
kinds = ["click"]
length = 8
[[feature]]
name = "user"
path = "user"
[[feature]]
name = "item"
path = "item"
[[feature]]
name = "tab"
path = "context.tab"
[[feature]]
name = "colour"
path = "item.attributes.colour"
[[counter]]
name = "user"
keys = ["user"]
[[counter]]
name = "item"
keys = ["item"]
half_life_hours = 1
"""


class Scene:
    """Names, files and commands of one run on one broker."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        tag = unique("")
        roles = ("impressions", "clicks", "items", "item_vectors", "dead_letters", "predictions")
        self.topics = {role: f"{role}{tag}" for role in roles}
        self.config = folder / "config.toml"
        lines = "\n".join(f'{role} = "{name}"' for role, name in self.topics.items())
        self.config.write_text(
            f"{CONFIG}\n[topics]\n{lines}\npartitions = {PARTITIONS}\nitem_partitions = 2\n"
            f'[kafka]\nbroker = "{broker}"\ngroup = "group{tag}"\nsession_timeout_s = 6.0\n'
            "[worker]\ntick_ms = 100\nbatch_records = 200\n"
        )
        self.log = folder / "log.parquet"
        self.snapshots = folder / "worker"

    def write_log(self, impressions: int, *, seed: int = 1) -> None:
        """Items first, then impressions with clicks a few seconds later, by event time."""
        rng = random.Random(seed)
        records: list[tuple[int, str, int, bytes, bytes]] = []
        for item in range(60):
            body = {"item_id": item, "ts_ms": T0_MS - 10_000, "attributes": {"colour": item % 5}}
            key = encode_key(item)
            records.append((T0_MS - 10_000, "items", item % 2, key, encode_item(**body)))
        now = T0_MS
        for i in range(impressions):
            now += rng.randrange(1, 300)
            user, item = rng.randrange(40), rng.randrange(60)
            partition, key = user % PARTITIONS, encode_key(user)
            body = impression_body(
                request_id=i, user_id=user, ts_ms=now, items=[{"item_id": item}],
                context={"tab": rng.randrange(4)},
            )  # fmt: skip
            records.append((now, "impressions", partition, key, encode_event("impression", body)))
            if rng.random() < 0.2 + 0.1 * (item % 5):
                at = now + rng.randrange(500, 15_000)
                click = click_body(request_id=i, item_id=item, user_id=user, ts_ms=at, kind="click")
                records.append((at, "clicks", partition, key, encode_event("click", click)))
        records.sort(key=lambda r: r[0])
        counts = {self.topics[t]: PARTITIONS for t in ("items", "impressions", "clicks")}
        offsets: dict[tuple[str, int], int] = {}
        with RecordLogWriter(self.log, counts, ordered=True) as log:
            for ts_ms, role, partition, key, value in records:
                offset = offsets.get((role, partition), 0)
                offsets[role, partition] = offset + 1
                log.write(self.topics[role], partition, offset, ts_ms, key, value)

    def run(self, *args: str, code: int = 0) -> str:
        """Run a command to its end, in this process; its output."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            got = cli.run(args)
        assert got == code, f"{args}: code {got}\n{out.getvalue()}"
        return out.getvalue()

    def prepare(self) -> None:
        """Topics, items and their vectors."""
        c = ["--config", str(self.config)]
        self.run("topics", *c)
        self.run("produce", str(self.log), *c, "--items-only")
        self.run("embed", *c, "--until-end")

    def produce(self, *args: str) -> None:
        """Impressions and clicks, with watermarks at the end."""
        self.run("produce", str(self.log), "--config", str(self.config), "--skip-items", *args)

    def worker(self, name: str = "one", *args: str, every: int = 0) -> Child:
        """A worker, started."""
        every = every or 1 << 40
        (self.folder / f"{name}.json").unlink(missing_ok=True)
        return Child(
            ["-m", "stream.cli", "worker", "--config", str(self.config), "--predictions",
             "--snapshots", str(self.snapshots), "--status", str(self.folder / f"{name}.json"),
             "--set", f"snapshot.every_samples={every}", *args]
        )  # fmt: skip

    def status(self, name: str = "one") -> dict[str, Any]:
        """What the worker says it does; empty before it says anything."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def samples(self, name: str = "one") -> int:
        """Samples learned, by the status."""
        return int(self.status(name).get("pipeline", {}).get("samples", 0))

    def until(self, child: Child, ready: Any, timeout_s: float = 180.0) -> None:
        """Wait until `ready()`; fails when the worker ends before."""
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while not ready():
            assert child.process.poll() is None, "the worker ended:\n" + child.tail()
            assert time.monotonic() < deadline, f"not in {timeout_s} s:\n" + child.tail()
            pause.wait(0.05)

    def replay(self, log: Path | None = None) -> Path:
        """The report folder of a replay of the log."""
        log = log or self.log
        out = self.folder / f"replay-{log.stem}"
        self.run("replay", str(log), "--config", str(self.config), "--report", str(out))
        return out


def same_predictions(a: Path, b: Path) -> int:
    """Assert that two folders hold the same predictions, bit for bit; their number."""
    one, other = (pq.read_table(folder / "predictions.parquet") for folder in (a, b))
    assert one.schema.names == other.schema.names
    for name in one.schema.names:
        x, y = one[name].to_numpy(), other[name].to_numpy()
        assert len(x) == len(y), name
        assert np.array_equal(x.view(np.uint8), y.view(np.uint8)), name
    return len(one)
