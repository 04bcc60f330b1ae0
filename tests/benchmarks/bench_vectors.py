"""Times of the item-vector path: encoder, store, cache. A script; asserts nothing.

python tests/benchmarks/bench_vectors.py [--items 100000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.item_content import ItemContent
from embeddings.vector_cache import VectorCache, VectorCacheConfig
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS, MemoryVectorStore
from stream.keys import keys_of_ints

BATCH, HISTORY = 1_024, 50
WRITE = 8_192


def best_us(work: Callable[[], object], repeats: int) -> float:
    """Median time of one call, in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def report(what: str, us: float, of: str) -> None:
    print(f"{what:<58}{us:>10.3f} µs per {of}")


def items_like_kuairand(count: int) -> list[ItemContent]:
    rng = np.random.default_rng(0)
    return [
        ItemContent(
            item_id=i,
            ts_ms=1_650_000_000_000,
            attributes={
                "author_id": int(rng.integers(count // 3 + 1)),
                "tag": [str(t) for t in rng.integers(0, 60, 2)],
                "video_type": "NORMAL",
                "upload_type": f"type{rng.integers(12)}",
                "music_id": int(rng.integers(1 << 40)),
                "duration": float(rng.integers(1, 100_000)) + 0.5,
            },
        )
        for i in range(count)
    ]


def bench_cache(store: MemoryVectorStore | RocksVectorStore, count: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    cache = VectorCache(store, VectorCacheConfig(dim=128, rows_max=count + 8, dtype=dtype))
    cache.lookup(keys_of_ints(np.arange(count)))
    for touched in (7_600, count):
        if touched > count:
            continue
        ids = (touched * rng.random((64, BATCH, HISTORY + 1)) ** 2).astype(np.int64)
        keys = keys_of_ints(ids.ravel()).reshape(ids.shape)
        shown = rng.integers(HISTORY // 2 + 1, HISTORY + 1, (64, BATCH, 1))  # mean history 38
        keys[:, :, 1:][np.arange(HISTORY) >= shown] = 0
        batches = [(np.ascontiguousarray(k[:, 0]), [np.ascontiguousarray(k[:, 1:])]) for k in keys]
        for compact in (False, True):
            turn = iter(range(10**9))

            def once(compact: bool = compact, turn=turn, batches=batches) -> None:
                target, bags = batches[next(turn) % 64]
                cache.lookup(target, bags, compact=compact)

            for _ in range(8):
                once()
            what = f"cached look-up of 51, {touched:,} items{', compact' if compact else ''}"
            report(what, best_us(once, 64) / BATCH, "sample")


def warm_up() -> None:
    """Compiles the loops, or loads them from numba's cache."""
    cache = VectorCache(MemoryVectorStore("warm-up"), VectorCacheConfig(dim=4, rows_max=4))
    for start in range(0, 12, 3):
        cache.lookup(keys_of_ints(np.arange(start, start + 3)), compact=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    count = parser.parse_args().items
    items = items_like_kuairand(count)
    warm_up()
    embedder = Embedder(AttributeEncoder(AttributeEncoderConfig()), EmbedderConfig())
    values: list[bytes] = []
    start = time.perf_counter()
    for n in range(0, count, WRITE):
        values += [row.value for row in embedder.embed(items[n : n + WRITE]).rows]
    report("embed: attributes, fp16", (time.perf_counter() - start) * 1e6 / count, "item")
    keys = keys_of_ints(np.arange(count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        store = RocksVectorStore(RocksVectorStoreConfig(path=path), embedder.version)
        start = time.perf_counter()
        for n in range(0, count, WRITE):
            store.put_many(keys[n : n + WRITE], values[n : n + WRITE], NO_KEYS, {"t/0": b"%d" % n})
        us = (time.perf_counter() - start) * 1e6 / count
        report(f"store: put_many of {WRITE:,}, {len(values[0])} bytes", us, "item")
        rng = np.random.default_rng(2)
        for size in (1, 100, 8_192):
            pick = [rng.choice(keys, size) for _ in range(20)]
            turn = iter(range(10**9))
            us = best_us(lambda: store.get_many(pick[next(turn) % 20]), 20) / size  # noqa: B023
            report(f"store: get_many of {size:,}", us, "item")
        start = time.perf_counter()
        store.checkpoint(Path(folder) / "copy")
        report("store: checkpoint", (time.perf_counter() - start) * 1e6, "call")
        cache = VectorCache(store, VectorCacheConfig(dim=128, rows_max=count))
        start = time.perf_counter()
        cache.lookup(keys[:8_192])
        us = (time.perf_counter() - start) * 1e6 / 8_192
        report("cache: fill from the store", us, "item")
        for dtype in ("float32", "float16"):
            print(dtype)
            bench_cache(store, count, dtype)
        store.close()


if __name__ == "__main__":
    main()
