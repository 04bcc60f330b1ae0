"""Runs of arms on steps of the bundled slice that are recorded once; each run is kept in a file.

A run is an arm (presets, overrides, inputs that are left out), a label, a permutation of vectors
and codes, a seed and a span of days. Its logits stand under build/methods/logits and a line of
build/methods/runs.jsonl says what it gave, so that a study that was stopped goes on. A run's name
comes from the whole configuration, defaults too, and from the vectors and codes; not from the
code: `--again` makes runs anew. Compares nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners import catalog
from stream.cli import run as millrace
from stream.composition import Variation, load_config
from stream.record_log import RecordLog
from stream.replay.compare import item_keys
from stream.times import time_ms
from tests.benchmarks.quality_kuairand import seen_before
from tests.support.bench import ROOT
from tests.support.recorded import Recording, record

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
START = "2022-04-24T15:05:41"
"""The first impression, UTC: what came before made the vectors."""
TUNED_FROM, FROM = time_ms("2022-04-28T00:00:00+08:00"), time_ms("2022-04-30T00:00:00+08:00")
DIM = 64
BUILD = ROOT / "build" / "methods"
FRONT = "kuairand+qarm"
"""Columns for all methods."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A ranker: presets, overrides, inputs it lacks; `control`: the arm that it is compared with.

    `reads`: whether it reads vectors or codes at all, so that a permutation changes it. `front`:
    presets that the steps are recorded with.
    """

    presets: str = "kuairand"
    sets: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    control: str = "base"
    reads: bool = True
    front: str = FRONT

    def options(self) -> Mapping[str, Any]:
        """Those of the ranker."""
        return load_config(self.presets, self.sets).ranker.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The impressions, in order of `sample_n`; how often video and user were shown before."""

    sample_n: I64
    ts_ms_n: I64
    user_n: I64
    video_seen_n: I64
    user_seen_n: I64
    label_n: I64

    @classmethod
    def of(cls, recording: Recording) -> Rows:
        """Of all that was learned."""
        order = np.argsort(recording.sample_n, kind="stable")
        sample_n, ts_ms_n = recording.sample_n[order], recording.ts_ms_n[order]
        keys = [recording.id_n(name)[order] for name in ("video", "user")]
        shown = np.lexsort((sample_n, ts_ms_n))
        seen = [np.empty(len(order), np.int64) for _ in keys]
        for count_n, key_n in zip(seen, keys, strict=True):
            count_n[shown] = seen_before(key_n[shown])
        return cls(
            sample_n=sample_n,
            ts_ms_n=ts_ms_n,
            user_n=np.unique(keys[1], return_inverse=True)[1],
            video_seen_n=seen[0],
            user_seen_n=seen[1],
            label_n=recording.label_n()[order].astype(np.int64),
        )


