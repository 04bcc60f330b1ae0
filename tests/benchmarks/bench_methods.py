"""Time of a training step with each method's module, as a ratio to the ranker without it.

Run: python -m tests.benchmarks.bench_methods [--rows 512] [--steps 40] [--only NAME …]

Shapes and draws of `bench_training_step`: 12 id fields, 50 history ids, content of 128, 40 dense
inputs. All variants see the same batch in turn, so that a busy neighbour slows them alike.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from learners import catalog
from tests.benchmarks.bench_training_step import Draws, spec, timed

_FLIP = {"on": True, "fields": [f"field{i}" for i in range(1, 6)], "exposure": "dense3"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("id_content", {}),
    "fgcnn": ("id_content", {"fgcnn": {"on": True}}),
    "fgcnn, shared rows": ("id_content", {"fgcnn": {"on": True, "source": "shared"}}),
    "fgcnn, one level": ("id_content", {"fgcnn": {"on": True, "channels": [4], "kernel": 5}}),
    "fgcnn with IPNN (learner)": ("fgcnn", {}),
    "IPNN (learner)": ("fgcnn", {"generate": False}),
    "make": ("id_content", {"make": {"on": True}}),
    "make, its layers": ("id_content", {"make": {"on": True, "layers": True}}),
    "make, no replays": ("id_content", {"make": {"on": True, "replays": 0}}),
    "em3": ("id_content", {"em3": {"on": True}}),
    "em3, no contrast": ("id_content", {"em3": {"on": True, "contrast": 0.0}}),
    "em3, no history": ("id_content", {"em3": {"on": True, "rank": 0}}),
    "simtier": ("id_content", {"simtier": {"on": True}}),
    "simtier, whole history": ("id_content", {"simtier": {"on": True, "recent": []}}),
    "simscore": ("id_content", {"simscore": {"on": True}}),
    "simtier and simscore": ("id_content", {"simtier": {"on": True}, "simscore": {"on": True}}),
    "flip": ("id_content", {"flip": _FLIP}),
    "flip, head alone": (
        "id_content",
        {"flip": {**_FLIP, "tabular_weight": 0.0, "contrast_weight": 0.0}},
    ),
    "flip, losses alone": ("id_content", {"flip": {**_FLIP, "joins": False}}),
}
VARIANTS["best"] = (
    "id_content",
    {
        "make": {"on": True, "scale": 0.3},
        "simtier": {"on": True, "counts": False},
        "simscore": {"on": True},
        "content_scale": 0.15,
    },
)
WARM_STEPS = 20


def main() -> None:
    """Print µs per sample, ratios to the base, dense parameters, and the size of the state."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = Draws(options.rows)
    names = ["base", *(name for name in options.only if name != "base")]
    learners: dict[str, Any] = {}
    for name in names:
        learner, settings = VARIANTS[name]
        learners[name] = catalog.build(learner, spec(), {"device": "cpu", **settings})
        learners[name].reports_logits = False  # as where predictions are made at the impression
    for _ in range(WARM_STEPS):
        batch, _, _ = draws.batch()
        for built in learners.values():
            built.learn_many(batch)
    clock = time.thread_time  # a busy neighbour disturbs it less
    learn = {n: lambda b, _i, _g, x=x: x.learn_many(b) for n, x in learners.items()}
    predict = {n: lambda b, _i, _g, x=x: x.predict_many(b) for n, x in learners.items()}
    times = [timed(runs, draws, options.steps, clock) for runs in (learn, predict)]
    print(f"{options.rows} rows a step, 1 thread, processor time, µs a sample, median:")
    print("| variant | learn | of base | predict | of base | dense parameters | state, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, built in learners.items():
        cells = [f"{t[name]:.1f} | {t[name] / t['base']:.2f}" for t in times]
        state = sum(array.nbytes for part in built.export_full() for array in part.arrays.values())
        print(f"| {name} | {' | '.join(cells)} | {len(built.adam.w):,} | {state / 1e6:.1f} |")


if __name__ == "__main__":
    main()
