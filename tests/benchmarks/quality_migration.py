"""What a change of encoder in the middle of the bundled slice costs: brought in, or all at once.

Run: python -m tests.benchmarks.quality_migration [--seeds 0 1 2] [--at 40000] [--beside 10000]
     [--fade 40000]

Preset `kuairand`, predictions made at the impression. A replay is resumed from its snapshot after
`--at` samples with attribute vectors of seed 1 in place of seed 0: as items.next does it, and all
at once, the weights of the old vectors meeting the new ones, which the program refuses to do and is
done by hand here. Difference of log loss to the replay that keeps its encoder, row by row, with a
95 % interval (bootstrap by user, mean of the seeds), by phase.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra import config as loader
from infra.snapshot_store import SnapshotStore
from stream.composition import embedder_of
from stream.config import Config
from stream.evaluation.paired import paired_bootstrap
from stream.item_pending import PendingItems
from stream.replay.runner import Replay, ReplayConfig
from tests.support.bench import kuairand_config, kuairand_log, markdown
from tests.support.replays import write_config

F64 = NDArray[np.float64]


def run(config: Config, log: Path, folder: Path, **options: Any) -> dict[str, NDArray[Any]]:
    """Predictions of a replay of the whole log."""
    settings: dict[str, Any] = {"snapshot_every": config.snapshot.every_samples, **options}
    replay = Replay(config, ReplayConfig(logs=(log,), report=folder, **settings))
    result = replay.run()
    result.composition.close()
    table = pq.read_table(result.predictions)
    names = ("request_id", "item_id", "user_id", "label", "logit")
    return {name: table[name].to_numpy() for name in names}


def cut(folder: Path, to: Path) -> int:
    """A copy of a run's folder whose newest snapshot is the first one; its samples."""
    shutil.copytree(folder, to)
    store = SnapshotStore(to / "snapshots")
    first, *later = sorted(store.refs())
    for ref in later:
        shutil.rmtree(store.path(ref))
    return int(store.manifest(first).meta["samples"])


def exchanged(folder: Path, config: Config, encoder: str) -> None:
    """Put another encoder under the weights of the newest snapshot: its vectors are made anew."""
    store = SnapshotStore(folder / "snapshots")
    ref = max(store.refs())
    parts, _ = store.load(ref)
    arrays, meta = PendingItems({}).to_state()
    was = parts["items"]
    meta = {**was.meta, **meta, "encoder": encoder}
    parts = {**parts, "items": replace(was, arrays=arrays, meta=meta)}
    given = dict(store.manifest(ref).meta) | {"config": loader.to_dict(config)}
    store.write(store.claim_epoch(ref), given["samples"], list(parts.values()), given)


def losses(found: dict[str, NDArray[Any]]) -> F64:
    """Log loss of each row."""
    logit = found["logit"].astype(np.float64)
    return np.logaddexp(0, logit) - found["label"] * logit


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at", type=int, default=40_000)
    parser.add_argument("--beside", type=int, default=10_000)
    parser.add_argument("--fade", type=int, default=40_000)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="millrace-migration-"))
    try:
        print(markdown(*compared(work, args)))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def compared(work: Path, args: argparse.Namespace) -> tuple[Any, Any]:
    """Header and rows of the table."""
    log = kuairand_log(100)
    kept: list[F64] = []
    changed: dict[str, list[F64]] = {"brought in": [], "all at once": []}
    for seed in args.seeds:
        base, new = configs(work, args, seed)
        first = run(base, log, work / f"base{seed}")
        kept.append(losses(first))
        at = cut(work / f"base{seed}", work / "in")
        exchange = cut(work / f"base{seed}", work / "once")
        assert at == exchange
        items = replace(
            base.items, next=str(work / "new.toml"), next_beside_samples=args.beside,
            next_fade_samples=args.fade,
        )  # fmt: skip
        exchanged(work / "once", new, embedder_of(new).version)
        for name, config, folder in (
            ("brought in", replace(base, items=items), work / "in"),
            ("all at once", new, work / "once"),
        ):
            found = run(config, log, folder, resume=True)
            for column in ("request_id", "item_id", "user_id"):
                assert np.array_equal(found[column], first[column]), column
            assert np.array_equal(found["logit"][:at], first["logit"][:at])
            changed[name].append(losses(found))
            shutil.rmtree(folder)
        shutil.rmtree(work / f"base{seed}")
    return table(args, at, first["user_id"], kept, changed)


def configs(work: Path, args: argparse.Namespace, seed: int) -> tuple[Config, Config]:
    """The configuration, and that with another encoder, which is written to new.toml."""
    base = kuairand_config(f"ranker.options.seed={seed}", "stream.predict_at=impression")
    base = replace(base, snapshot=replace(base.snapshot, every_samples=args.at, keep=9))
    new = replace(base, items=replace(base.items, seed=1))
    write_config(work / "new.toml", new)
    return base, new


def table(
    args: argparse.Namespace, at: int, users: NDArray[Any], kept: list[F64],
    changed: dict[str, list[F64]],
) -> tuple[Any, Any]:  # fmt: skip
    """Differences by phase."""
    end = len(kept[0])
    faded = at + args.beside + args.fade
    phases = {
        "first 2,000 samples": (at, at + 2_000),
        "both beside": (at, at + args.beside),
        "fading": (at + args.beside, faded),
        "after": (faded, end),
    }
    rows = []
    for phase, (start, stop) in phases.items():
        for name, runs in changed.items():
            d_n = np.mean([c - k for c, k in zip(runs, kept, strict=True)], axis=0)[start:stop]
            found = paired_bootstrap(d_n, np.unique(users[start:stop], return_inverse=True)[1])
            base = float(np.mean([k[start:stop] for k in kept]))
            rows.append((
                phase, name, f"{stop - start:,}", f"{base:.4f}", f"{found.mean:+.5f}",
                f"[{found.low:+.5f}, {found.high:+.5f}]",
            ))  # fmt: skip
    header = ("phase", "encoder changed", "samples", "log loss, kept", "difference", "95 %")
    return header, rows


if __name__ == "__main__":
    main()
