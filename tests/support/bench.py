"""What the benchmarks share: the bundled slice as a record log, time by stage, Markdown tables."""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream.composition import Composition, load_config
from stream.config import Config
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.item_intake import ItemIntake
from stream.pipeline import OnlinePipeline
from stream.positions import Position
from stream.record_log import RecordLog
from stream.records import RecordBatch

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "infra" / "demo" / "kuairand"
CACHE = ROOT / "build" / "bench"


def one_core() -> None:
    """Bind this process to the first core that it may use, with one thread in every library."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def kuairand_log(envelope: int, source: Path = BUNDLED, name: str = "kuairand") -> Path:
    """The record log of a slice in envelopes of this size, made once under build/bench."""
    path = CACHE / f"{name}-{envelope}.parquet"
    if not path.exists():
        import_kuairand(source, path, KuaiRandImportConfig(envelope=envelope))
    return path


def kuairand_config(*overrides: str) -> Config:
    """The preset `kuairand` with overrides `a.b=c`."""
    return load_config("kuairand", overrides)


class LogInMemory:
    """The chunks of a log as replay reads them, split at the first impression.

    Items are kept apart. `history` is what comes before the first impression.
    """

    def __init__(self, path: Path, chunk_records: int) -> None:
        log = RecordLog(path)
        self.source_id = log.source_id
        self.partitions = log.topic_partitions
        self.items: list[RecordBatch] = []
        self.history: list[list[RecordBatch]] = []
        self.slice: list[list[RecordBatch]] = []
        for chunk in log.batches(chunk_records):
            self.items += [b for b in chunk if b.tp.topic == "items"]
            mine = [b for b in chunk if b.tp.topic in ("impressions", "clicks")]
            begun = self.slice or any(b.tp.topic == "impressions" for b in mine)
            if mine:
                (self.slice if begun else self.history).append(mine)

    def begin(self, composition: Composition) -> None:
        """Offer the items, assign all partitions; those without records hold nobody back."""
        ItemIntake(composition.pipeline.items, composition.embedder).items(
            self.source_id, self.items
        )
        composition.pipeline.assign(
            [
                Position(source_id=self.source_id, topic=tp.topic, partition=tp.partition)
                for tp in self.partitions
                if tp.topic in composition.pipeline.topics
            ]
        )


def run_chunks(pipeline: OnlinePipeline, chunks: Iterable[list[RecordBatch]]) -> None:
    """Process the chunks and drop what comes out."""
    for chunk in chunks:
        pipeline.process(chunk, 0)


def without(chunks: Sequence[list[RecordBatch]], topic: str) -> list[list[RecordBatch]]:
    """The chunks without one topic's records."""
    return [[b for b in chunk if b.tp.topic != topic] for chunk in chunks]


class Stages:
    """Seconds of this thread on the processor by stage: spans, and methods that are timed on top.

    Stages may be nested; a stage's time is its own without that of the stages within it. Processor
    time, not wall time, so that other processes on the machine do not count as ours.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time what happens within."""
        self._inner.append(0.0)
        start = time.thread_time()
        try:
            yield
        finally:
            taken = time.thread_time() - start
            self.seconds[name] += taken - self._inner.pop()
            if self._inner:
                self._inner[-1] += taken

    def time(self, owner: object, method: str, name: str) -> None:
        """Time all calls of a method of this object as the stage `name`."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits."""
    return "\n".join(map(markdown_row, [header, ["---"] * len(header), *rows]))


def markdown_row(cells: Sequence[object]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def setting() -> str:
    """One line: date, processor, cores, versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    load = os.getloadavg()[0]
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {model}, {os.cpu_count()} cores "
        f"(load {load:.1f}), Python {platform.python_version()}, numpy {np.__version__}, "
        f"torch {torch.__version__}"
    )
