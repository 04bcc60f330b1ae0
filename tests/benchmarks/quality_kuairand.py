"""Quality on the bundled slice: both labels, three seeds, a placebo, what each ingredient gives.

Run: python -m tests.benchmarks.quality_kuairand [--seeds 0 1 2] [--runs WORD …] [--set A.B=C …]
     python -m tests.benchmarks.quality_kuairand --ablation [--seeds 0 1]
     python -m tests.benchmarks.quality_kuairand --cost [--runs WORD …]

Preset `kuairand`, predictions made at the impression, evaluated from 2022-04-30 00:00 UTC+8 on. The
front runs once for each label and log; each row is a learner on the steps recorded there, which
gives the logits of a `millrace replay`. Cold videos had under 10 samples before, cold users under
5. The placebo imports the slice with attributes permuted among the videos: what it loses against
the same seed is what content and attributes give beyond capacity. The ablation leaves out one
ingredient at a time; its interval is a paired bootstrap by user over the mean of the seeds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from learners import metrics as m
from stream.evaluation.paired import paired_bootstrap
from stream.keys import key_of, salt_of, salted
from stream.times import time_ms
from tests.support.bench import (
    BUNDLED,
    kuairand_config,
    kuairand_log,
    markdown,
    markdown_row,
    setting,
)
from tests.support.recorded import Recording, record

FROM = "2022-04-30T00:00:00+08:00"
ENVELOPE = 100
SMALLEST = 64
DAY_MS, OFFSET_MS = 86_400_000, 8 * 3_600_000
GROUP_SAMPLES = 2_000
COLD_VIDEO, COLD_USER = 10, 5
HEADER = (
    "run", "label", "samples", "positives", "log loss", "NE", "AUC", "calibration",
    "calibration by day", "calibration by tab", "AUC tab 1", "AUC cold videos", "AUC cold users",
    "µs a sample",
)  # fmt: skip
COST_STEPS = slice(400, 900)
COST = ("without", "µs a sample learned", "µs a sample predicted")
ABLATION = ("without", "log loss", "difference", "95 %", "AUC", "AUC cold videos", "µs a sample")
VW_CROSSES = [["user", "tab"], ["user", "author"], ["video", "tab"], ["user", "video"]]
CROSSES = (
    "hour_tab", "user_tab", "video_tab", "author_tab", "tag_tab", "user_author", "user_tag",
    "user_video", "duration_tab", "user_duration", "active_tag",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of the table: name, learner, its options, and the log."""

    name: str
    label: str
    learner: str = "id_content"
    options: Mapping[str, Any] = field(default_factory=dict)
    placebo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An ingredient: inputs to drop, options to change, samples a step (0: the preset's)."""

    name: str
    dropped: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 0
    learner: str = "id_content"


PARTS = (
    Part(name="nothing"),
    Part(name="steps of 512 (1,024)", batch_size=1_024),
    Part(name="averaged weights", options={"adam": {"averaged_rows": 0}}),
    Part(name="beta1 .5 (.9)", options={"adam": {"beta1": 0.9}}),
    Part(name="learning rate of ids .04 (.02)", options={"embedding": {"lr": 0.02}}),
    Part(name="open impressions", dropped=("user.open", "video.open", "user_video.open")),
    Part(name="click since the last impression", dropped=("clicked",)),
    Part(name="gap", dropped=("gap",)),
    Part(name="interactions", dropped=("user_interactions", "video_interactions")),
    Part(name="repeats", options={"repeats": False}),
    Part(name="history (and repeats)", dropped=("recent_videos",)),
    Part(name="content vectors", dropped=("content",)),
    Part(name="counters of crosses", dropped=tuple(f"{c}.*" for c in CROSSES)),
    Part(name="user id", dropped=("user",)),
    Part(name="author, music, tags", dropped=("author", "music", "tag")),
    Part(name="cross layers", options={"cross_layers": 0}),
    Part(name="id_content: vw", learner="vw"),
    Part(
        name="id_content: vw, ids and history only",
        learner="vw",
        options={"rows": {"crosses": VW_CROSSES, "dense": False}},
    ),
)


def runs_of(seeds: list[int]) -> list[Run]:
    """All rows."""
    rates = {"counters": ["user", "video", "tab"]}
    runs = [Run(name="smoothed rates", label="click", learner="smoothed_rates", options=rates)]
    for placebo, labels in ((False, ("click", "long_view")), (True, ("click",))):
        for label in labels:
            runs += [
                Run(name=f"{'placebo' if placebo else 'id_content'}, seed {seed}", label=label,
                    options={"seed": seed}, placebo=placebo)
                for seed in seeds
            ]  # fmt: skip
    return runs


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


class Recordings:
    """The steps of each label and log in the preset's step size; the last one is kept."""

    def __init__(self, overrides: tuple[str, ...]) -> None:
        self.overrides = overrides
        config = kuairand_config(*overrides)
        self.batch_size, self.options = config.stream.batch_size, config.ranker.options
        self._last: tuple[tuple[str, bool], Recording] | None = None

    def fine(self, label: str, *, placebo: bool = False) -> Recording:
        """The steps as they were recorded, `SMALLEST` samples each."""
        key = (label, placebo)
        if self._last is None or self._last[0] != key:
            self._last = None
            log = placebo_log() if placebo else kuairand_log(ENVELOPE)
            config = kuairand_config(
                *self.overrides, f"ranker.label={label}", f"stream.batch_size={SMALLEST}"
            )
            self._last = (key, record(config, log))
        return self._last[1]


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


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Columns of the evaluated rows, in order of impression."""

    late_n: NDArray[np.bool_]
    columns: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, recording: Recording) -> Rows:
        """What the rows are, whatever is predicted of them."""
        order = np.lexsort((recording.sample_n, recording.ts_ms_n))
        late_n = np.zeros(len(order), bool)
        late_n[order] = recording.ts_ms_n[order] >= time_ms(FROM)
        columns = {
            "ts_ms": recording.ts_ms_n, "label": recording.label_n(),
            "user": recording.id_n("user"), "tab": recording.id_n("tab"),
        }  # fmt: skip
        for name in ("user", "video"):
            seen = np.empty(len(order), np.int64)
            seen[order] = seen_before(recording.id_n(name)[order])
            columns[f"seen_{name}"] = seen
        return cls(late_n=late_n, columns={k: v[late_n] for k, v in columns.items()})

    def with_logits(self, logit_n: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The columns with what a run predicted; every row has a prediction."""
        assert np.isfinite(logit_n[self.late_n]).all()
        return {**self.columns, "logit": logit_n[self.late_n]}


def row_of(run: Run, rows: dict[str, NDArray[Any]], us: float) -> list[object]:
    """A row of the table."""
    sums = m.LossSums.of(rows["logit"], rows["label"])
    tab_1 = salted(np.array([key_of(1)]), salt_of("tab"))
    return [
        run.name, run.label, len(rows["label"]), int(rows["label"].sum()),
        *(f"{score:.4f}" for score in (sums.log_loss, sums.ne)), auc(rows, rows["ts_ms"] > 0),
        f"{sums.calibration:.4f}", spread(rows, (rows["ts_ms"] + OFFSET_MS) // DAY_MS),
        spread(rows, rows["tab"]), auc(rows, rows["tab"] == tab_1),
        auc(rows, rows["seen_video"] < COLD_VIDEO), auc(rows, rows["seen_user"] < COLD_USER),
        round(us, 1),
    ]  # fmt: skip


def table(recordings: Recordings, seeds: list[int], words: list[str]) -> None:
    """Print the table of runs in Markdown, row by row."""
    print(markdown(HEADER, []), flush=True)
    last, rows, steps = None, None, None
    for run in runs_of(seeds):
        if not any(word in f"{run.name} {run.label}" for word in words):
            continue
        fine = recordings.fine(run.label, placebo=run.placebo)
        if fine is not last or rows is None or steps is None:
            last, rows = fine, Rows.of(fine)
            steps = fine.coarser(recordings.batch_size // SMALLEST)
        options = {**(recordings.options if run.learner == "id_content" else {}), **run.options}
        logit_n, us = steps.run(run.learner, options, from_ms=time_ms(FROM))
        print(markdown_row(row_of(run, rows.with_logits(logit_n), us)), flush=True)


def losses(rows: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Log loss of each row."""
    z = rows["logit"].astype(np.float64)
    loss: NDArray[np.float64] = np.logaddexp(0, z) - z * rows["label"]
    return loss


def ablation(recordings: Recordings, seeds: list[int], words: list[str]) -> None:
    """Print what the click model loses without each ingredient."""
    fine = recordings.fine("click")
    rows, all_n = Rows.of(fine), None
    print(markdown(ABLATION, []), flush=True)
    for part in PARTS:
        if part.name != "nothing" and not any(word in part.name for word in words):
            continue
        steps = fine.coarser((part.batch_size or recordings.batch_size) // SMALLEST)
        steps = steps.without(part.dropped) if part.dropped else steps
        loss, found, us = np.zeros(len(rows.columns["label"])), [], []
        for seed in seeds:
            own = {**recordings.options, "seed": seed} if part.learner == "id_content" else {}
            options = {**own, **part.options}
            logit_n, least = steps.run(part.learner, options, from_ms=time_ms(FROM))
            seen = rows.with_logits(logit_n)
            loss += losses(seen) / len(seeds)
            cold = seen["seen_video"] < COLD_VIDEO
            found.append([float(auc(seen, seen["ts_ms"] > 0)), float(auc(seen, cold))])
            us.append(least)
        all_n = loss if all_n is None else all_n
        d = paired_bootstrap(loss - all_n, np.unique(rows.columns["user"], return_inverse=True)[1])
        interval = "" if part.name == "nothing" else f"{d.low:+.4f} – {d.high:+.4f}"
        figures = [f"{value:.4f}" for value in np.mean(found, 0)]
        print(markdown_row([part.name, f"{loss.mean():.4f}", f"{d.mean:+.4f}", interval,
                            *figures, round(min(us), 1)]), flush=True)  # fmt: skip


def cost(recordings: Recordings, words: list[str]) -> None:
    """Print microseconds a sample of learning and predicting without each ingredient.

    The ingredients take turns, and a step's time is the 5 % quantile of wall times: what it takes
    when nothing else is in the way.
    """
    fine = recordings.fine("click")
    fine = Recording(spec=fine.spec, steps=fine.steps[COST_STEPS])
    print(markdown(COST, []), flush=True)
    chosen = [p for p in PARTS if any(word in p.name for word in words)]
    steps: list[Recording] = []
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in chosen]
    for part in chosen:
        made = fine.coarser((part.batch_size or recordings.batch_size) // SMALLEST)
        steps.append(made.without(part.dropped) if part.dropped else made)
    for _ in range(3):
        for part, made, found in zip(chosen, steps, times, strict=True):
            learn, predict = made.times(part.learner, {**recordings.options, **part.options})
            found[0].extend(learn)
            found[1].extend(predict)
    for part, found in zip(chosen, times, strict=True):
        low = [round(float(np.quantile(values, 0.05)), 1) for values in found]
        print(markdown_row([part.name, *low]), flush=True)


def main() -> None:
    """Print tables in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=[""], help="only rows whose name has a word")
    parser.add_argument("--set", action="append", default=[], help="an override for all runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ablation", action="store_true", help="leave out one ingredient each")
    parser.add_argument("--cost", action="store_true", help="time without one ingredient each")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{setting()}\n")
    recordings = Recordings(tuple(args.set))
    if args.cost:
        cost(recordings, args.runs)
    else:
        (ablation if args.ablation else table)(recordings, args.seeds, args.runs)


if __name__ == "__main__":
    main()
