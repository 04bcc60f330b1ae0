"""What each method is worth on the bundled slice, beside the ranker without it. Asserts nothing.

Run: make methods, or python -m tests.benchmarks.quality_methods [--seeds 0 1 2] [--label click]
     [--arms NAME …] [--placebo]

Preset `kuairand` with behavioural vectors and a codebook of them, made of what came before the
first impression (`--attributes`: with the preset's own vectors). Steps are recorded once; each arm
is run on them as its preset says, predictions made at the impression. Differences of log loss to
the first arm on days from 04-30 on, mean of the seeds, 95 % by bootstrap over users; cold: videos
shown fewer than 10 times before. `--placebo`: vectors and codes permuted among the videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from stream.cli import run as millrace
from stream.composition import Variation, load_config
from stream.evaluation.paired import PairedDifference, paired_bootstrap
from stream.record_log import RecordLog
from stream.replay.compare import item_keys
from tests.benchmarks.quality_kuairand import seen_before
from tests.support.bench import ROOT, kuairand_log, markdown, setting
from tests.support.recorded import Recording, record

F64 = NDArray[np.float64]
START = "2022-04-24T15:05:41"
"""The first impression, UTC: what came before made the vectors."""
FROM_MS = 1_651_248_000_000
"""2022-04-30, 00:00 at UTC+8."""
COLD = 10
DIM = 64
ARMS = ("base", "simtier", "make", "qarm", "em3", "flip", "fgcnn", "best")
BUILD = ROOT / "build" / "methods"


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


def steps(log: Path, label: str, settings: tuple[str, ...], permuted: int | None) -> Recording:
    """The learn steps, with columns for all methods."""
    config = load_config("kuairand+qarm", (*settings, f"ranker.label={label}"))
    variation = None
    if permuted is not None:
        variation = Variation(arms={}, permuted=item_keys([RecordLog(log)], config), seed=permuted)
    return record(config, log, variation)


class Arms:
    """Runs of arms on recorded steps; losses of the evaluated rows, mean of the seeds."""

    def __init__(self, recording: Recording, seeds: list[int]) -> None:
        self._recording, self._seeds = recording, seeds
        self.late = recording.ts_ms_n >= FROM_MS
        self.label_n = recording.label_n()[self.late].astype(np.float64)
        self.user_n = np.unique(recording.id_n("user")[self.late], return_inverse=True)[1]
        order = np.lexsort((recording.sample_n, recording.ts_ms_n))
        seen = np.empty(len(order), np.int64)
        seen[order] = seen_before(recording.id_n("video")[order])
        self.cold = seen[self.late] < COLD
        self.us: dict[str, float] = {}
        self.auc: dict[str, float] = {}

    def losses(self, name: str, options: Mapping[str, Any]) -> F64:
        """Log loss of each row, mean of the seeds."""
        found, times, aucs = [], [], []
        for seed in self._seeds:
            logits, us = self._recording.run(
                "id_content", {**options, "seed": seed}, from_ms=FROM_MS
            )
            logit_n = logits[self.late].astype(np.float64)
            found.append(np.logaddexp(0, logit_n) - self.label_n * logit_n)
            times.append(us)
            aucs.append(auc_of(logit_n, self.label_n))
        self.us[name], self.auc[name] = float(np.mean(times)), float(np.mean(aucs))
        mean: F64 = np.mean(found, axis=0)
        print(f"{name}: {mean.mean():.5f}", flush=True)
        return mean


def auc_of(logit_n: F64, label_n: F64) -> float:
    """Area under the ROC curve, ties counted half."""
    positives = label_n.sum()
    ranks = rankdata(logit_n)[label_n > 0].sum()
    return float(
        (ranks - positives * (positives + 1) / 2) / (positives * (len(label_n) - positives))
    )


def interval(found: PairedDifference) -> str:
    """A difference in 1e-5 and its interval."""
    assert found.low is not None
    assert found.high is not None
    return f"{found.mean * 1e5:+.0f} [{found.low * 1e5:+.0f}, {found.high * 1e5:+.0f}]"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--label", default="click")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--attributes", action="store_true")
    parser.add_argument("--placebo", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = kuairand_log(100)
    settings = made(log, attributes=args.attributes)
    arms = Arms(steps(log, args.label, settings, 1 if args.placebo else None), args.seeds)
    options = {n: load_config(f"kuairand+{n}", ()).ranker.options for n in args.arms}
    losses = {name: arms.losses(name, options[name]) for name in args.arms}
    base = losses[args.arms[0]]
    rows = []
    for name, loss in losses.items():
        own: list[object] = [name, f"{loss.mean():.5f}", f"{arms.auc[name]:.4f}"]
        if name == args.arms[0]:
            own += ["", ""]
        else:
            cold = paired_bootstrap((loss - base)[arms.cold], arms.user_n[arms.cold])
            own += [interval(paired_bootstrap(loss - base, arms.user_n)), interval(cold)]
        rows.append([*own, f"{arms.us[name] / arms.us[args.arms[0]]:.2f}"])
    print(f"{setting()}; {args}")
    less = f"less {args.arms[0]}, 1e-5"
    print(markdown(("arm", "log loss", "AUC", less, f"{less}, cold videos", "learn step"), rows))


if __name__ == "__main__":
    main()
