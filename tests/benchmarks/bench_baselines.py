"""Every baseline against `id_content` on the bundled slice, and their speeds in one run.

Run: python -m tests.benchmarks.bench_baselines [--arms WORD …] [--label click] [--set A.B=C …]
     python -m tests.benchmarks.bench_baselines --speed [--samples 30000]

Quality: one pass of `millrace compare` over all arms, preset `kuairand`, predictions at the
impression, scored from 2022-04-30 00:00 UTC+8 on; the difference to `id_content` with its interval
is a bootstrap by user. Speed: samples per second of one core, by processor time, of a whole
`millrace replay`, of Vowpal Wabbit reading its own text file, of River's progressive_val_score and
of a plain torch loop, on the same samples; then of every learner alone, predicting and learning.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from learners import catalog
from learners.baselines.hashed_rows import rows_as_dicts
from learners.baselines.river_logistic import RiverLogistic
from learners.baselines.vw import Vw, labelled, lines
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from stream.composition import compose
from stream.config import Config, RankerConfig
from stream.evaluation import EvaluationOptions, align, evaluate, read_rows
from stream.replay.arms import Arm
from stream.replay.compare import run_passes
from stream.replay.runner import Replay, ReplayConfig
from stream.times import time_ms
from tests.support.bench import (
    LogInMemory,
    kuairand_config,
    kuairand_log,
    markdown,
    markdown_row,
    one_core,
    run_chunks,
    setting,
)

FROM = "2022-04-30T00:00:00+08:00"
OFFSET_MS = 8 * 3_600_000
ENVELOPE = 100
CROSSES = (("user", "tab"), ("user", "author"), ("video", "tab"), ("user", "video"))
IDS_AND_CROSSES = {"crosses": CROSSES, "dense": False}
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "base rate": ("base_rate", {}),
    "smoothed rates": ("smoothed_rates", {"counters": ("user", "video", "tab")}),
    "ftrl": ("ftrl", {}),
    "ftrl, ids and history only": ("ftrl", {"rows": IDS_AND_CROSSES}),
    "vw": ("vw", {}),
    "vw, ids and history only": ("vw", {"rows": IDS_AND_CROSSES}),
    "river logistic": ("river_logistic", {}),
    "river logistic, adwin": ("river_logistic", {"drift": "adwin"}),
    "river fm": ("river_fm", {}),
    "dcn": ("dcn", {}),
}


def arms_of(base: Config) -> list[Arm]:
    """`id_content` as the preset has it, its published copies, and the baselines."""
    own = {"learner": base.ranker.name, "options": base.ranker.options}
    copies = {
        "daily": ("published", {**own, "offset_ms": -OFFSET_MS}),
        "frozen": ("frozen", {**own, "start_ms": time_ms(FROM)}),
    }
    others = [
        Arm(
            name=name,
            config=dataclasses.replace(
                base, ranker=RankerConfig(name=learner, label=base.ranker.label, options=options)
            ),
        )
        for name, (learner, options) in (copies | BASELINES).items()
    ]
    return [Arm(name=base.ranker.name, config=base), *others]


def quality(arms: list[Arm]) -> Iterator[list[object]]:
    """Rows of the table."""
    config, label = arms[0].config, arms[0].config.ranker.label
    with tempfile.TemporaryDirectory() as folder:
        passes = run_passes(
            arms, [kuairand_log(ENVELOPE)], Path(folder), threads=1, progress=lambda *_: None
        )
        rows = align({f"pass {i}": read_rows(one.predictions) for i, one in enumerate(passes)})
    value = evaluate(
        rows,
        EvaluationOptions(
            label=label,
            predict_at=config.stream.predict_at,
            window_ms=config.label[label].window_ms,
            evaluate_from_ms=time_ms(FROM),
            offset_ms=OFFSET_MS,
            reference=arms[0].name,
        ),
    )
    differences = {frozenset((p["a"], p["b"])): p for p in value["pairs"]}
    for arm in value["arms"]:
        scores = [f"{arm['metrics'][k]:.4f}" for k in ("log_loss", "ne", "auc", "calibration")]
        pair = differences.get(frozenset((arm["name"], arms[0].name)))
        yield [arm["name"], value["rows"], *scores, interval(pair, arm["name"])]


def interval(pair: dict[str, Any] | None, name: str) -> str:
    """Log loss of the arm less that of the reference, with its interval."""
    if pair is None or pair["mean"] is None:
        return "–"
    sign = 1 if pair["a"] == name else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    return f"{sign * pair['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


class Recorder:
    """A learner that keeps the batches it is shown, without their item vectors."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict_many(self, batch: MiniBatch) -> Any:
        self.calls.append(("predict_many", dataclasses.replace(batch, content=None)))
        return self.inner.predict_many(batch)

    def learn_many(self, batch: MiniBatch) -> Any:
        self.calls.append(("learn_many", dataclasses.replace(batch, content=None)))
        return self.inner.learn_many(batch)


