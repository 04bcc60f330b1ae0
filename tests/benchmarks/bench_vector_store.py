"""Rows of a million item vectors: from RocksDB alone and from the cache, memory, cold start.

python -m tests.benchmarks.bench_vector_store [--items 1000000] [--options]

Batches are those of a ranker, 1,024 targets with 50 history items each, items drawn by Zipf's law
(exponent 1.1). A script; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rocksdict
import torch

from embeddings.stored_rows import RowReader, read_no_attributes
from embeddings.vector_cache import VectorCache, VectorCacheConfig
from embeddings.vector_codec import encode_item_vector
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from stream.keys import keys_of_ints
from tests.support.bench import ROOT, markdown, setting

DIM, ENCODER = 128, "attributes-128-0123456789abcdef"
BATCH, PLACES, BATCHES = 1_024, 51, 24
WRITE = 8_192
CACHE_ROWS = 100_000
WANTED = {"RocksDB alone": 150_000, "cache, all rows in it": 1_000_000}


class Timed(NamedTuple):
    """Medians over batches: rows a second of wall time, µs of processor time a row."""

    rows_per_s: float
    cpu_us: float


def values_of(start: int, stop: int, dtype: Any) -> list[bytes]:
    """Items with random unit vectors and six attributes."""
    rng = np.random.default_rng(start)
    vectors = rng.standard_normal((stop - start, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        encode_item_vector(
            item_id=i, ts_ms=1_650_000_000_000, encoder=ENCODER, vector=vectors[i - start],
            dtype=dtype,
            attributes={
                "author_id": i * 7_919 % 333_333, "tag": [str(i % 60), "23"],
                "video_type": "NORMAL", "upload_type": f"type{i % 12}", "music_id": i * 104_729,
                "duration": i % 100_000 + 0.5,
            },
        )
        for i in range(start, stop)
    ]  # fmt: skip


def opened(path: Path) -> RocksVectorStore:
    return RocksVectorStore(RocksVectorStoreConfig(path=path), ENCODER)


def fill(path: Path, count: int, dtype: Any) -> float:
    """Seconds of writing `count` items."""
    store, seconds = opened(path), 0.0
    for start in range(0, count, WRITE):
        stop = min(start + WRITE, count)
        values, keys = values_of(start, stop, dtype), keys_of_ints(np.arange(start, stop))
        begin = time.perf_counter()
        store.put_many(keys, values, NO_KEYS, {"items/0": b"%d" % stop})
        seconds += time.perf_counter() - begin
    store.close()
    return seconds


def batches(count: int, seed: int = 2) -> list[np.ndarray]:
    """Keys [BATCH, PLACES] by Zipf's law, in a random order of items."""
    rng = np.random.default_rng(seed)
    shares = np.cumsum(1.0 / np.arange(1, count + 1) ** 1.1)
    order = keys_of_ints(rng.permutation(count))
    draws = rng.random((BATCHES, BATCH, PLACES)) * shares[-1]
    return list(order[np.searchsorted(shares, draws)])


def timed(read: Callable[[np.ndarray], object], work: Sequence[np.ndarray]) -> Timed:
    """Of one batch after the other, the first three left out."""
    wall, cpu = [], []
    for keys in work:
        begin, used = time.perf_counter(), time.process_time()
        read(keys)
        wall.append((time.perf_counter() - begin) / keys.size)
        cpu.append((time.process_time() - used) / keys.size * 1e6)
    return Timed(1 / float(np.median(wall[3:])), float(np.median(cpu[3:])))


