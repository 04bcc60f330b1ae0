"""Peak memory of a worker by the length of its backlog, and its speed against replay.

Run: python -m tests.benchmarks.bench_memory [--events 200000 2000000] [--envelope 1]

A real Kafka is started (Java and Maven) and filled with synthetic impressions and clicks; then one
worker works the backlog off. Ids repeat and event time goes on at 1,000 impressions a second, so
that the state of join and model is full long before the shorter backlog ends: what grows with the
backlog would be buffers. Peak: VmHWM of the worker's process when the last sample is learned.
Speed: samples a second, wall time, between the tenth and the ninetieth percent; replay runs the
shorter log by itself afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from infra.kafka_broker import KafkaBroker
from stream.codec_write import click_body, encode_envelope, encode_event, impression_body
from stream.record_log import RecordLogWriter
from tests.support.bench import markdown, setting
from tests.support.kafka_process import Child
from tests.support.kafka_stream import PARTITIONS, T0_MS, Scene

MEMORY_TARGET_MB, SPEED_TARGET = 50.0, 0.8
USERS, ITEMS, CLICK_SHARE = 5_000, 1_000, 0.25
SETTINGS = (
    "stream.dedup_horizon_ms=20000", "stream.batch_size=1024", "stream.predict_at=settle",
    "worker.batch_records=5000", "worker.tick_ms=500",
)  # fmt: skip


def made(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir()
    return folder


def write_log(scene: Scene, events: int, envelope: int) -> int:
    """A log of so many impressions and clicks, four impressions a click; the impressions."""
    rng = np.random.default_rng(7)
    impressions = int(events / (1 + CLICK_SHARE))
    users, items = rng.integers(0, USERS, impressions), rng.integers(0, ITEMS, impressions)
    clicked = rng.random(impressions) < CLICK_SHARE
    rows: list[tuple[int, str, int, dict[str, Any]]] = []
    for i, (user, item, click) in enumerate(
        zip(users.tolist(), items.tolist(), clicked.tolist(), strict=True)
    ):
        now = T0_MS + i
        body = impression_body(
            request_id=i, user_id=user, ts_ms=now, items=[{"item_id": item}], context={"tab": i % 4}
        )
        rows.append((now, "impressions", user % PARTITIONS, body))
        if click:
            body = click_body(
                request_id=i, item_id=item, user_id=user, ts_ms=now + 1_000, kind="click"
            )
            rows.append((now + 1_000, "clicks", user % PARTITIONS, body))
    rows.sort(key=lambda row: row[0])
    counts = {scene.topics[role]: PARTITIONS for role in ("impressions", "clicks")}
    offsets: dict[tuple[str, int], int] = {}
    waiting: dict[tuple[str, int], list[dict[str, Any]]] = {}

    with RecordLogWriter(scene.log, counts, ordered=envelope == 1) as log:

        def write(role: str, partition: int, ts_ms: int, value: bytes) -> None:
            offset = offsets.get((role, partition), 0)
            offsets[role, partition] = offset + 1
            log.write(scene.topics[role], partition, offset, ts_ms, None, value)

        for ts_ms, role, partition, body in rows:
            if envelope == 1:
                write(role, partition, ts_ms, encode_event(role.removesuffix("s"), body))
                continue
            bodies = waiting.setdefault((role, partition), [])
            bodies.append(body)
            if len(bodies) == envelope:
                write(role, partition, ts_ms, encode_envelope(role, bodies))
                bodies.clear()
        for (role, partition), bodies in waiting.items():
            if bodies:
                write(role, partition, bodies[-1]["ts_ms"], encode_envelope(role, bodies))
    return impressions


def peak_mb(pid: int) -> float:
    """Greatest resident memory of a process so far, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} shows no VmHWM")


def middle_rate(seen: Sequence[tuple[float, int]], total: int) -> float:
    """Samples per second between 10 and 90 percent of the samples."""
    middle = [(s, n) for s, n in seen if 0.1 * total <= n <= 0.9 * total]
    middle = middle if len(middle) > 1 else list(seen)
    (start_s, first), (end_s, last) = middle[0], middle[-1]
    return (last - first) / max(end_s - start_s, 1e-9)


def work_off(scene: Scene, impressions: int, settings: Sequence[str]) -> tuple[float, float]:
    """(peak MB, samples per second) of a worker on the whole backlog."""
    seen: list[tuple[float, int]] = []

    def finished() -> bool:
        status = scene.status()
        samples = status.get("pipeline", {}).get("samples", 0)
        if samples and (not seen or samples > seen[-1][1]):
            seen.append((status["time_ms"] / 1_000, samples))
        return status.get("lag") == 0 and samples == impressions

    with Child(_worker(scene, settings)) as worker:
        scene.until(worker, finished, timeout_s=540.0)
        peak = peak_mb(worker.process.pid)
        assert worker.stop() == 0, worker.tail()
    assert all(a[1] < b[1] for a, b in pairwise(seen))
    return peak, middle_rate(seen, impressions)


def _worker(scene: Scene, settings: Sequence[str]) -> list[str]:
    """Arguments of a worker that keeps no predictions and takes a snapshot at its end only."""
    return [
        "-m", "stream.cli", "worker", "--config", str(scene.config),
        "--snapshots", str(scene.snapshots), "--status", str(scene.folder / "one.json"),
        "--set", "snapshot.every_samples=1000000000", *settings,
    ]  # fmt: skip


def replay_rate(scene: Scene, settings: Sequence[str]) -> float:
    """Samples per second of a replay of the scene's log, in a process of its own."""
    report = scene.folder / "replay"
    arguments = ["replay", str(scene.log), "--config", str(scene.config), "--report", str(report)]
    with Child(["-m", "stream.cli", *arguments, *settings]) as child:
        assert child.process.wait(540) == 0, child.tail()
    rate: float = json.loads((report / "report.json").read_text())["samples_per_s"]
    return rate


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--envelope", type=int, default=1)
    args = parser.parse_args()
    settings = [part for one in SETTINGS for part in ("--set", one)]
    rows: list[list[Any]] = []
    shortest: Scene | None = None
    with tempfile.TemporaryDirectory() as folder:
        with KafkaBroker() as broker:
            for events in args.events:
                scene = Scene(broker.address, made(Path(folder, str(events))))
                shortest = shortest or scene
                impressions = write_log(scene, events, args.envelope)
                scene.run("topics", "--config", str(scene.config))
                scene.produce(*settings)
                rows.append([events, impressions, *work_off(scene, impressions, settings)])
        assert shortest is not None
        replayed = replay_rate(shortest, settings)
    print(f"{setting()}; envelopes of {args.envelope}\n")
    print(markdown(["events", "samples", "peak, MB", "samples/s"], rows), end="\n\n")
    growth = rows[-1][2] - rows[0][2]
    ratio = rows[-1][3] / replayed
    results = [
        ["peak memory, longest backlog against shortest, MB", growth, f"≤ {MEMORY_TARGET_MB}",
         "yes" if growth <= MEMORY_TARGET_MB else "no"],
        ["replay of the shortest log, samples/s", replayed, "–", "–"],
        ["worker on the longest backlog / replay", ratio, f"≥ {SPEED_TARGET}",
         "yes" if ratio >= SPEED_TARGET else "no"],
    ]  # fmt: skip
    print(markdown(["figure", "value", "target", "met"], results))


if __name__ == "__main__":
    main()
