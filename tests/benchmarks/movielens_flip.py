"""What FLIP's stages make of MiniLM's vectors of films, judged by a ranker. Asserts nothing.

Run: python -m tests.benchmarks.movielens_flip [--seeds 0 1 2] [--arms NAME …] [--cases NAME …]

Text vectors alone, without posters: MiniLM of title and overview; MiniLM of FLIP's sentence, which
has genres and year too; the same after pre-training; and after fine-tuning with the labels of the
first fifth of the log, without those of the 500 films that the case `withheld` withholds. Each
centred and cut to 128 principal axes of the catalogue. Ratings after that fifth are scored, by the
arms and cases of `movielens_content`. Permuted: the same vectors, each at another film, one seed.
Vectors and logits are kept under build/movielens/flip; delete it after a change of FLIP.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from embeddings.encoders.minilm import HEADS, VOCABULARY, WEIGHTS
from embeddings.encoders.wordpiece import WordPiece
from embeddings.item_content import ItemContent
from embeddings.pretrain.flip import FlipConfig, FlipNet, pretrain
from embeddings.pretrain.flip_clicks import ClickRows
from embeddings.pretrain.flip_rows import FlipRows, flip_rows
from embeddings.pretrain.flip_tune import TuneConfig, fine_tune
from embeddings.pretrain.head import ProjectionHead
from embeddings.vector_file import VectorFile, content_version, read_vector_file, write_vector_file
from stream.composition import load_config
from stream.pretraining import read_items
from stream.pretraining_flip import click_rows, tuned_facts
from tests.benchmarks import movielens_content as content
from tests.benchmarks import movielens_content_data as data
from tests.benchmarks.movielens_content import FROM_SHARE, NOBODY, WITHHELD, WITHHELD_SEED, Arm
from tests.benchmarks.movielens_content_scores import Rows, differences, figures
from tests.benchmarks.quality_kuairand import seen_before
from tests.support.bench import markdown, setting
from tests.support.recorded import Recording

BUILD = data.BUILD / "flip"
DIM = 128
TOKENS_MAX = 32
LAYERS = 1
"""Half of the command's default, for the time of two slow cores."""
ATTRIBUTES = ("genres", "year")
TUNE = TuneConfig(epochs=2)
SETS = ("minilm", "sentence", "pre-trained", "fine-tuned")
F32 = NDArray[np.float32]
PERMUTATION = 1
MODULE: Mapping[str, Any] = {"on": True, "fields": ["film", "year"], "exposure": "film.count"}
ARMS: Mapping[str, Arm] = {
    **content.ARMS,
    "flip": Arm(more={"flip": dict(MODULE)}),
    "flip, one alpha": Arm(more={"flip": {**MODULE, "exposure": ""}}),
    "flip, head alone": Arm(
        more={"flip": {**MODULE, "tabular_weight": 0.0, "contrast_weight": 0.0}}
    ),
}
"""Those with the module `flip` are beside `projected`, the ranker without any module."""
COLD, WARM = 10, 200
"""Ratings that a film had before: fewer than the first, at least the second."""


