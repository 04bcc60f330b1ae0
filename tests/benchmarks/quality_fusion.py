"""Do neighbours share genres? Encoders alone and fused, raw and centred. Asserts nothing.

python -m tests.benchmarks.quality_fusion [--items 800] [--shared ../shared]

Score: mean Jaccard index of the genres of an item and its 5 nearest others; the encoders see title,
overview and poster, never the genres. Intervals: bootstrap over items. Placebo: neighbours of
vectors permuted among items.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from embeddings.encoders import catalog
from embeddings.encoders.attributes import AttributeEncoderConfig
from embeddings.encoders.protocol import Encoder
from embeddings.fusion import FusedEncoder, FusionConfig, Means, Part, centred, fit_means
from embeddings.item_content import ItemContent

NEIGHBOURS, SHARE_WITHOUT = 5, 0.2
F32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Remembered:
    """An encoder that answers from what it gave once, item by item."""

    def __init__(self, encoder: Encoder, items: list[ItemContent]) -> None:
        self.version, self.dim = encoder.version, encoder.dim
        vectors_BD, present_B = encoder.encode_many(items)
        self._rows = {
            item.item_id: (vectors_BD[row], present_B[row]) for row, item in enumerate(items)
        }

    def encode_many(self, items: list[ItemContent]) -> tuple[F32, Bools]:
        rows = [self._rows[item.item_id] for item in items]
        return np.stack([v for v, _ in rows]), np.array([p for _, p in rows])


def movies(folder: Path, count: int) -> tuple[list[ItemContent], list[frozenset[str]]]:
    """Items with a text and a poster; every fifth has its poster taken away."""
    posters = pq.read_table(folder / "posters.parquet").to_pylist()
    jpeg = {row["ml1m_movie_id"]: row["jpeg"] for row in posters}
    rows = pq.read_table(folder / "items.parquet").to_pylist()
    rows = [row for row in rows if row["ml1m_movie_id"] in jpeg and row["overview"]]
    picked = [rows[i] for i in np.linspace(0, len(rows), count, endpoint=False).astype(int)]
    bare = np.random.default_rng(1).random(len(picked)) < SHARE_WITHOUT
    items = [
        ItemContent(
            item_id=row["ml1m_movie_id"],
            ts_ms=0,
            title=row["title"],
            text=row["overview"],
            image=None if bare[i] else jpeg[row["ml1m_movie_id"]],
        )
        for i, row in enumerate(picked)
    ]
    return items, [frozenset(row["genres"]) for row in picked]


def neighbours(vectors_BD: F32, present_B: Bools) -> NDArray[np.int64]:
    cosines = vectors_BD @ vectors_BD.T
    cosines[:, ~present_B] = -9
    np.fill_diagonal(cosines, -9)
    return np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]


def shared_genres(near: NDArray[np.int64], genres: list[frozenset[str]]) -> NDArray[np.float64]:
    return np.array(
        [
            np.mean([len(mine & genres[j]) / len(mine | genres[j]) for j in row])
            for mine, row in zip(genres, near.tolist(), strict=True)
        ]
    )


def show(what: str, part: Part, genres: list[frozenset[str]], bare_B: Bools) -> None:
    rng = np.random.default_rng(0)
    vectors_BD, present_B = part
    scores = shared_genres(neighbours(vectors_BD, present_B), genres)[present_B]
    means = scores[rng.integers(0, len(scores), (2_000, len(scores)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    order = np.flatnonzero(present_B)
    permuted = vectors_BD.copy()
    permuted[order] = vectors_BD[rng.permutation(order)]
    placebo = shared_genres(neighbours(permuted, present_B), genres)[present_B].mean()
    cosines = vectors_BD[present_B] @ vectors_BD[present_B].T
    off = cosines[~np.eye(len(cosines), dtype=bool)]
    text = f"{scores.mean():.3f} [{low:.3f}, {high:.3f}] | {placebo:.3f} | {off.mean():+.3f}"
    both = bare_B & present_B
    alike = bare_B[neighbours(vectors_BD, present_B)[both]].mean() if both.any() else np.nan
    print(f"| {what} | {text} | {alike:.2f} |", flush=True)


def zero_filled(parts: Mapping[str, Part], means: Means) -> Part:
    """What fusion must not do: a missing vector taken as zeros, less the mean like any other."""
    blocks = []
    for name, part in parts.items():
        filled = part.vectors_BD - means.means[name]
        blocks.append(filled / np.linalg.norm(filled, axis=1, keepdims=True))
    joined = np.concatenate(blocks, axis=1)
    return centred(joined.astype(np.float32), np.ones(len(joined), np.bool_))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    items, genres = movies(args.shared / "data" / "ml-items", args.items)
    bare_B = np.array([item.image is None for item in items])
    attributes = AttributeEncoderConfig(dim=256)
    built = {
        name: Remembered(catalog.build(name, {}, attributes), items)
        for name in ("text", "minilm", "image")
    }
    means = fit_means(built, items)
    print("| vectors | shared genres of 5 neighbours | placebo | mean cosine | bare near bare |")
    print("|---|---|---|---|---|")
    for name, encoder in built.items():
        raw = encoder.encode_many(items)
        show(f"`{name}`", centred(*raw), genres, bare_B)
        show(f"`{name}`, centred", centred(*raw, means.means[name]), genres, bare_B)
    pair = {name: built[name] for name in ("minilm", "image")}
    for what, dim, taken, weights in (
        ("`minilm` + `image`", 1664, None, {}),
        ("`minilm` + `image`, centred", 1664, means, {}),
        ("the same, `minilm` of weight 2", 1664, means, {"minilm": 2.0}),
        ("the same, projected to 256", 256, means, {"minilm": 2.0}),
        ("the same, projected to 128", 128, means, {"minilm": 2.0}),
    ):
        fusion = FusedEncoder(pair, FusionConfig(dim=dim, weights=weights), taken)
        show(what, Part(*fusion.encode_many(items)), genres, bare_B)
    raw_parts = {name: centred(*encoder.encode_many(items)) for name, encoder in pair.items()}
    show("zeros in place of a missing picture", zero_filled(raw_parts, means), genres, bare_B)


if __name__ == "__main__":
    main()
