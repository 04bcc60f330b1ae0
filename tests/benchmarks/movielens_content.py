"""What text and picture vectors are worth on MovieLens, against permuted ones. Asserts nothing.

Run: make movielens, or python -m tests.benchmarks.movielens_content [--seeds 0 1 2] [--arms NAME …]

One pass of the preset `movielens` in steps of 256, scored from a fifth of the ratings on; vectors
of title, overview and poster, fused and centred by frozen means. Cases: `normal`; `late`, ids from
the 10th rating on, scored on a film's ratings 0 to 9; `withheld`, 500 films that are never learned
from, have no id and no running rate, scored on these alone (`rates known`: with their rates). With
`ids alone` no arm reads genre, year or running rates of films. Logits are kept under
build/movielens/logits, so that a study that was stopped goes on; results go to
build/movielens/results.json. Settings were chosen on the ratings up to the middle of the log:
those after it are given apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream.composition import load_config
from tests.benchmarks import movielens_content_data as data
from tests.benchmarks.movielens_content_scores import Rows, differences, figures
from tests.benchmarks.quality_kuairand import seen_before
from tests.support.bench import markdown, setting
from tests.support.recorded import Recording

FROM_SHARE, TUNED_SHARE = 0.2, 0.5
WITHHELD, WITHHELD_SEED = 500, 20
LATE = 10
PERMUTATIONS = (1, 2, 3)
DIM = 128
SPANS: Mapping[str, tuple[float, float]] = {
    "all": (FROM_SHARE, 1.0), "untouched": (TUNED_SHARE, 1.0), "tuned on": (FROM_SHARE, TUNED_SHARE)
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A ranker: the presets that join `movielens`, more options, and whether it reads vectors."""

    presets: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    content: bool = True

    def options(self) -> Mapping[str, Any]:
        """Those of the ranker."""
        preset = load_config("+".join(("movielens", *self.presets)), ()).ranker.options
        return {**preset, **self.more}


ARMS: Mapping[str, Arm] = {
    "none": Arm(content=False),
    "best": Arm(presets=("best",)),
    "similarity": Arm(presets=("similarity",)),
    "projected": Arm(),
}
"""`none`: no vectors. All others read them; `projected` is the ranker without any module."""
NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is hidden, what is left out of all arms' inputs, and which rows are scored."""

    late: bool = False
    withheld: bool = False
    rates: bool = False
    dropped: tuple[str, ...] = ()


CASES: Mapping[str, Case] = {
    "normal": Case(),
    "late": Case(late=True),
    "withheld": Case(withheld=True),
    "late, ids alone": Case(late=True, dropped=data.METADATA),
    "withheld, ids alone": Case(withheld=True, dropped=data.METADATA),
    "withheld, rates known": Case(withheld=True, rates=True),
}


class Study:
    """Recorded steps of the cases, and the logits of runs on them."""

    def __init__(self, seeds: Sequence[int], vectors: Path) -> None:
        self.seeds = list(seeds)
        self.recording, _ = data.film_steps(vectors)
        self.made_of = data.made_of(vectors)
        self._permuted = {
            0: self.recording, **{p: data.permuted(self.recording, p) for p in PERMUTATIONS}
        }  # fmt: skip
        films = self.recording.id_n(data.FILM)
        order = np.lexsort((self.recording.sample_n, self.recording.ts_ms_n))
        self.rank = np.empty(len(order), np.int64)
        self.rank[order] = np.arange(len(order))
        self.seen = np.empty(len(order), np.int64)
        self.seen[order] = seen_before(films[order])
        rng = np.random.default_rng(WITHHELD_SEED)
        self.withheld = np.sort(rng.choice(np.unique(films), WITHHELD, replace=False))
        self.films = films
        self.rows = Rows.of(
            self.recording.label_n(), self.recording.id_n("user"), self.recording.ts_ms_n
        )
        self._made: dict[tuple[str, int], Recording] = {}

    def steps(self, case: str, permutation: int) -> Recording:
        """The steps of a case, with vectors permuted or (0) as they are."""
        if (case, permutation) not in self._made:
            of, steps = CASES[case], self._permuted[permutation]
            if of.late or of.withheld:
                hiding = data.Hiding(
                    withheld=self.withheld if of.withheld else NOBODY,
                    no_rates=not of.rates,
                    admit_after=LATE if of.late else 0,
                )
                steps = data.hidden(steps, hiding)
            if of.dropped:
                steps = steps.without(of.dropped)
            self._made = {(case, permutation): steps}
        return self._made[case, permutation]

    def own(self, case: str, span: str) -> NDArray[np.bool_]:
        """The rows that a case is scored on."""
        low, high = SPANS[span]
        own = (self.rank >= low * len(self.rank)) & (self.rank < high * len(self.rank))
        if CASES[case].late:
            own &= self.seen < LATE
        if CASES[case].withheld:
            own &= np.isin(self.films, self.withheld)
        return own

    def logits(self, case: str, arm: str, permutation: int) -> list[NDArray[np.float32]]:
        """Logits of all rows, one array a seed."""
        chosen, of, found = ARMS[arm], CASES[case], []
        for seed in self.seeds:
            options = {**chosen.options(), "seed": seed}
            key = [self.made_of, asdict(of), chosen.content, options, permutation]
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            path = data.BUILD / "logits" / f"{digest}.npy"
            if not path.exists():
                steps = self.steps(case, permutation)
                steps = steps if chosen.content else steps.without(("content",))
                logit_n, us = steps.run("id_content", options, from_ms=0)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, logit_n)
                print(f"{case}: {arm}, permutation {permutation}, seed {seed}: {us:.0f} us a row",
                      flush=True)  # fmt: skip
            found.append(np.load(path))
        return found