class Films:
    """The catalogue as FLIP reads it, and the labelled ratings of the first fifth."""

    def __init__(self) -> None:
        contents = read_items([data.film_log()], "items")
        self.items: dict[int, ItemContent] = {
            key: item for key, item in sorted(contents.items()) if item.title or item.text
        }
        self.pieces = WordPiece(VOCABULARY.read(""))
        self.rows: FlipRows = flip_rows(
            list(self.items.values()), ATTRIBUTES, self.pieces, TOKENS_MAX
        )
        self.keys_N = np.array(list(self.items), np.int64)

    def net(self, seed: int = 1) -> FlipNet:
        """MiniLM as it is, with new heads."""
        weights = safetensors.torch.load(WEIGHTS.read(""))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FlipNet(
                weights, HEADS, self.rows, self.pieces.mask, FlipConfig(seed=seed, layers=LAYERS)
            )

    def pretrained(self) -> FlipNet:
        """After the label-free stage, made once."""
        net, path = self.net(), BUILD / "pretrained.safetensors"
        if path.exists():
            net.load_state_dict(safetensors.torch.load_file(path))
            return net
        print("pre-training:", pretrain(net, self.rows), flush=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(net.state_dict(), path)
        return net

    def clicks(self, withheld: NDArray[np.int64]) -> ClickRows:
        """Ratings of the first fifth, without those of some films."""
        config = load_config("movielens", ())
        whole = click_rows([data.film_log()], config, self.keys_N, from_ms=0, until_ms=1 << 60)
        first = whole.at(np.arange(int(FROM_SHARE * len(whole))))
        away_N = np.isin(self.keys_N, withheld)
        histories = tuple(np.where(away_N[h] & (h >= 0), -1, h) for h in first.histories)
        return replace(first, histories=histories).at(np.flatnonzero(~away_N[first.item_N]))

    def vectors(self, name: str) -> F32:
        """Vectors [N, 384] of one stage."""
        if name == "minilm":
            found, present = data.raw_vectors("minilm").encode_many(list(self.items.values()))
            assert present.all()
            return found
        if name == "sentence":
            return self.net().vectors(self.rows)
        net = self.pretrained()
        if name == "fine-tuned":
            tuned = fine_tune(net, self.rows, self.clicks(withheld_of(self.keys_N)), TUNE)
            print("fine-tuning:", tuned_facts(tuned), flush=True)
        return net.vectors(self.rows)

    def file(self, name: str) -> Path:
        """A file of one stage's vectors, centred and cut; made once."""
        path = BUILD / f"{name}.parquet"
        if not path.exists():
            BUILD.mkdir(parents=True, exist_ok=True)
            whole = torch.from_numpy(self.vectors(name))
            with torch.no_grad():
                cut = ProjectionHead(whole, DIM, 0, 0)(whole).numpy()
            ids = [item.item_id for item in self.items.values()]
            version = content_version("films", ids, cut)
            write_vector_file(path, VectorFile(item_ids=ids, vectors_ND=cut, version=version))
        return path


def withheld_of(rated: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted keys of 500 films."""
    rng = np.random.default_rng(WITHHELD_SEED)
    return np.sort(rng.choice(np.unique(rated), WITHHELD, replace=False))


def with_vectors(recording: Recording, films: Films, vectors_ND: F32) -> Recording:
    """The same steps with other vectors of the same films."""
    keys, rows = data.vector_rows(recording)
    content = recording.steps[0][1].content
    assert content is not None
    table_VC = content.table_VC.clone()
    own = torch.from_numpy(vectors_ND[np.searchsorted(films.keys_N, keys)])
    table_VC[torch.from_numpy(rows)] = own.to(table_VC.dtype)
    return data.with_table(recording, table_VC)


def logits(
    steps: Recording, options: Mapping[str, Any], seeds: list[int], key: list[object]
) -> list[F32]:
    """Logits of all rows, one array a seed; kept by what they were made of."""
    found = []
    for seed in seeds:
        own = {**options, "seed": seed}
        named = json.dumps([*key, own], sort_keys=True).encode()
        path = BUILD / "logits" / f"{hashlib.sha256(named).hexdigest()[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, steps.run("id_content", own, from_ms=0)[0])
        found.append(np.load(path))
    return found


def study(case: str, arms: list[str], seeds: list[int], *, placebo: bool) -> None:
    """All sets and arms of one case, their differences to MiniLM as it is; prints tables."""
    films = Films()
    names = ["none", *(f"{arm}, {s}" for arm in arms for s in SETS)]
    found: dict[str, list[F32]] = {}
    first, _ = data.film_steps(films.file(SETS[0]))
    keys = first.id_n(data.FILM)
    rows = Rows.of(first.label_n(), first.id_n("user"), first.ts_ms_n)
    order = np.lexsort((first.sample_n, first.ts_ms_n))
    rank, seen = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    rank[order], seen[order] = np.arange(len(order)), seen_before(keys[order])
    own = rank >= FROM_SHARE * len(rank)
    withheld = withheld_of(films.keys_N) if case == "withheld" else NOBODY
    if case == "withheld":
        own &= np.isin(keys, withheld)

    def hide(steps: Recording) -> Recording:
        return data.hidden(steps, data.Hiding(withheld=withheld)) if len(withheld) else steps

    def run(arm: str, steps: Recording, seeds: list[int], *key: str) -> list[F32]:
        return logits(steps, ARMS[arm].options(), seeds, [case, *key])

    found["none"] = run("none", hide(first.without(("content",))), seeds)
    for name in SETS:
        file = read_vector_file(films.file(name))
        plain = with_vectors(first, films, file.vectors_ND)
        permuted = hide(data.permuted(plain, PERMUTATION))
        plain = hide(plain)
        for arm in arms:
            found[f"{arm}, {name}"] = run(arm, plain, seeds, file.version)
            if placebo:
                label = f"{arm}, {name}, permuted"
                found[label] = run(arm, permuted, seeds[:1], file.version, "permuted")
    _show(case, rows, own, found, names, arms)
    for arm in arms if "projected" in arms else ():
        if "flip" in ARMS[arm].more:
            for name, part in (("cold", own & (seen < COLD)), ("warm", own & (seen >= WARM))):
                pairs = [([f"{arm}, {s}"], [f"projected, {s}"]) for s in SETS]
                for d in differences(rows, part, found, pairs) if part.any() else ():
                    print(f"{d['a'][0]}, {name}, {d['rows']} rows, less {d['b'][0]}: AUC "
                          f"{_interval(d['auc'])}", flush=True)  # fmt: skip


def _show(
    case: str, rows: Rows, own: NDArray[np.bool_], found: dict[str, list[F32]], names: list[str],
    arms: list[str],
) -> None:  # fmt: skip
    print(f"\n### {case}: {int(own.sum())} rows\n")
    cells = []
    for name in (*names, *(n for n in found if n.endswith("permuted"))):
        f = figures(rows, own, found[name])
        cells.append([name, *(f"{f[k]:.2f}" for k in ("auc", "gauc_user_day")),
                      f"{f['log_loss']:.4f}", f"{f['calibration']:.3f}"])  # fmt: skip
    print(markdown(("arm", "AUC", "GAUC", "log loss", "calibration"), cells))
    pairs = [([f"{a}, {s}"], ["none"]) for a in arms for s in SETS]
    pairs += [([f"{a}, {s}"], [f"{a}, {SETS[0]}"]) for a in arms for s in SETS[1:]]
    pairs += [([f"{a}, {s}"], [f"{a}, {SETS[2]}"]) for a in arms for s in SETS[3:]]
    pairs += [([n.removesuffix(", permuted")], [n]) for n in found if n.endswith("permuted")]
    cells = [
        [d["a"][0], d["b"][0], _interval(d["auc"]), _interval(d["gauc_user_day"])]
        for d in differences(rows, own, found, pairs)
    ]
    print("\n" + markdown(("arm", "less", "AUC, points", "GAUC, points"), cells), flush=True)


def _interval(of: Mapping[str, Any]) -> str:
    return f"{of['mean']:+.2f} ({of['low']:+.2f} to {of['high']:+.2f})"


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["similarity", "projected"])
    parser.add_argument("--cases", nargs="+", default=["normal", "withheld"])
    parser.add_argument("--without-placebo", action="store_true")
    args = parser.parse_args()
    if reason := data.absent():
        print(f"skipped: {reason}")
        return
    torch.set_num_threads(1)
    print(setting())
    for case in args.cases:
        study(case, args.arms, args.seeds, placebo=not args.without_placebo)


if __name__ == "__main__":
    main()
