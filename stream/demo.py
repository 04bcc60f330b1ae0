"""The demo: broker, topics, embedder and worker as processes on the bundled log, then its replay.

Starts, watches and stops processes of the `millrace` command; does nothing that they do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import FaultError
from infra.local_broker import LocalBroker
from stream.prediction_log import FILE as PREDICTIONS
from stream.record_log import RecordLog

RECORD = "record.parquet"
"""What came over the broker, where the demo replays that."""

STALLED_S = 120.0
# At first processes start and compile their loops: minutes, on a machine with other work.
STARTING_S = 600.0
_POLL_S = 0.25


class Live(NamedTuple):
    """Parts of a log, and the number of items in the first and in both."""

    stock: Path
    arrivals: Path
    stock_items: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """`broker` empty: the embedded one. `arguments` go to every process (configuration).

    `data_set` is the importer that makes a record log of the folder `data`; empty: `data` is the
    record log. With `live`, two parts of that log are sent instead: the items of `live.stock` are
    embedded first, then all of `live.arrivals` at the speed of its own clock, its items embedded
    while its impressions are shown; what is replayed is the record of the broker.
    """

    data: Path
    data_set: str
    folder: Path
    broker: str = ""
    arguments: tuple[str, ...] = ()
    evaluate_from: str = ""
    live: Live | None = None


class Told(NamedTuple):
    """State of a run, for whoever shows it: records done and in all, and the worker's status."""

    phase: str
    done: int
    total: int
    status: Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class DemoResult:
    """What came of it. `differences`: columns in which the run and its replay are not equal."""

    setup_s: float = 0.0
    run_s: float = 0.0
    status: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    folder: Path
    snapshots: int = 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what is done meanwhile as an error does: broker and processes end with it."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Demo:
    """One demo from start to end."""

    def __init__(self, config: DemoConfig, tell: Callable[[Told], None]) -> None:
        """`tell` is called a few times a second."""
        self._config, self._tell = config, tell
        self._log = config.folder / "log.parquet" if config.data_set else config.data
        self._state = config.folder / "worker"
        self._status_file = config.folder / "status.json"
        config.folder.mkdir(parents=True, exist_ok=True)

    @_ended_by_sigterm()
    def run(self) -> DemoResult:
        """Set up, stream, stop, replay, compare. Raises FaultError with last words."""
        result = DemoResult(folder=self._config.folder)
        began = time.monotonic()
        with self._broker() as broker:
            self._run("topics", "--broker", broker)
            # It compiles its loops while the log is made and the items are embedded.
            with self._worker(broker) as worker:
                if importer := self._config.data_set:
                    self._tell(Told("making the record log", 0, 0, {}))
                    data = str(self._config.data)
                    self._run("import", importer, data, str(self._log), configured=False)
                live = self._config.live
                started = (self._arrive(broker, worker, live) if live
                           else self._at_once(broker, worker))  # fmt: skip
                result.setup_s, result.run_s = started - began, time.monotonic() - started
                worker.send_signal(signal.SIGTERM)
                self._exit(worker, "worker")
            if live:
                self._record(broker)
        result.status = json.loads(self._status_file.read_text())
        self._replay(result)
        result.snapshots = len(list((self._state / "snapshots" / "epochs").glob("*/[0-9]*")))
        return result

    def _at_once(self, broker: str, worker: subprocess.Popen[bytes]) -> float:
        """All items first, until the worker holds their vectors; when the stream began then."""
        self._send_items(broker, self._log)
        self._run("embed", "--broker", broker, "--until-end", "--json")
        vectors = json.loads(self._words("embed").read_text().splitlines()[-1])["vectors"]
        self._wait_for_vectors(worker, vectors)
        started = time.monotonic()
        self._stream(broker, worker, self._log, "--skip-items")
        return started

    def _arrive(self, broker: str, worker: subprocess.Popen[bytes], live: Live) -> float:
        """Items come, are embedded and are shown, all at once; when the stream began.

        The embedder is there before: to start takes it longer than new items are kept back.
        """
        self._send_items(broker, live.stock)
        with _stopped(self._start("embed", "--broker", broker)):
            self._wait_for_vectors(worker, live.stock_items)
            started = time.monotonic()
            self._stream(broker, worker, live.arrivals, "--speed", "1")
            self._wait_for_vectors(worker, live.items)
        return started

    def _send_items(self, broker: str, log: Path) -> None:
        self._tell(Told("sending items, waiting until they are embedded", 0, 0, {}))
        self._run("produce", str(log), "--broker", broker, "--items-only")

    def _record(self, broker: str) -> None:
        self._tell(Told("recording what came over the broker", 0, 0, {}))
        self._log = self._config.folder / RECORD
        self._run("record", str(self._log), "--broker", broker)

    def _wait_for_vectors(self, worker: subprocess.Popen[bytes], vectors: int) -> None:
        def holds_all(status: Mapping[str, Any]) -> bool:
            counts = status.get("pipeline", {})
            held = counts.get("waiting_items", 0) + counts.get("items_applied", 0)
            return status.get("state") == "owner" and held >= vectors

        self._wait(worker, "waiting for the worker to hold the item vectors", holds_all)

    def _stream(
        self, broker: str, worker: subprocess.Popen[bytes], path: Path, *options: str
    ) -> None:
        log = RecordLog(path)
        ends = {
            f"{tp.topic}/{tp.partition}": last + 1
            for tp, last in log.last_offsets().items()
            if tp.topic != "items"
        }
        total = sum(ends.values())
        producer = self._start("produce", str(path), "--broker", broker, *options)
        with _stopped(producer):
            self._wait(worker, "streaming", lambda s: _is_done(s, ends), total=total)
            self._exit(producer, "produce")

    def _wait(
        self,
        worker: subprocess.Popen[bytes],
        phase: str,
        done: Callable[[Mapping[str, Any]], bool],
        total: int = 0,
    ) -> None:
        """Wait until the worker's status says so; raises FaultError when it ends or stalls."""
        last, moved, limit_s = -1, time.monotonic(), STARTING_S
        while True:
            status: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                status = json.loads(self._status_file.read_text())
            records = sum(status.get("positions", {}).values())
            items = status.get("pipeline", {}).get("waiting_items", 0)
            self._tell(Told(phase, records, total, status))
            if done(status):
                return
            if worker.poll() is not None:
                self._exit(worker, "worker")
                raise FaultError(f"the worker ended while {phase}")
            if records + items != last:
                if last >= 0 and records + items:
                    limit_s = STALLED_S
                last, moved = records + items, time.monotonic()
            if time.monotonic() - moved > limit_s:
                raise FaultError(
                    f"{phase}: nothing happened for {limit_s:.0f} s; see {self._config.folder}"
                )
            time.sleep(_POLL_S)

    def _replay(self, result: DemoResult) -> None:
        """Replay the log, or the record, and compare the predictions, column by column."""
        live = self._config.live is not None
        self._tell(Told(f"replaying the {'record' if live else 'same log'} to compare", 0, 0,
                        result.status))  # fmt: skip
        folder = self._config.folder / "replay"
        evaluate = ("--evaluate-from", self._config.evaluate_from)
        self._run("replay", str(self._log), "--report", str(folder),
                  *(evaluate if self._config.evaluate_from else ()),
                  *(("--late-vectors", str(self._state)) if live else ()))  # fmt: skip
        result.report = json.loads((folder / "report.json").read_text())
        result.differences = differing_columns(self._state / PREDICTIONS, folder / PREDICTIONS)

    @contextlib.contextmanager
    def _broker(self) -> Iterator[str]:
        if self._config.broker:
            yield self._config.broker
            return
        with LocalBroker() as broker:
            yield broker.address

    @contextlib.contextmanager
    def _worker(self, broker: str) -> Iterator[subprocess.Popen[bytes]]:
        self._status_file.unlink(missing_ok=True)
        worker = self._start(
            "worker", "--broker", broker, "--snapshots", str(self._state), "--predictions",
            "--status", str(self._status_file),
        )  # fmt: skip
        with _stopped(worker):
            yield worker

    def _start(
        self, verb: str, *arguments: str, configured: bool = True
    ) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "stream.cli", verb, *arguments]
        words += self._config.arguments if configured else ()
        with self._words(verb).open("wb") as out:
            return subprocess.Popen(  # noqa: S603  # our own command, no shell
                words, stdout=out, stderr=subprocess.STDOUT, env=_environment()
            )

    def _run(self, verb: str, *arguments: str, configured: bool = True) -> None:
        process = self._start(verb, *arguments, configured=configured)
        with _stopped(process):
            self._exit(process, verb)

    def _exit(self, process: subprocess.Popen[bytes], verb: str) -> None:
        """Wait for the end; raises FaultError with the last lines where the code is not 0."""
        code = process.wait(timeout=600)
        if code:
            lines = self._words(verb).read_text(errors="replace").strip().splitlines()[-5:]
            raise FaultError(f"`millrace {verb}` ended with code {code}: " + " | ".join(lines))

    def _words(self, verb: str) -> Path:
        return self._config.folder / f"{verb}.log"


def differing_columns(one: Path, other: Path) -> list[str]:
    """Columns of two prediction logs that are not equal bit for bit, in order; empty: all equal."""
    tables = [pq.read_table(path) for path in (one, other)]
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    return [name for name in names if len({_digest(table, name) for table in tables}) > 1]


def _digest(table: pa.Table, name: str) -> str:
    if name not in table.column_names:
        return ""
    column = table[name]
    cells = str(column.to_pylist()).encode() if column.type == "string" else column.to_numpy()
    return hashlib.sha256(cells).hexdigest()


def _is_done(status: Mapping[str, Any], ends: Mapping[str, int]) -> bool:
    """Everything was read, and no window is open or sample unlearned."""
    positions, counts = status.get("positions", {}), status.get("pipeline", {})
    read = all(positions.get(tp, 0) >= end for tp, end in ends.items())
    waiting = counts.get("waiting_for_batch", 1) + sum(counts.get("open", {"": 1}).values())
    return read and waiting == 0


@contextlib.contextmanager
def _stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process has ended when the block has: by force where it has not by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """Idle OpenMP threads sleep; glibc keeps memory between steps (fewer page faults)."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ}
