"""Small replays for tests: a configuration with a real ranker, runs that are cut short."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from infra import config as loader
from infra.config_text import render
from stream.codec_write import click_body, encode_envelope, impression_body
from stream.composition import Composition
from stream.config import Config
from stream.record_log import RecordLogWriter
from stream.replay.runner import Replay, ReplayConfig, ReplayResult
from tests.support.streams import SMALL, T0

RANKED: dict[str, Any] = SMALL | {
    "stream": SMALL["stream"] | {"batch_size": 64, "linger_ms": 60_000},
    "items": {"dim": 16},
    "ranker": {"name": "id_content", "label": "click"},
    "feature": [
        *({**f, "dim": 4} for f in SMALL["feature"]),
        {"name": "tag", "path": "item.attributes.tag", "kind": "multi-id", "dim": 4, "length": 2},
    ],
    "counter": [*SMALL["counter"], {"name": "tag", "keys": ["tag"]}],
}


class Killed(BaseException):
    """The process is gone."""


def ranked_config(**tables: Any) -> Config:
    """The small configuration with a ranker on vectors; whole tables can be replaced."""
    return loader.build(Config, RANKED | tables)


def write_config(path: Path, config: Config) -> Path:
    """The configuration as a TOML file."""
    path.write_text(render(config))
    return path


def replay(
    config: Config,
    logs: tuple[Path, ...],
    report: Path,
    *,
    kill_after: int | None = None,
    **options: Any,
) -> ReplayResult:
    """A finished replay, its store closed; `Killed` is raised after `kill_after` chunks.

    A snapshot is written before the next chunk, so that a slow disk does not change how many.
    """
    chunks = 0

    def progress(done: int, total: int) -> None:
        nonlocal chunks
        chunks += 1
        if run._checkpoints is not None:
            run._checkpoints.wait(run._composition)
        if chunks == kill_after:
            raise Killed

    every = config.snapshot.every_samples if options.pop("snapshots", False) else 0
    options = {"snapshot_every": every, **options}
    run = Replay(config, ReplayConfig(logs=logs, report=report, **options))
    result = run.run(progress)
    result.composition.close()
    return result


def envelope_log(
    path: Path, *, requests: int = 400, seed: int = 5, tabs: tuple[Any, ...] = (0, 1, 2)
) -> Path:
    """A log of envelopes that overlap in time, so that release stops inside of them."""
    rng = random.Random(seed)
    now, shown, clicks = 0, [], []
    for number in range(requests):
        now += rng.choice((0, 300, 1_200))
        user, items = rng.randrange(20), rng.sample(range(30), 3)
        body = impression_body(
            request_id=number, user_id=user, ts_ms=T0 + now,
            items=[{"item_id": item} for item in items],
            context={"tab": tabs[rng.randrange(len(tabs))]},
        )  # fmt: skip
        shown.append((user % 2, now, body))
        for item in items:
            if rng.random() < 0.4:
                clicked = click_body(
                    item_id=item, user_id=user, ts_ms=T0 + now + 200, kind="click",
                    request_id=number,
                )  # fmt: skip
                clicks.append((user % 2, now + 200, clicked))
    records = [
        (rows[-1][1], rank, topic, partition, encode_envelope(topic, [row[2] for row in rows]))
        for rank, (topic, events) in enumerate((("impressions", shown), ("clicks", clicks)))
        for partition, size in ((0, 17), (1, 29))
        for rows in chunked([e for e in events if e[0] == partition], size)
    ]
    offsets: dict[tuple[str, int], int] = {}
    partitions = {"impressions": 2, "clicks": 2}
    with RecordLogWriter(path, partitions, ordered=False) as log:
        for ts, _, topic, partition, value in sorted(records, key=lambda r: r[:4]):
            offset = offsets.get((topic, partition), 3)
            offsets[topic, partition] = offset + 2  # offsets may have gaps
            log.write(topic, partition, offset, T0 + ts, None, value)
    return path


def chunked(rows: list[Any], size: int) -> list[list[Any]]:
    """Rows in runs of `size`, the last one shorter."""
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def weights_of(composition: Composition) -> dict[str, bytes]:
    """Every array of the learner, by part and name, as bytes."""
    return {
        f"{part.name}.{name}": np.ascontiguousarray(array).tobytes()
        for part in composition.pipeline.learner.export_full()
        for name, array in part.arrays.items()
    }


def logit_hash(predictions: Path) -> str:
    """sha256 of the logit column."""
    column = pq.read_table(predictions, columns=["logit"])["logit"].to_numpy()
    return hashlib.sha256(column.tobytes()).hexdigest()