def made(log: Path, *, attributes: bool) -> tuple[str, ...]:
    """Settings of the vectors and of a codebook of them, which are made once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    vectors, book = BUILD / f"behaviour-{DIM}.parquet", BUILD / f"codes-{attributes}.safetensors"
    settings: tuple[str, ...] = ()
    if not attributes:
        words = ("--until", START, "--dim", str(DIM), "--out", str(vectors))
        if not vectors.exists() and millrace(["pretrain", "behaviour", str(log), *words]):
            raise SystemExit("the vectors were not made")
        settings = (f"items.vectors_file={vectors}", f"items.dim={DIM}")
    if not book.exists():
        given = [word for setting in settings for word in ("--set", setting)]
        sizes = ("--levels", "3", "--size", "256", "--anchors", "1024", "--until", START)
        fit = ["codes", "fit", str(log), "--config", "kuairand", "--out", str(book), *sizes]
        if millrace([*fit, *given]):
            raise SystemExit("the codebook was not made")
    return *settings, f"items.codebook={book}", "items.cache_rows=20000"


class Runs:
    """Logits by arm; a recording is made when a run needs it, and the last one is kept."""

    def __init__(self, log: Path, *, attributes: bool, early: bool) -> None:
        """`early`: the two days before the evaluated ones, on a log that ends with them."""
        self.log, self.early = log, early
        self.settings = made(log, attributes=attributes)
        self.from_ms, self.until_ms = (TUNED_FROM, FROM) if early else (FROM, 2**62)
        files = [Path(s.partition("=")[2]) for s in self.settings]
        self._made_of = [_digest(f.read_bytes()) for f in (log, *files) if f.is_file()]
        self._at: tuple[str, str, int] | None = None
        self._recording: Recording | None = None
        self._rows: dict[str, Rows] = {}
        self.lines: dict[str, Mapping[str, Any]] = {}
        if (BUILD / "runs.jsonl").exists():
            for line in (BUILD / "runs.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.lines[row["key"]] = row

    def key(self, arm: Arm, label: str, permutation: int, seed: int) -> str:
        """Of all that decides a run but the code."""
        config = catalog.config_of("id_content", {**arm.options(), "seed": seed})
        # A method that is off is not there: its defaults may change.
        parts = {f.name: getattr(config, f.name) for f in fields(config)}
        used = {name: repr(part) for name, part in parts.items() if getattr(part, "on", True)}
        given = [label, permutation, self.early, arm.front, sorted(arm.dropped), used]
        return _digest(json.dumps([*given, self._made_of]).encode())

    def known(self, arm: Arm, label: str, permutation: int, seed: int) -> Mapping[str, Any] | None:
        """The line of a run that was made."""
        key = self.key(arm, label, permutation, seed)
        return self.lines.get(key) if (BUILD / "logits" / f"{key}.npy").exists() else None

    def logits(self, arm: Arm, label: str, permutation: int, seed: int) -> F32:
        """Of the rows of the span, in order of sample; of a run that was made."""
        logit_n: F32 = np.load(BUILD / "logits" / f"{self.key(arm, label, permutation, seed)}.npy")
        return logit_n

    def rows(self, label: str) -> Rows:
        """The rows of the span."""
        if label not in self._rows:
            path = BUILD / f"rows-{label}-{self.early}.npz"
            if not path.exists():
                self._steps(FRONT, label, 0)
            with np.load(path) as kept:
                self._rows[label] = Rows(**{name: kept[name] for name in Rows.__slots__})
        return self._rows[label]

    def make(self, name: str, arm: Arm, label: str, permutation: int, seed: int) -> None:
        """A run; keeps its logits and its line."""
        steps, key = self._steps(arm.front, label, permutation), self.key(
            arm, label, permutation, seed
        )  # fmt: skip
        steps = steps.without(arm.dropped) if arm.dropped else steps
        options = {**arm.options(), "seed": seed}
        logit_n, us = steps.run("id_content", options, from_ms=self.from_ms)
        order = np.argsort(steps.sample_n, kind="stable")
        rows = self.rows(label)
        own = order[self._own(steps.ts_ms_n[order])]
        assert np.array_equal(steps.sample_n[own], rows.sample_n), "another front, another log"
        logit_n = logit_n[own]
        assert np.isfinite(logit_n).all(), name
        (BUILD / "logits").mkdir(exist_ok=True)
        np.save(BUILD / "logits" / f"{key}.npy", logit_n)
        loss = float(np.mean(loss_of(logit_n, rows.label_n)))
        line = {
            "key": key, "arm": name, "label": label, "permutation": permutation, "seed": seed,
            "early": self.early, "log_loss": loss, "us": us, "commit": _commit(),
        }  # fmt: skip
        self.lines[key] = line
        with (BUILD / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{label} p{permutation} s{seed} {name}: {loss:.5f} {us:.0f} us", flush=True)

    def _own(self, ts_ms_n: I64) -> NDArray[np.bool_]:
        return (ts_ms_n >= self.from_ms) & (ts_ms_n < self.until_ms)

    def _steps(self, front: str, label: str, permutation: int) -> Recording:
        if self._recording is None or self._at != (front, label, permutation):
            self._recording = None
            config = load_config(front, (*self.settings, f"ranker.label={label}"))
            variation = None
            if permutation:
                keys = item_keys([RecordLog(self.log)], config)
                variation = Variation(arms={}, permuted=keys, seed=permutation)
            self._recording = self._cut(record(config, self.log, variation))
            self._at = front, label, permutation
            self._keep_rows(label, self._recording)
        return self._recording

    def _cut(self, recording: Recording) -> Recording:
        """Without the steps that only later rows see."""
        if not self.early:
            return recording
        steps = recording.steps
        last = max(i for i, (_, b) in enumerate(steps) if int(b.ts_ms_B.min()) < self.until_ms)
        return Recording(spec=recording.spec, steps=steps[: last + 1])

    def _keep_rows(self, label: str, recording: Recording) -> None:
        rows = Rows.of(recording)
        own = self._own(rows.ts_ms_n)
        kept = {name: getattr(rows, name)[own] for name in Rows.__slots__}
        np.savez(BUILD / f"rows-{label}-{self.early}.npz", **kept)


def mean_losses(
    runs: Runs, arm: Arm, label: str, permutations: Sequence[int], seeds: Sequence[int]
) -> NDArray[np.float64] | None:
    """Log loss of each row, mean of the runs; None where one was not made.

    Permutations have a seed each, in their order; without one each seed is a run.
    """
    pairs = list(zip(permutations, seeds, strict=True)) if permutations else [(0, s) for s in seeds]
    if any(runs.known(arm, label, p, s) is None for p, s in pairs):
        return None
    label_n = runs.rows(label).label_n
    each = [loss_of(runs.logits(arm, label, p, s), label_n) for p, s in pairs]
    mean_n: NDArray[np.float64] = np.mean(each, axis=0)
    return mean_n


def loss_of(logit_n: F32, label_n: I64) -> NDArray[np.float64]:
    """Log loss of each row."""
    wide_n = logit_n.astype(np.float64)
    loss_n: NDArray[np.float64] = np.logaddexp(0, wide_n) - label_n * wide_n
    return loss_n


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()
