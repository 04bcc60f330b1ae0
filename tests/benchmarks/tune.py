"""The search for `id_content`'s settings, on a log that ends before the evaluated days.

Run: make tune, or python -m tests.benchmarks.tune [--trials N] [--seeds 0 1]

The log is imported up to 2022-04-30 00:00 UTC+8; what counts is the log loss of the impressions of
the two days before, by weights that have seen only what had settled. A coordinate search from the
defaults: settings in a seeded order, each of its values tried, the best one kept if it gains
GAIN. Every trial is a line of docs/tuning/trials.jsonl; one that stands there is not run again, so
a search that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners import metrics as m
from learners.rankers.id_content import IdContentConfig
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.times import time_ms
from tests.support.bench import BUNDLED, CACHE, ROOT, kuairand_config
from tests.support.recorded import Recording, record

TRIALS = ROOT / "docs" / "tuning" / "trials.jsonl"
CUT, FROM = "2022-04-30T00:00:00+08:00", "2022-04-28T00:00:00+08:00"
SMALLEST = 64
GAIN = 2e-4
SEARCH: Mapping[str, tuple[Any, ...]] = {
    "batch_size": (128, 256, 512, 1_024),
    "adam.lr": (2e-3, 3e-3, 4e-3, 6e-3),
    "adam.beta1": (0.0, 0.5, 0.8, 0.9),
    "adam.averaged_rows": (0, 4_000, 8_000, 16_000),
    "embedding.lr": (0.02, 0.04, 0.06),
    "embedding.init_sigma": (0.02, 0.05, 0.1),
    "cross_layers": (1, 2, 3),
    "cross_rank": (16, 32, 64),
    "hidden": ((32,), (64, 32), (128, 64)),
    "content_projection": (8, 16, 32),
    "repeats": (False, True),
}
"""Settings of the ranker, and samples a step, with the values that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a setting reached, means over the seeds."""

    log_loss: float
    auc: float
    calibration: float
    us_per_sample: float


@dataclass(kw_only=True)
class Trials:
    """The file of trials."""

    path: Path
    seeds: list[int]
    known: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what was tried before with the same seeds."""
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                if row["seeds"] == self.seeds:
                    values = {name: row[name] for name in Score.__slots__}
                    self.known[_key(row["settings"], row["dropped"])] = Score(**values)

    def add(self, settings: Mapping[str, Any], dropped: tuple[str, ...], score: Score) -> None:
        """Append a line."""
        self.known[_key(settings, dropped)] = score
        row = {
            "date": datetime.now(UTC).date().isoformat(), "settings": settings, "dropped": dropped,
            "seeds": self.seeds, "log_loss": round(score.log_loss, 6), "auc": round(score.auc, 5),
            "calibration": round(score.calibration, 4),
            "us_per_sample": round(score.us_per_sample, 1),
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _key(settings: Mapping[str, Any], dropped: Any) -> str:
    return json.dumps([settings, sorted(dropped)], sort_keys=True)


class Search:
    """Trials on one recording."""

    def __init__(self, recording: Recording, trials: Trials, budget: int) -> None:
        """`budget`: trials to run at most."""
        self.recording, self.trials, self.budget = recording, trials, budget
        self.from_ms = time_ms(FROM)

    def score(self, settings: Mapping[str, Any], dropped: tuple[str, ...] = ()) -> Score | None:
        """What a setting reaches; None when it is not known and the budget is spent."""
        key = _key(settings, dropped)
        if key not in self.trials.known:
            if self.budget == 0:
                return None
            self.budget -= 1
            score = self._run(settings, dropped)
            self.trials.add(settings, dropped, score)
            print(f"{score.log_loss:.5f} {score.auc:.4f} {score.calibration:.3f} "
                  f"{score.us_per_sample:5.1f} us {changes(settings)} {' '.join(dropped)}",
                  flush=True)  # fmt: skip
        return self.trials.known[key]

    def _run(self, settings: Mapping[str, Any], dropped: tuple[str, ...]) -> Score:
        recording = self.recording.coarser(settings["batch_size"] // SMALLEST)
        recording = recording.without(dropped) if dropped else recording
        own = recording.ts_ms_n >= self.from_ms
        label_n, found = recording.label_n()[own], []
        for seed in self.trials.seeds:
            options = nested({k: v for k, v in settings.items() if k != "batch_size"})
            logit_n, us = recording.run("id_content", options | {"seed": seed},
                                        from_ms=self.from_ms)  # fmt: skip
            sums = m.LossSums.of(logit_n[own], label_n)
            found.append((sums.log_loss, m.auc_exact(logit_n[own], label_n), sums.calibration, us))
        loss, auc, calibration, _ = np.mean(np.array(found, float), 0).tolist()
        least = min(us for *_, us in found)
        return Score(log_loss=loss, auc=auc, calibration=calibration, us_per_sample=least)

    def run(self, start: Mapping[str, Any], rng: random.Random, rounds: int) -> dict[str, Any]:
        """The best setting found."""
        best = dict(start)
        reached = self.score(best)
        for _ in range(rounds):
            before = dict(best)
            for name in rng.sample(sorted(SEARCH), len(SEARCH)):
                for value in SEARCH[name]:
                    score = self.score(best | {name: value})
                    if score and reached and score.log_loss < reached.log_loss - GAIN:
                        best, reached = best | {name: value}, score
            if best == before:
                break
        return best

    def ingredients(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Each input of the preset left out."""
        spec = self.recording.spec
        for name in (*(f.name for f in spec.ids if f.name != "video"), *(b.name for b in spec.bags),
                     "content", *(d.name for d in spec.dense if d.group == "value"),
                     *sorted({f"{d.counter}.*" for d in spec.dense
                              if d.counter and "." not in d.counter})):  # fmt: skip
            if self.score(settings, (name,)) is not None:
                yield name


def changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the start."""
    before = start()
    return {name: value for name, value in settings.items() if value != before[name]}


def start() -> dict[str, Any]:
    """The preset's step size and the ranker's defaults, of all that is searched."""
    out: dict[str, Any] = {"batch_size": kuairand_config().stream.batch_size}
    for name in SEARCH:
        if name not in out:
            value: Any = IdContentConfig()
            for part in name.split("."):
                value = getattr(value, part)
            out[name] = value
    return out


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": c}` as `{"a": {"b": c}}`."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        at = out
        *path, last = name.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = list(value) if isinstance(value, tuple) else value
    return out


def cut_log() -> Path:
    """The bundled slice without the evaluated days, as a record log."""
    path = CACHE / "kuairand-cut-100.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        import_kuairand(BUNDLED, path, KuaiRandImportConfig(envelope=100, to_ms=time_ms(CUT)))
    return path


def main() -> None:
    """Search, then leave out one input at a time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=60, help="run at most so many")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--file", type=Path, default=TRIALS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = kuairand_config(f"stream.batch_size={SMALLEST}")
    search = Search(
        record(config, cut_log()), Trials(path=args.file, seeds=args.seeds), args.trials
    )
    best = search.run(start(), random.Random(0), args.rounds)  # an order, no secret
    print(f"best: {best}")
    left_out = list(search.ingredients(best))
    print(f"left out one by one: {', '.join(left_out) or 'nothing, no trials left'}")


if __name__ == "__main__":
    main()
