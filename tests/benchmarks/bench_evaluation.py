"""Seconds and peak memory of a report of many predictions, from Parquet to the page."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

DAYS = 10
CHUNK = 500_000


def make(path: Path, rows: int, arms: int, slate: int) -> None:
    """A log in order of learning: requests of `slate` items, half a million users, new items."""
    rng = np.random.default_rng(0)
    writer = None
    for first in range(0, rows, CHUNK):
        n = min(CHUNK, rows - first)
        place = np.arange(first, first + n)
        request = place // slate
        truth = rng.normal(-2.5, 1.2, n).astype(np.float32)
        columns = {
            "request_id": request * 7_919,
            "item_id": rng.zipf(1.3, n) % 200_000,
            "user_id": rng.integers(0, 500_000, n // slate + 2)[request - request[0]],
            "ts_ms": 1_650_000_000_000 + request * slate * DAYS * 86_400_000 // rows,
            "label": (rng.random(n) < expit(truth)).astype(np.int8),
        }
        for a in range(arms):
            noise = rng.normal(0, 0.3 + 0.1 * a, n).astype(np.float32)
            columns["logit" if arms == 1 else f"logit.arm{a}"] = truth + noise
        columns |= {
            "batch": place // 1_024,
            "weights_ms": columns["ts_ms"] - 60_000,
            "history_len": rng.integers(0, 51, n).astype(np.int32),
            "has_vector": rng.random(n) < 0.9,
            "field.tab": rng.integers(0, 12, n),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def measure(path: Path) -> dict[str, float]:
    from stream.evaluation import EvaluationOptions, evaluate, read_rows
    from stream.report.page import write_page

    start = time.perf_counter()
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    value = evaluate(read_rows(path), EvaluationOptions(window_ms=60_000, warm_up_share=0.05))
    evaluated = time.perf_counter()
    write_page(value, path.with_suffix(".html"), title="bench")
    return {
        "rows": value["rows"] + value["warm_up_rows"],
        "seconds": round(time.perf_counter() - start, 1),
        "page_seconds": round(time.perf_counter() - evaluated, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "imported_mib": round(before_mib),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "log_loss": value["arms"][0]["metrics"]["log_loss"],
        "auc": value["arms"][0]["metrics"]["auc"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--arms", type=int, default=1)
    parser.add_argument("--slate", type=int, default=1, help="items per request")
    parser.add_argument("--log", type=Path, help="measure this log, in this process")
    options = parser.parse_args()
    if options.log:
        print(json.dumps(measure(options.log)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        make(path, options.rows, options.arms, options.slate)
        # A process of its own, so that the peak is that of the evaluation alone.
        subprocess.run([sys.executable, __file__, "--log", str(path)], check=True)


if __name__ == "__main__":
    main()