def result_of(study: Study, case: str, arms: Sequence[str]) -> dict[str, Any]:
    """Scores of a case's arms, and what real vectors give over permuted ones and over none."""
    logits = {"none": study.logits(case, "none", 0)}
    pairs: list[tuple[list[str], list[str]]] = []
    for arm in arms:
        logits[arm] = study.logits(case, arm, 0)
        placebos = [f"{arm}, permuted {p}" for p in PERMUTATIONS]
        for name, permutation in zip(placebos, PERMUTATIONS, strict=True):
            logits[name] = study.logits(case, arm, permutation)
        pairs += [([arm], placebos), ([arm], ["none"]), (placebos, ["none"])]
        pairs += [([placebo], ["none"]) for placebo in placebos]
    out: dict[str, Any] = {}
    for span in SPANS:
        own = study.own(case, span)
        out[span] = {
            "arms": {name: figures(study.rows, own, z) for name, z in logits.items()},
            "differences": differences(study.rows, own, logits, pairs),
        }
    return out


def show(case: str, result: Mapping[str, Any]) -> None:
    """Print a case's tables in Markdown."""
    for span, found in result.items():
        rows = next(iter(found["arms"].values()))["rows"]
        print(f"\n### {case}, ratings {span}: {rows} rows\n")
        cells = [
            [name, *(f"{f[k]:.2f}" for k in ("auc", "gauc_user_day")), f"{f['log_loss']:.4f}",
             f"{f['calibration']:.3f}"]
            for name, f in found["arms"].items()
        ]  # fmt: skip
        print(markdown(("arm", "AUC", "GAUC", "log loss", "calibration"), cells))
        cells = [
            [_group(d["a"]), _group(d["b"]), _interval(d["auc"]), _interval(d["gauc_user_day"])]
            for d in found["differences"]
        ]
        print("\n" + markdown(("arm", "less", "AUC, points", "GAUC, points"), cells), flush=True)


def _group(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0].rpartition(',')[0]}, permuted, mean"


def _interval(of: Mapping[str, Any]) -> str:
    low, high = of["low"], of["high"]
    sure = "no interval" if low is None else f"{low:+.2f} to {high:+.2f}"
    return f"{of['mean']:+.2f} ({sure})"


def main() -> None:
    """Run what is missing, print tables, write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--arms", nargs="+", default=[arm for arm in ARMS if arm != "none"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    args = parser.parse_args()
    if reason := data.absent():
        print(f"skipped: {reason}")
        return
    torch.set_num_threads(1)
    print(setting())
    study = Study(args.seeds, data.fused_vectors(args.dim))
    results = {"setting": setting(), "seeds": args.seeds, "dim": args.dim, "cases": {}}
    for case in args.cases:
        results["cases"][case] = result_of(study, case, args.arms)
        show(case, results["cases"][case])
        (data.BUILD / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
