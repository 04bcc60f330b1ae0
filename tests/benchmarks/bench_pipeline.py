"""Cost of everything in front of the training step, in µs per event and per sample, by stage.

Run: python -m tests.benchmarks.bench_pipeline [--envelopes 1 100 1000] [--repeats 3]

The bundled slice with the preset `kuairand` (17 counters, a history of 50 videos) on one core,
through the pipeline of replay and worker with a learner that does nothing. Measured from the first
impression on; organic events are what comes before it. "click" is what the same log costs more
with its clicks than without. Medians over the repeats, of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import msgspec

from stream.composition import Composition, compose
from tests.support.bench import (
    LogInMemory,
    Stages,
    kuairand_config,
    kuairand_log,
    markdown,
    one_core,
    run_chunks,
    setting,
    without,
)
from tests.support.streams import NoLearning

TARGET_US = 6.0
CHUNK_RECORDS_MIN = 64
STAGES = ("decode", "sequence", "keys", "join", "samples", "assemble", "rest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run: µs per organic event; seconds by stage and samples from the first impression on."""

    organic_us: float
    seconds: dict[str, float]
    events: int
    samples: int

    @property
    def total_s(self) -> float:
        """Seconds from the first impression on."""
        return sum(self.seconds.values())


def composed(stages: Stages, predict_at: str) -> Composition:
    """A pipeline without learning whose parts are timed."""
    config = kuairand_config(f"stream.predict_at={predict_at}")
    composition = compose(config, None, span=stages.span)
    pipeline = composition.pipeline
    pipeline.learner = NoLearning()  # type: ignore[assignment]  # a stand-in
    stages.time(pipeline, "process", "rest")
    stages.time(pipeline, "finish", "rest")
    stages.time(pipeline.sequencer, "push", "sequence")
    stages.time(pipeline._keys, "chunk", "keys")
    stages.time(pipeline.join, "reserve", "join")
    stages.time(pipeline.join, "samples", "samples")
    stages.time(pipeline._assembler, "prediction_batch", "assemble")
    return composition


def measure(log: LogInMemory, *, clicks: bool = True, predict_at: str = "settle") -> Measured:
    """Run the log once."""
    stages = Stages()
    composition = composed(stages, predict_at)
    pipeline = composition.pipeline
    log.begin(composition)
    # No impression has come yet: its partitions would hold everything back.
    silent = [tp for tp in pipeline.sequencer.partitions if tp.topic == "impressions"]
    pipeline.sequencer.set_idle(silent)
    run_chunks(pipeline, log.history)
    organic_s, organic = sum(stages.seconds.values()), pipeline.counts["events"]
    stages.seconds.clear()
    before = pipeline.counts["events"]
    run_chunks(pipeline, log.slice if clicks else without(log.slice, "clicks"))
    pipeline.finish()
    seconds = {name: stages.seconds.get(name, 0.0) for name in STAGES}
    seconds["rest"] += sum(s for name, s in stages.seconds.items() if name not in STAGES)
    return Measured(
        organic_us=1e6 * organic_s / max(organic, 1),
        seconds=seconds,
        events=pipeline.counts["events"] - before,
        samples=pipeline.ledger.samples,
    )


class _Click(msgspec.Struct, gc=False):
    item_id: int
    user_id: int
    ts_ms: int
    kind: str
    request_id: int


def yardstick_us() -> float:
    """µs of a fixed piece of work, which tells how fast the machine is just now."""
    click = _Click(2**30, 2**20, 1_650_000_000_000, "click", 2**60)
    message = msgspec.msgpack.encode([click] * 100)
    decoder = msgspec.msgpack.Decoder(list[_Click])
    times = []
    for _ in range(20):
        start = time.thread_time()
        for _ in range(100):
            decoder.decode(message)
        times.append(time.thread_time() - start)
    return 1e6 * statistics.median(times) / 10_000


def median(runs: list[Measured]) -> Measured:
    """The run of median time."""
    total = statistics.median_low(run.total_s for run in runs)
    return next(run for run in runs if run.total_s == total)


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--envelopes", type=int, nargs="+", default=[1, 100, 1_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk-events", type=int, default=8_192)
    args = parser.parse_args()
    one_core()
    by_kind, by_stage = [], []
    for envelope in args.envelopes:
        log = LogInMemory(
            kuairand_log(envelope), max(args.chunk_events // envelope, CHUNK_RECORDS_MIN)
        )
        measure(log)
        bare = median([measure(log, clicks=False) for _ in range(args.repeats)])
        for predict_at in ("settle", "impression"):
            runs = [measure(log, predict_at=predict_at) for _ in range(args.repeats)]
            run = median(runs)
            us = {name: 1e6 * s / run.samples for name, s in run.seconds.items()}
            total = sum(us.values())
            by_stage.append([envelope, predict_at, *us.values(), total])
            if predict_at == "settle":
                clicks = run.events - bare.events
                by_kind.append(
                    [
                        envelope,
                        1e6 * bare.total_s / bare.events,
                        1e6 * (run.total_s - bare.total_s) / clicks,
                        statistics.median(r.organic_us for r in runs),
                        total,
                        "yes" if total <= TARGET_US else "no",
                    ]
                )
    print(f"{setting()}; chunks of {args.chunk_events} events, {args.repeats} repeats\n")
    print(f"msgspec alone on a click, in envelopes of 100: {yardstick_us():.2f} µs\n")
    header = ["envelope", "impression, to its sample", "click", "organic", "per sample"]
    print(markdown([*header, f"≤ {TARGET_US}"], by_kind), end="\n\n")
    print(markdown(["envelope", "predict_at", *STAGES, "all, µs per sample"], by_stage))


if __name__ == "__main__":
    main()