def contiguous(table: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """The rows [n, DIM] as a tensor of its own."""
    return torch.from_numpy(table).index_select(0, torch.from_numpy(rows.ravel()))


def from_store(store: RocksVectorStore, keys: np.ndarray) -> torch.Tensor:
    """All rows of a batch, each distinct item read once."""
    distinct, places = np.unique(keys, return_inverse=True)
    rows = RowReader(store, DIM, "float16", read_no_attributes).read(distinct)
    return contiguous(rows.vectors_mD, places.ravel())


def as_drawn(store: RocksVectorStore, keys: np.ndarray) -> torch.Tensor:
    """The same, each item read as often as it occurs."""
    reader = RowReader(store, DIM, "float16", read_no_attributes)
    return torch.from_numpy(reader.read(keys.ravel()).vectors_mD)


def from_cache(cache: VectorCache, keys: np.ndarray) -> torch.Tensor:
    found = cache.lookup(np.ascontiguousarray(keys[:, 0]), [np.ascontiguousarray(keys[:, 1:])])
    rows = np.concatenate([found.target_B[:, None], found.bags_BL[0]], axis=1)
    return contiguous(found.table_VC, rows)


def in_two(read: Callable[[np.ndarray], object], pool: ThreadPoolExecutor) -> Any:
    """The two halves of a batch at the same time."""
    return lambda keys: list(pool.map(read, np.array_split(keys, 2)))


def bench_store(path: Path, count: int) -> Iterator[tuple[str, Timed]]:
    work, store = batches(count), opened(path)
    with ThreadPoolExecutor(2) as pool:
        for what, read in (
            ("RocksDB alone", lambda keys: from_store(store, keys)),
            ("RocksDB alone, every item as often as it occurs", lambda k: as_drawn(store, k)),
        ):
            yield what, timed(read, work)
            yield f"{what}, two threads", timed(in_two(read, pool), work)
        distinct = [np.unique(keys)[:, None] for keys in work]
        yield "RocksDB alone, distinct items only", timed(lambda k: from_store(store, k), distinct)
    for what, rows in (("all rows in it", count), (f"room for {CACHE_ROWS:,} rows", CACHE_ROWS)):
        cache = VectorCache(store, VectorCacheConfig(dim=DIM, rows_max=rows, dtype="float16"))
        if rows == count:
            cache.lookup(keys_of_ints(np.arange(count)))
        else:
            for keys in batches(count, seed=3):
                from_cache(cache, keys)
        before = cache.counts.missed, cache.counts.lookups
        result = timed(lambda keys, cache=cache: from_cache(cache, keys), work)
        missed, asked = cache.counts.missed - before[0], cache.counts.lookups - before[1]
        hits = "" if rows == count else f", {1 - missed / asked:.1%} found there"
        yield f"cache, {what}{hits}", result
    store.close()


def resident_mb() -> dict[str, int]:
    """Memory of this process: private, of mapped files, and the most so far of both."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return {k: int(sizes[k].split()[0]) >> 10 for k in ("RssAnon", "RssFile", "VmHWM")}


def fresh_process(path: Path, count: int) -> None:
    """Prints cold start and memory of a process that opens the store and reads batches."""
    work, memory = batches(count), {"after imports": resident_mb()}
    begin = time.perf_counter()
    store = opened(path)
    store.positions()
    open_s = time.perf_counter() - begin
    cache = VectorCache(store, VectorCacheConfig(dim=DIM, rows_max=CACHE_ROWS, dtype="float16"))
    from_cache(VectorCache(store, VectorCacheConfig(dim=DIM, rows_max=9)), work[0][:1])  # compile
    memory["store open"] = resident_mb()
    begin = time.perf_counter()
    from_cache(cache, work[0])
    first_s = time.perf_counter() - begin
    for keys in work:
        from_cache(cache, keys)
    memory[f"{len(work)} batches"] = resident_mb()
    for start in range(0, count, WRITE):
        cache.lookup(keys_of_ints(np.arange(start, min(start + WRITE, count))))
    memory["every item once"] = resident_mb()
    store.close()
    print(json.dumps({"open_s": open_s, "first_s": first_s, "memory": memory}))


# Settings of RocksDB, each changed alone.
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "lz4": {"compression": "lz4"},
    "indexes and filters in the block cache": {"indexes_in_cache": True},
    "block cache of 512 MB": {"block_cache_mb": 512},
    "blocks of 2 KB": {"block_bytes": 2_048},
    "blocks of 16 KB": {"block_bytes": 16_384},
    "hash index in blocks": {"hashed": True},
    "mapped files": {"mapped": True},
    "no checksums verified": {"checksums": False},
    "row cache of 64 MB": {"row_cache_mb": 64},
}


def plain_options(
    *, compression: str = "none", indexes_in_cache: bool = False, block_cache_mb: int = 64,
    block_bytes: int = 4_096, hashed: bool = False, mapped: bool = False, checksums: bool = True,
    row_cache_mb: int = 0,
) -> rocksdict.Options:  # fmt: skip
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)
    table.set_block_cache(rocksdict.Cache(block_cache_mb << 20))
    table.set_cache_index_and_filter_blocks(v=indexes_in_cache)
    table.set_block_size(block_bytes)
    if hashed:
        table.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
    options = rocksdict.Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(32 << 20)
    options.set_compression_type(getattr(rocksdict.DBCompressionType, compression)())
    options.set_allow_mmap_reads(is_enabled=mapped)
    if row_cache_mb:
        options.set_row_cache(rocksdict.Cache(row_cache_mb << 20))
    return options


def bench_options(source: Path, folder: Path, count: int) -> Iterator[list[object]]:
    """µs of processor time a key of `get`, by setting, and the size of the files."""
    stores: dict[str, Any] = {}
    old = rocksdict.Rdict(str(source), plain_options())
    for number, (what, changes) in enumerate(OPTIONS.items()):
        store = rocksdict.Rdict(str(folder / f"options{number}"), plain_options(**changes))
        batch = rocksdict.WriteBatch(raw_mode=True)
        for n, (key, value) in enumerate(old.items(), 1):
            batch.put(key, value)
            if n % WRITE == 0:
                store.write(batch)
                batch = rocksdict.WriteBatch(raw_mode=True)
        store.write(batch)
        store.flush()
        if not changes.get("checksums", True):
            reading = rocksdict.ReadOptions()
            reading.set_verify_checksums(v=False)
            store.set_read_options(reading)
        stores[what] = store
    old.close()
    rng = np.random.default_rng(5)
    zipf = [np.unique(keys) for keys in batches(count)]
    anywhere = [np.unique(keys_of_ints(rng.integers(0, count, WRITE))) for _ in range(BATCHES)]
    for what, store in stores.items():

        def read(keys: np.ndarray, store: Any = store) -> object:
            return store.get(names(keys))

        size = sum(f.stat().st_size for f in Path(store.path()).glob("*.sst")) >> 20
        yield [what, timed(read, zipf).cpu_us, timed(read, anywhere).cpu_us, size]
        store.close()


def names(keys: np.ndarray) -> list[bytes]:
    blob = keys.astype(">i8").tobytes()
    return [blob[i : i + 8] for i in range(0, len(blob), 8)]


def show_process(path: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_vector_store",
         "--items", str(count), "--fresh", str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    print(f"\nopened in {facts['open_s']:.2f} s, first batch after {facts['first_s']:.2f} s more")
    print(f"\nMB with a cache of {CACHE_ROWS:,} rows:\n")
    rows = [[when, *sizes.values()] for when, sizes in facts["memory"].items()]
    print(markdown(["when", "private", "of files", "most of both so far"], rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--options", action="store_true", help="RocksDB's settings, each alone")
    parser.add_argument("--fresh", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    count = arguments.items
    if arguments.fresh:
        fresh_process(arguments.fresh, count)
        return
    print(setting())
    with tempfile.TemporaryDirectory() as name:
        for dtype in ("float16",) if arguments.options else ("float16", "int8"):
            path = Path(name) / dtype
            seconds = fill(path, count, dtype)
            size = sum(f.stat().st_size for f in path.rglob("*")) >> 20
            print(f"\n{dtype}: {count:,} items written in {seconds:.1f} s, {size} MB\n", flush=True)
            if arguments.options:
                header = ["RocksDB, µs of processor time a key", "Zipf", "uniform", "MB"]
                print(markdown(header, bench_options(path, Path(name), count)))
                continue
            rows = [
                [what, got.rows_per_s, got.cpu_us, WANTED.get(what, "–")]
                for what, got in bench_store(path, count)
            ]
            print(markdown(["rows to tensors", "rows/s", "µs of processor", "target"], rows))
            show_process(path, count)


if __name__ == "__main__":
    main()
