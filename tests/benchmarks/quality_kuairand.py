"""Quality on the bundled slice: every learner, both labels, three seeds, and a placebo.

Run: python -m tests.benchmarks.quality_kuairand [--seeds 0 1 2] [--runs WORD …] [--set A.B=C …]

Each row is one `millrace replay` with the preset `kuairand`, predictions made at the impression,
evaluated from 2022-04-30 00:00 UTC+8 on. Cold videos had under 10 samples before, cold users under
5. The placebo imports the slice with attributes permuted among the videos: what it loses against
the same seed is what content and attributes give beyond capacity.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from learners import metrics as m
from stream.importers.kuairand import request_ids
from stream.replay.runner import Replay, ReplayConfig
from stream.times import time_ms
from tests.support.bench import (
    BUNDLED,
    kuairand_config,
    kuairand_log,
    markdown,
    markdown_row,
    setting,
)

FROM = "2022-04-30T00:00:00+08:00"
ENVELOPE = 100
DAY_MS, OFFSET_MS = 86_400_000, 8 * 3_600_000
GROUP_SAMPLES = 2_000
COLD_VIDEO, COLD_USER = 10, 5
RATES = ("ranker.name=smoothed_rates", 'ranker.options.counters=["user", "video", "tab"]')
COLUMNS = ("request_id", "item_id", "user_id", "ts_ms", "label", "logit")
HEADER = (
    "run", "label", "samples", "positives", "log loss", "NE", "AUC", "calibration",
    "calibration by day", "calibration by tab", "AUC tab 1", "AUC cold videos", "AUC cold users",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of the table: name, overrides and log."""

    name: str
    label: str
    overrides: tuple[str, ...]
    placebo: bool = False


def runs_of(seeds: list[int]) -> list[Run]:
    """All rows."""
    runs = [Run(name="smoothed rates", label="click", overrides=RATES)]
    for label in ("click", "long_view"):
        chosen = f"ranker.label={label}"
        runs += [
            Run(name=f"id_content, seed {seed}", label=label,
                overrides=(chosen, f"ranker.options.seed={seed}"))
            for seed in seeds
        ]  # fmt: skip
    return [
        *runs,
        *(
            Run(name=f"placebo, seed {seed}", label="click",
                overrides=(f"ranker.options.seed={seed}",), placebo=True)
            for seed in seeds
        ),
    ]  # fmt: skip


def placebo_log() -> Path:
    """The slice with each video's attributes those of another one."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for file in BUNDLED.glob("*.parquet"):
            shutil.copy(file, source)
        videos = pq.read_table(source / "videos.parquet")
        order = np.random.default_rng(20_220_430).permutation(len(videos))
        shuffled = videos.take(pa.array(order))
        place = videos.schema.get_field_index("video_id")
        pq.write_table(
            shuffled.set_column(place, "video_id", videos["video_id"]), source / "videos.parquet"
        )
        return kuairand_log(ENVELOPE, source, "kuairand-placebo")


def predictions(run: Run, more: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Prediction log of one replay, in order of learning."""
    log = placebo_log() if run.placebo else kuairand_log(ENVELOPE)
    with tempfile.TemporaryDirectory() as folder:
        config = kuairand_config(*run.overrides, *more)
        result = Replay(config, ReplayConfig(logs=(log,), report=Path(folder))).run()
        result.composition.close()
        table = pq.read_table(result.predictions, columns=list(COLUMNS))
        return {name: table[name].to_numpy() for name in COLUMNS}


def tabs_by_request() -> dict[int, int]:
    """The tab of each request; predictions do not carry it."""
    log = pq.read_table(BUNDLED / "impressions.parquet")
    return dict(zip(request_ids(log).tolist(), log["tab"].to_pylist(), strict=True))


def seen_before(ids: NDArray[Any]) -> NDArray[np.int64]:
    """How often each row's id stood in the rows before it."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order][:1] - 1))
    sizes = np.diff(np.append(starts, len(ids)))
    before = np.empty(len(ids), np.int64)
    before[order] = np.arange(len(ids)) - np.repeat(starts, sizes)
    return before


def spread(rows: dict[str, NDArray[Any]], group: NDArray[Any]) -> str:
    """Least and greatest calibration of the groups with over 2,000 samples."""
    values = []
    for one in np.unique(group):
        own = group == one
        if np.count_nonzero(own) > GROUP_SAMPLES:
            score = m.LossSums.of(rows["logit"][own], rows["label"][own]).calibration
            assert not isinstance(score, m.Undefined)
            values.append(float(score))
    return f"{min(values):.3f}–{max(values):.3f}"


def auc(rows: dict[str, NDArray[Any]], own: NDArray[np.bool_]) -> str:
    """AUC of some rows."""
    score = m.auc_exact(rows["logit"][own], rows["label"][own])
    return "–" if isinstance(score, m.Undefined) else f"{score:.4f}"


def row_of(run: Run, rows: dict[str, NDArray[Any]], tabs: dict[int, int]) -> list[object]:
    """A row of the table."""
    order = np.lexsort((rows["request_id"], rows["ts_ms"]))
    rows = {name: column[order] for name, column in rows.items()}
    rows["videos"], rows["users"] = seen_before(rows["item_id"]), seen_before(rows["user_id"])
    late = rows["ts_ms"] >= time_ms(FROM)
    rows = {name: column[late] for name, column in rows.items()}
    sums = m.LossSums.of(rows["logit"], rows["label"])
    tab = np.array([tabs[request] for request in rows["request_id"].tolist()])
    return [
        run.name, run.label, len(tab), int(rows["label"].sum()),
        *(f"{score:.4f}" for score in (sums.log_loss, sums.ne)), auc(rows, late[late]),
        f"{sums.calibration:.4f}", spread(rows, (rows["ts_ms"] + OFFSET_MS) // DAY_MS),
        spread(rows, tab), auc(rows, tab == 1), auc(rows, rows["videos"] < COLD_VIDEO),
        auc(rows, rows["users"] < COLD_USER),
    ]  # fmt: skip


def main() -> None:
    """Print a table in Markdown, row by row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=[""], help="only runs whose name has a word")
    parser.add_argument("--set", action="append", default=[], help="an override for all runs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tabs = tabs_by_request()
    print(f"{setting()}\n")
    print(markdown(HEADER, []), flush=True)
    for run in runs_of(args.seeds):
        if any(word in f"{run.name} {run.label}" for word in args.runs):
            row = row_of(run, predictions(run, tuple(args.set)), tabs)
            print(markdown_row(row), flush=True)


if __name__ == "__main__":
    main()
