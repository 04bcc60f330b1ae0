"""Codes: speed of coding, and what each way of refreshing a book does to the codes of old items.

python tests/benchmarks/bench_codes.py
"""

import time

import numpy as np

from embeddings.codes.codebook import Codebook
from embeddings.codes.fit import FitConfig, churn, fit, grow, refresh
from tests.support.vectors import grouped_vectors


def speed(n, size, dim=128):
    rng = np.random.default_rng(0)
    book = Codebook(
        encoder_version="bench", normalisation="unit", anchors_of_vector=0,
        levels=tuple(rng.standard_normal((size, dim)) / 2**level for level in range(3)),
        anchors_PD=np.zeros((0, dim)), born_K=np.zeros(size, np.int64), radius=9.0, slots=size,
    )  # fmt: skip
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    started = time.perf_counter()
    book.encode_many(vectors, np.ones(n, bool))
    return n / (time.perf_counter() - started)


def drift():
    old, _, _ = grouped_vectors(n=4_000, groups=40, seed=0)
    fresh, _, _ = grouped_vectors(n=1_500, groups=15, seed=1)
    both = np.concatenate([old, fresh])
    config = FitConfig(levels=3, size=64, anchors=0, anchors_of_vector=0)
    started = time.perf_counter()
    book = fit(old, "bench", config)
    print(f"fit of {len(old):,} vectors: {time.perf_counter() - started:.1f} s")
    few = FitConfig(levels=3, size=64, iterations=5, seed=7)
    books = {
        "the old book": book,
        "a new fit, its ids as they come": fit(both, "bench", FitConfig(size=64, seed=7)),
        "a new fit, ids matched (--cold)": refresh(book, both, few, cold=True).book,
        "from the old centroids (default)": refresh(book, both, few).book,
        "the same, level 1 frozen": refresh(book, both, few, frozen_levels=1).book,
        "growth": grow(book, both, few),
    }
    before = book.encode_many(old, np.ones(len(old), bool))
    for name, one in books.items():
        kept = [1 - c for c in churn(before, one.encode_many(old, np.ones(len(old), bool)))]
        left = one.encode_many(both, np.ones(len(both), bool)).residual_BL.mean(axis=0)
        shares = " | ".join(f"{share:.1%}" for share in kept)
        print(f"| {name} | {shares} | {left[0]:.3f} | {left[2]:.3f} |")


if __name__ == "__main__":
    drift()
    for n, size in ((20_000, 256), (4_000, 8_192)):
        print(f"3 x {size} codes, 128 numbers: {speed(n, size):,.0f} vectors/s")
