"""`compare` of four rankers against four replays one after the other: wall time and its ratio.

Run: python -m tests.benchmarks.bench_compare [--arms 4] [--threads 1 2] [--repeats 3]

The bundled slice, preset `kuairand`, arms that differ in the seed only, on all cores that there
are. Whole processes, start-up and report included, as a person would run them; they take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.bench import kuairand_log, markdown, setting

TARGET = 0.7
EVALUATE = ("--evaluate-from", "2022-04-30T00:00")


def timed(verb: str, *words: str) -> float:
    """Wall seconds of a run of the command line."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "stream.cli", verb, *words, *EVALUATE],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - start


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", type=int, default=4)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    log = str(kuairand_log(100))
    seeds = [f"ranker.options.seed={n}" for n in range(args.arms)]
    apart: list[float] = []
    together: dict[int, list[float]] = {n: [] for n in args.threads}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            apart.append(sum(
                timed("replay", log, "--config", "kuairand", "--set", seed,
                      "--report", str(Path(folder) / seed))
                for seed in seeds
            ))  # fmt: skip
        for threads in args.threads:
            with tempfile.TemporaryDirectory() as folder:
                arms = [w for n, seed in enumerate(seeds[1:]) for w in ("--arm", f"arm {n}", seed)]
                together[threads].append(
                    timed("compare", "kuairand", log, "--set", seeds[0], *arms,
                          "--threads", str(threads), "--report", folder)
                )  # fmt: skip
    rows = []
    for threads, seconds in together.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, apart, strict=True))
        met = "yes" if ratio < TARGET else "no"
        rows.append([threads, statistics.median(apart), statistics.median(seconds), ratio, met])
    print(f"{setting()}; {args.arms} arms, {args.repeats} repeats\n")
    header = ["threads", "replays one after the other, s", "compare, s", "ratio", f"< {TARGET}"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
