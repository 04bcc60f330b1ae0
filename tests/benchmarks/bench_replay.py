"""Replay against the same training steps on batches kept in memory: samples/s and their ratio.

Run: python -m tests.benchmarks.bench_replay [--envelopes 100] [--repeats 3]

The bundled slice, preset `kuairand`, one core, processor time from the first impression on. The
batches are those of a replay that predicts at the settling; a fresh learner learns them in the
same order. Both kinds of replay and the bare steps take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from learners.batch import MiniBatch
from learners.learner import StepReport
from stream.composition import compose
from stream.replay.runner import Replay, ReplayConfig
from tests.support.bench import kuairand_config, kuairand_log, markdown, one_core, setting

TARGET = 0.6


class TimedReplay(Replay):
    """A replay that notes the processor time at which its first impression came."""

    started_s = 0.0

    def _chunk(self, log: Any, batches: Any) -> None:
        if not self.started_s and any(b.tp.topic == "impressions" for b in batches):
            # The organic events before it have waited for the impressions' partitions till now.
            pipeline = self._composition.pipeline
            pipeline.sequencer.set_idle(
                [tp for tp in pipeline.sequencer.partitions if tp.topic == "impressions"]
            )
            pipeline.process([], 0)
            self.started_s = time.thread_time()
        super()._chunk(log, batches)


def replay(
    log: Path, predict_at: str, chunk_records: int, keep: list[MiniBatch] | None = None
) -> float:
    """Samples per second of one replay; its batches are added to `keep`."""
    config = kuairand_config(f"stream.predict_at={predict_at}")
    with tempfile.TemporaryDirectory() as folder:
        options = ReplayConfig(logs=(log,), report=Path(folder), chunk_records=chunk_records)
        run = TimedReplay(config, options)
        if keep is not None:
            _tap(run, keep)
        result = run.run()
        seconds = time.thread_time() - run.started_s
        result.composition.close()
    return result.samples_run / seconds


def _tap(run: Replay, keep: list[MiniBatch]) -> None:
    learner = run._composition.pipeline.learner
    learn = learner.learn_many

    def kept(batch: MiniBatch) -> StepReport:
        keep.append(batch)
        return learn(batch)

    learner.learn_many = kept  # type: ignore[method-assign]  # a benchmark's tap


def bare(batches: list[MiniBatch]) -> float:
    """Samples per second of a fresh learner on these batches."""
    learner = compose(kuairand_config(), None).pipeline.learner
    start = time.thread_time()
    for batch in batches:
        learner.learn_many(batch)
    return sum(map(len, batches)) / (time.thread_time() - start)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--envelopes", type=int, nargs="+", default=[100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk-events", type=int, default=8_192)
    args = parser.parse_args()
    one_core()
    rows = []
    for envelope in args.envelopes:
        log = kuairand_log(envelope)
        batches: list[MiniBatch] = []
        chunk = max(args.chunk_events // envelope, 1)
        replay(log, "settle", chunk, batches)
        speeds: dict[str, list[float]] = {"bare": [], "settle": [], "impression": []}
        for _ in range(args.repeats):
            speeds["bare"].append(bare(batches))
            for predict_at in ("settle", "impression"):
                speeds[predict_at].append(replay(log, predict_at, chunk))
        steps = statistics.median(speeds["bare"])
        for predict_at in ("settle", "impression"):
            speed = statistics.median(speeds[predict_at])
            ratios = [a / b for a, b in zip(speeds[predict_at], speeds["bare"], strict=True)]
            ratio = statistics.median(ratios)
            target = ("yes" if ratio >= TARGET else "no") if predict_at == "settle" else "–"
            times = steps, 1e6 / steps, speed, 1e6 / speed
            rows.append([envelope, predict_at, *times, ratio, target])
    print(f"{setting()}; {args.repeats} repeats\n")
    header = [
        "envelope", "predict_at", "bare steps, samples/s", "µs", "replay, samples/s", "µs",
        "ratio", f"≥ {TARGET}",
    ]  # fmt: skip
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
