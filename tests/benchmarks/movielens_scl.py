"""What SCL makes of the fused vectors of films, judged by a ranker. Asserts nothing.

Run: python -m tests.benchmarks.movielens_scl [--seeds 0 1 2] [--sets NAME …] [--cases NAME …]

Vectors: text and picture, fused, and cut to 128 principal axes (`fused`); the same, not cut, by a
projection to 64 that was trained on pairs of liked films of the first fifth of the log, without
the 500 films that the case `withheld` withholds (`aligned`); and by one that reads 128 principal
axes alone and ends after 8 epochs instead of 20 (`aligned, 128 axes`). Ratings after that fifth are
scored, by the arms and cases of `movielens_content`. Permuted: the same vectors, each at another
film.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings.pretrain.pairs import PairConfig
from embeddings.pretrain.trainer import ContrastConfig, ContrastTrainer
from embeddings.vector_file import VectorFile, content_version, read_vector_file, write_vector_file
from stream.composition import load_config
from stream.interactions import read_interactions
from stream.keys import key_of
from stream.pretraining import EncodedItems, rows_of, training_pairs
from tests.benchmarks import movielens_content_data as data
from tests.benchmarks.movielens_content import (
    CASES,
    FROM_SHARE,
    PERMUTATIONS,
    SPANS,
    Study,
    show,
)
from tests.benchmarks.movielens_content_scores import differences, figures
from tests.support.bench import setting

DIM, ALIGNED_DIM = 128, 64
SETS: Mapping[str, ContrastConfig | None] = {
    "fused": None,
    "aligned": ContrastConfig(objective="batch", dim=ALIGNED_DIM, epochs=20),
    "aligned, 128 axes": ContrastConfig(objective="batch", dim=ALIGNED_DIM, epochs=8, axes=128),
}


def aligned_vectors(name: str, config: ContrastConfig, plain: Study) -> Path:
    """A file of projected vectors of all films that have one; made once."""
    path = data.BUILD / "scl" / f"{name.replace(', ', '-').replace(' ', '-')}.parquet"
    if path.exists():
        return path
    raw = read_vector_file(data.fused_vectors(0))
    keys = np.array([key_of(film) for film in raw.item_ids])
    order = np.argsort(keys)
    items = EncodedItems(items_N=keys[order], vectors_ND=raw.vectors_ND[order])
    config_of = load_config("movielens", ())
    liked = read_interactions(
        [data.film_log()], topic=config_of.topics.clicks, kinds=("click",)
    ).interactions
    times = np.sort(plain.recording.ts_ms_n)
    early = liked.ts_ms_n < times[int(FROM_SHARE * len(times))]
    past = liked.where(early & ~np.isin(liked.item_n, plain.withheld))
    rows = rows_of(training_pairs(past, "nearest", PairConfig()), items, shown=None, taken=past)
    trainer = ContrastTrainer(items.vectors_ND, rows, config)
    facts = [trainer.run_epoch() for _ in range(config.epochs)][-1]
    print(f"{name}: {len(past)} likes, {len(rows.left_P)} pairs, contrast {facts.contrast:.3f} of "
          f"{facts.ln_keys:.3f}", flush=True)  # fmt: skip
    vectors_ND = trainer.vectors()
    ids = [raw.item_ids[n] for n in order.tolist()]
    version = content_version("films", ids, vectors_ND)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_vector_file(path, VectorFile(item_ids=ids, vectors_ND=vectors_ND, version=version))
    return path


def studies(seeds: Sequence[int], names: Sequence[str]) -> dict[str, Study]:
    """A study for each set of vectors."""
    plain = Study(seeds, data.fused_vectors(DIM))
    found = {"fused": plain}
    for name in names:
        if (config := SETS[name]) is not None:
            found[name] = Study(seeds, aligned_vectors(name, config, plain))
    return found


def result_of(of: Mapping[str, Study], case: str) -> dict[str, Any]:
    """Scores of `best` and of the ranker without modules on each set, and their differences."""
    plain = of["fused"]
    logits: dict[str, list[NDArray[np.float32]]] = {"none": plain.logits(case, "none", 0)}
    pairs: list[tuple[list[str], list[str]]] = []
    for name, study in of.items():
        best, projected = f"best, {name}", f"projected, {name}"
        logits[best] = study.logits(case, "best", 0)
        logits[projected] = study.logits(case, "projected", 0)
        pairs += [([best], ["none"]), ([best], ["projected, fused"])]
        if study is not plain:
            placebos = [f"{best}, permuted {p}" for p in PERMUTATIONS]
            for placebo, permutation in zip(placebos, PERMUTATIONS, strict=True):
                logits[placebo] = study.logits(case, "best", permutation)
            pairs += [([best], ["best, fused"]), ([best], [projected]), ([best], placebos)]
            pairs += [(placebos, ["none"])]
    return {
        span: {
            "arms": {name: figures(plain.rows, own, z) for name, z in logits.items()},
            "differences": differences(plain.rows, own, logits, pairs),
        }
        for span in SPANS
        if (own := plain.own(case, span)).any()
    }


def main() -> None:
    """Run what is missing, print tables, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--cases", nargs="+", default=["normal", "withheld, ids alone"],
                        choices=CASES)  # fmt: skip
    args = parser.parse_args()
    if reason := data.absent():
        print(f"skipped: {reason}")
        return
    torch.set_num_threads(1)
    print(setting())
    of = studies(args.seeds, args.sets)
    results = {}
    for case in args.cases:
        results[case] = result_of(of, case)
        show(case, results[case])
        (data.BUILD / "scl" / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
