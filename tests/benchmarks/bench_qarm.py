"""Time of a step with the module `qarm`, its parts and its look-ups, as ratios to the base ranker.

Run: python -m tests.benchmarks.bench_qarm [--rows 512] [--steps 40]

Shapes and draws of `bench_training_step`; codes of 3 x 256 centroids, paths of level 2, 10 of 1,024
anchors, codes of each of 50 history entries. All variants see the same batch in turn, so that a
busy neighbour slows them alike. What assembling the columns costs is not in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import torch

from learners import catalog
from learners.batch import MiniBatch
from learners.feature_spec import Bag, FeatureSpec, IdField
from learners.modules.qarm_codes import NAME, CodeBag, QarmConfig, code_bags
from tests.benchmarks.bench_training_step import HISTORY, Draws, spec, timed
from tests.support.batches import keys_of

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"on": False},
    "qarm": {},
    "item": {"uses": ["item"]},
    "qarm, 25 anchors": {"anchors": 25},
    "item without anchors": {"uses": ["item"], "anchors": 0},
    "sequence": {"uses": ["sequence"], "codes": ["rq1", "prefix2"]},
    "cross": {"uses": ["cross"], "codes": ["rq1", "prefix2"]},
}
WARM_STEPS = 20


def coded_spec(config: QarmConfig) -> FeatureSpec:
    """The spec of the training step with the bags that a configuration reads."""
    plain = spec()
    bags = code_bags(config, [("history", HISTORY)]) if config.on else []
    own = [bag for bag in bags if not bag.history]
    return replace(
        plain,
        bag_fields=tuple(IdField(name=bag.field, dim=config.dim, reader=NAME) for bag in own),
        bags=(*plain.bags, *(_bag(bag) for bag in bags)),
    )


def _bag(bag: CodeBag) -> Bag:
    return Bag(name=bag.name, field=bag.field, length=bag.length, is_history=False, reader=NAME,
               sequence=bool(bag.history))  # fmt: skip


def with_codes(batch: MiniBatch, own: FeatureSpec) -> MiniBatch:
    """The batch with the codes of its targets and history entries."""
    bags = list(batch.bags_BL)
    for bag in own.bags[1:]:
        items = batch.bags_BL[0] if bag.sequence else batch.ids_BF[:, 1:2]
        ids = items.numpy().view(np.uint64) >> np.uint64(20)
        code = bag.field.rpartition(".")[2]
        if code == "vq":
            ids = (ids + np.arange(bag.length, dtype=np.uint64) ** 2) % np.uint64(1_024)
        else:
            ids = ids % np.uint64(4_000 if code.startswith("prefix") else 256)
        number = own.field_of(bag.field)
        bags.append(torch.from_numpy(keys_of(number, ids.astype(np.int64))))
    return replace(batch, bags_BL=tuple(bags))


class Coded:
    """The draws with codes; all variants' batches are made outside of what is timed."""

    def __init__(self, draws: Draws, specs: dict[str, FeatureSpec]) -> None:
        self.draws, self.specs, self.rows = draws, specs, draws.rows

    def batch(self) -> Any:
        """A batch for each variant, by name."""
        plain, *rest = self.draws.batch()
        return {name: with_codes(plain, own) for name, own in self.specs.items()}, *rest


def main() -> None:
    """Print µs per sample and ratios to the base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = Draws(options.rows)
    learners: dict[str, Any] = {}
    specs: dict[str, FeatureSpec] = {}
    for name, settings in VARIANTS.items():
        table = {"on": True, **settings}
        specs[name] = coded_spec(msgspec.convert(table, QarmConfig))
        built = catalog.build("id_content", specs[name], {"device": "cpu", "qarm": table})
        built.reports_logits = False  # as where predictions are made at the impression
        learners[name] = built
    for _ in range(WARM_STEPS):
        batch, _, _ = draws.batch()
        for name, built in learners.items():
            built.learn_many(with_codes(batch, specs[name]))

    clock = time.thread_time  # a busy neighbour disturbs it less
    learn = {n: lambda b, _i, _g, n=n: learners[n].learn_many(b[n]) for n in learners}
    predict = {n: lambda b, _i, _g, n=n: learners[n].predict_many(b[n]) for n in learners}
    times = [timed(runs, Coded(draws, specs), options.steps, clock) for runs in (learn, predict)]
    print(f"{options.rows} rows a step, 1 thread, processor time, µs a sample, median:")
    print("| variant | learn | of base | predict | of base |\n|---|---|---|---|---|")
    for name in learners:
        cells = [f"{t[name]:.1f} | {t[name] / t['base']:.2f}" for t in times]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