def recorded(samples: int) -> tuple[FeatureSpec, list[tuple[str, MiniBatch]]]:
    """What a learner is called with until it has learned so many samples of the slice."""
    composition = compose(kuairand_config("ranker.name=base_rate"), None)
    pipeline = composition.pipeline
    pipeline.learner = recorder = Recorder(pipeline.learner)
    log = LogInMemory(kuairand_log(ENVELOPE), 200)
    log.begin(composition)
    for chunk in (*log.history, *log.slice):
        run_chunks(pipeline, [chunk])
        if recorder.counts()["rows_learned"] >= samples:
            break
    composition.close()
    return pipeline.plan.spec, recorder.calls


def timed(run: Callable[[], Any]) -> float:
    """Processor seconds of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def replay_s() -> tuple[int, float]:
    """Samples and processor seconds of a whole replay with the default ranker."""
    with tempfile.TemporaryDirectory() as folder:
        options = ReplayConfig(logs=(kuairand_log(ENVELOPE),), report=Path(folder) / "r")
        replay, results = Replay(kuairand_config(), options), []
        seconds = timed(lambda: results.append(replay.run()))
        results[0].composition.close()
        return results[0].samples_run, seconds


def speeds(samples: int) -> Iterator[list[object]]:
    """Rows of the table; each on the same first samples, but for the replay of the whole slice."""
    spec, calls = recorded(samples)
    batches = [batch for name, batch in calls if name == "learn_many"]
    n, k = sum(map(len, batches)), spec.trained_column
    count, seconds = replay_s()
    yield ["millrace replay, id_content, from log to report", count, count / seconds]

    wabbit = catalog.build("vw", spec, {})
    river = catalog.build("river_logistic", spec, {})
    assert isinstance(wabbit, Vw)
    assert isinstance(river, RiverLogistic)
    text, dicts = [], []
    for batch in batches:
        index_BN, value_BN = wabbit._features(batch)
        labels = batch.labels_BK[:, k].tolist()
        text += [
            labelled(x, y, 1.0) for x, y in zip(lines(index_BN, value_BN), labels, strict=True)
        ]
        dicts += zip(rows_as_dicts(index_BN, value_BN), map(bool, labels), strict=True)
        wabbit.moments.update(batch.dense_BD, torch.ones(len(batch)), torch.tensor(1.0))
    from river import evaluate as river_evaluate
    from river import metrics as river_metrics
    from vowpalwabbit import Workspace

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.vw"
        path.write_text("\n".join(text) + "\n", encoding="utf-8")
        taken = timed(lambda: Workspace(f"{wabbit.arguments()} -d {path}").finish())
    yield ["vw reading its own text file", n, n / taken]
    taken = timed(
        lambda: river_evaluate.progressive_val_score(dicts, river.model, river_metrics.LogLoss())
    )
    yield ["River's progressive_val_score, dicts made before", n, n / taken]
    dcn = catalog.build("dcn", spec, {})
    dcn.learn_many(batches[0])  # torch loads parts of itself in its first step
    taken = timed(lambda: [dcn.learn_many(batch) for batch in batches[1:]])
    n -= len(batches[0])
    yield ["a plain torch loop (dcn), tensors made before", n, n / taken]
    names = {"id_content": ("id_content", {"device": "cpu"}), **BASELINES}
    for name, (learner, options) in names.items():
        first, few = calls[:4], calls[4:] if "fm" not in name else calls[4:8]
        n = sum(len(batch) for call, batch in few if call == "learn_many")
        one = catalog.build(learner, spec, options)
        for call, batch in first:  # kernels are compiled
            getattr(one, call)(batch)
        taken = timed(lambda one=one, few=few: [getattr(one, c)(batch) for c, batch in few])
        yield [f"learner alone: {name}", n, n / taken]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", default=[""], help="only arms whose name has a word")
    parser.add_argument("--label", default="click")
    parser.add_argument("--set", action="append", default=[], help="an override for all arms")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--samples", type=int, default=30_000)
    args = parser.parse_args()
    one_core()
    print(f"{setting()}\n")
    if args.speed:
        print(markdown(("what", "samples", "samples/s"), []), flush=True)
        for row in speeds(args.samples):
            print(markdown_row(row), flush=True)
        return
    first, *others = arms_of(kuairand_config(f"ranker.label={args.label}", *args.set))
    arms = [first, *(arm for arm in others if any(word in arm.name for word in args.arms))]
    header = ("arm", "samples", "log loss", "NE", "AUC", "calibration", "log loss − id_content")
    print(markdown(header, []))
    for row in quality(arms):
        print(markdown_row(row), flush=True)


if __name__ == "__main__":
    main()
