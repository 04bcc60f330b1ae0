"""What each method is worth on the bundled slice, beside the ranker without it. Asserts nothing.

Run: make methods, or python -m tests.benchmarks.quality_methods [--study NAME] [--seeds 0 1 2]
     [--labels click long_view] [--permutations 1 2 3] [--arms NAME …] [--early] [--table]

Preset `kuairand` with behavioural vectors and a codebook of them, made of what came before the
first impression (`--attributes`: with the preset's own vectors). Steps are recorded once; each arm
is run on them as its preset says, predictions made at the impression. Differences of log loss to
the arm's control on days from 04-30 on, mean of the seeds, 95 % by bootstrap over users; cold:
videos shown fewer than 10 times before, new: users shown fewer than 5 videos. Placebo: vectors and
codes permuted among the videos, one seed a permutation, less the control on the same permuted
ones. `--early`: 04-28 and 04-29, on a log that ends with them, where settings are chosen. Runs are
kept under build/methods and not made again (`--again`: those of `--arms` are); `--table` prints
what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from stream.evaluation.paired import PairedDifference, paired_bootstrap
from tests.benchmarks.quality_methods_runs import Arm, Runs, mean_losses
from tests.support.bench import kuairand_log, markdown, setting

F64 = NDArray[np.float64]
COLD_VIDEO, NEW_USER = 10, 5
NONE = "ranker.options.content_projection=0"
NO_REPEATS = "ranker.options.repeats=false"
ATTRIBUTES = ("author", "music", "tag")
OF_ATTRIBUTES = (
    *ATTRIBUTES, "author.*", "music.*", "tag.*", "author_tab.*", "tag_tab.*", "user_author.*",
    "user_tag.*", "active_tag.*",
)  # fmt: skip
"""Author, music and tags as ids, and the counters of them."""


def _uses(use: str) -> str:
    return f'ranker.options.qarm.uses=["{use}"]'


PRESETS = ("simtier", "make", "qarm", "em3", "flip", "fgcnn", "best")
STUDIES: Mapping[str, Mapping[str, Arm]] = {
    "methods": {
        "base": Arm(),
        **{name: Arm(presets=f"kuairand+{name}", reads=name != "fgcnn") for name in PRESETS},
    },
    "similarity": {
        "base": Arm(control="none"),
        "none": Arm(sets=(NONE,), control="none", reads=False),
        "none + simtier": Arm(
            sets=(NONE, "ranker.options.simtier.on=true"), control="none"
        ),
        "none + simscore": Arm(sets=(NONE, "ranker.options.simscore.on=true"), control="none"),
        "none + both": Arm(presets="kuairand+simtier", sets=(NONE,), control="none"),
        "none, preset similarity": Arm(presets="kuairand+similarity", control="none"),
        "none, preset similarity without linear_content": Arm(
            presets="kuairand+similarity",
            sets=("ranker.options.linear_content.on=false",),
            control="none",
        ),
        "none, no repeats": Arm(sets=(NONE, NO_REPEATS), control="none", reads=False),
        "none, no repeats, + simtier": Arm(
            sets=(NONE, NO_REPEATS, "ranker.options.simtier.on=true"), control="none, no repeats"
        ),
        "none, no repeats, + both": Arm(
            presets="kuairand+simtier", sets=(NONE, NO_REPEATS), control="none, no repeats"
        ),
    },
    "codes": {
        "none": Arm(sets=(NONE,), control="none", reads=False),
        "codes": Arm(presets="kuairand+qarm", sets=(NONE,), control="none"),
        **{
            f"codes, {use} alone": Arm(
                presets="kuairand+qarm", sets=(NONE, _uses(use)), control="none"
            )
            for use in ("item", "sequence", "cross")
        },
        "codes, rows as they start": Arm(
            presets="kuairand+qarm", sets=(NONE, "ranker.options.qarm.trained=false"),
            control="none",
        ),
        "no attributes": Arm(
            sets=(NONE,), dropped=OF_ATTRIBUTES, control="no attributes", reads=False
        ),
        "no attributes, + codes": Arm(
            presets="kuairand+qarm", sets=(NONE,), dropped=OF_ATTRIBUTES, control="no attributes"
        ),
        "no attributes, + codes, item alone": Arm(
            presets="kuairand+qarm", sets=(NONE, _uses("item")), dropped=OF_ATTRIBUTES,
            control="no attributes",
        ),
        **{
            f"no attributes, + ids of {name}": Arm(
                sets=(NONE,), dropped=tuple(d for d in OF_ATTRIBUTES if d != name),
                control="no attributes", reads=False,
            )
            for name in ATTRIBUTES
        },
        "base": Arm(),
        **{
            f"base + codes, {use} alone": Arm(presets="kuairand+qarm", sets=(_uses(use),))
            for use in ("item", "sequence", "cross")
        },
        "base + codes": Arm(presets="kuairand+qarm"),
    },
    "em3": {
        "base": Arm(),
        "em3": Arm(presets="kuairand+em3"),
        "em3, control": Arm(
            presets="kuairand+em3",
            sets=("ranker.options.em3.contrast=0", "ranker.options.em3.train_former=false"),
        ),
        "em3, no contrast": Arm(presets="kuairand+em3", sets=("ranker.options.em3.contrast=0",)),
        "em3, cold rows": Arm(presets="kuairand+em3", sets=("ranker.options.em3.cold_rows=true",)),
    },
}  # fmt: skip
"""`none`: no vector or code is read; `control` of EM3: nothing of it is trained but its maps."""


def make_all(runs: Runs, arms: Mapping[str, Arm], args: argparse.Namespace) -> None:
    """The runs that are lacking; what is recorded once serves all arms."""
    pairs = list(zip(args.permutations, args.seeds * len(args.permutations), strict=False))
    for label in args.labels:
        for permutation, seeds in [(0, args.seeds), *((p, [s]) for p, s in pairs)]:
            for front in dict.fromkeys(arm.front for arm in arms.values()):
                for name, arm in arms.items():
                    if arm.front != front or (permutation and not _permuted(arms, arm)):
                        continue
                    for seed in seeds:
                        if args.again or runs.known(arm, label, permutation, seed) is None:
                            runs.make(name, arm, label, permutation, seed)


def _permuted(arms: Mapping[str, Arm], arm: Arm) -> bool:
    """Whether a permutation changes an arm, or one that is compared with it."""
    compared = any(a.reads and arms[a.control] == arm for a in arms.values())
    return arm.reads or compared


def table(runs: Runs, arms: Mapping[str, Arm], label: str, args: argparse.Namespace) -> str:
    """The arms of which all seeds are there."""
    rows = runs.rows(label)
    slices = [rows.video_seen_n < COLD_VIDEO, rows.user_seen_n < NEW_USER]
    out = []
    for name, arm in arms.items():
        loss = mean_losses(runs, arm, label, (), args.seeds)
        if loss is None:
            continue
        lines = [runs.known(arm, label, 0, seed) for seed in args.seeds]
        us = [line["us"] for line in lines if line is not None]
        commits = " ".join(sorted({line["commit"] for line in lines if line is not None}))
        auc = np.mean(
            [auc_of(runs.logits(arm, label, 0, seed), rows.label_n) for seed in args.seeds]
        )
        own: list[object] = [name, f"{loss.mean():.5f}", f"{auc:.4f}"]
        control = arms[arm.control]
        other = mean_losses(runs, control, label, (), args.seeds)
        if control == arm or other is None:
            own += ["", "", "", ""]
        else:
            own.append(interval(paired_bootstrap(loss - other, rows.user_n)))
            for s in slices:
                own.append(interval(paired_bootstrap((loss - other)[s], rows.user_n[s])))
            own.append(placebo(runs, arm, control, label, args))
        out.append([*own, f"{np.mean(us):.0f}", commits])
    header = (
        "arm", "log loss", "AUC", "less control, 1e-5", "cold videos", "new users", "placebo",
        "µs learned", "commit",
    )  # fmt: skip
    counts = ", ".join(f"{np.count_nonzero(s):,}" for s in slices)
    return f"{label}, {len(rows.label_n):,} rows, cold and new {counts}\n\n" + markdown(header, out)


def placebo(runs: Runs, arm: Arm, control: Arm, label: str, args: argparse.Namespace) -> str:
    """Less the control on the same permuted vectors; the mean, and each of the permutations."""
    permutations = args.permutations
    seeds = (args.seeds * len(permutations))[: len(permutations)]
    if not arm.reads or not permutations:
        return ""
    rows, parts = runs.rows(label), []
    for p, s in zip(permutations, seeds, strict=True):
        pair = [mean_losses(runs, a, label, (p,), (s,)) for a in (arm, control)]
        if pair[0] is None or pair[1] is None:
            return ""
        parts.append(pair[0] - pair[1])
    each = ", ".join(f"{part.mean() * 1e5:+.0f}" for part in parts)
    return f"{interval(paired_bootstrap(np.mean(parts, axis=0), rows.user_n))} ({each})"


def auc_of(logit_n: NDArray[np.float32], label_n: NDArray[np.int64]) -> float:
    """Area under the ROC curve, ties counted half."""
    positives = int(label_n.sum())
    ranks = float(rankdata(logit_n)[label_n > 0].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(label_n) - positives))


def interval(found: PairedDifference) -> str:
    """A difference in 1e-5 and its interval."""
    assert found.low is not None
    assert found.high is not None
    return f"{found.mean * 1e5:+.0f} [{found.low * 1e5:+.0f}, {found.high * 1e5:+.0f}]"


def main(words: Sequence[str] | None = None) -> None:
    """Run what is lacking, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", choices=list(STUDIES), default="methods")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", nargs="+", default=["click", "long_view"])
    parser.add_argument("--permutations", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+")
    for flag in ("attributes", "early", "table", "again"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    study = STUDIES[args.study]
    arms = {name: study[name] for name in args.arms or study}
    for name in list(arms):
        arms.setdefault(study[name].control, study[study[name].control])
    runs = Runs(kuairand_log(100), attributes=args.attributes, early=args.early)
    if not args.table:
        make_all(runs, arms, args)
    print(f"{setting()}; {args}")
    for label in args.labels:
        print(table(runs, arms, label, args))


if __name__ == "__main__":
    main()
