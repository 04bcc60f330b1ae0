"""Comparison: arms over the same logs, one pass for each group that shares a pipeline (shell).

Makes the predictions; `stream/evaluation` says what they are worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.vector_codec import BadVector, decode_item_vector
from stream.codec_items import ItemEvent, decode_items
from stream.composition import Variation
from stream.config import Config
from stream.keys import key_of
from stream.record_log import RecordLog
from stream.replay.arms import Arm, groups
from stream.replay.report import counts_of
from stream.replay.runner import Replay, ReplayConfig, opened

Progress = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class Pass:
    """One pass over the logs: its arms, where their predictions are, and the run's counts.

    Seconds are wall time; `samples_per_s` leaves history out.
    """

    arms: list[Arm]
    predictions: Path
    counts: dict[str, Any]
    learners: dict[str, int]
    log_end_ms: int
    samples: int
    events: int
    seconds: float
    samples_per_s: float
    source_ids: list[str] = field(default_factory=list)


def run_passes(
    arms: Sequence[Arm], logs: Sequence[Path], folder: Path, *, threads: int, progress: Progress
) -> list[Pass]:
    """Replay the logs once for each group of arms; prediction logs come below `folder`.

    `progress` is told (records done, records in all), over all passes. Raises InputError.
    """
    grouped = groups(arms)
    keys: NDArray[np.int64] | None = None
    passes: list[Pass] = []
    for number, group in enumerate(grouped):
        first = group[0]
        if first.permutation is not None and keys is None:
            keys = item_keys([opened(path) for path in logs], first.config)
        variation = Variation(
            arms={arm.name: arm.config.ranker for arm in group},
            permuted=keys if first.permutation is not None else None,
            seed=first.permutation or 0,
            threads=threads,
        )
        report = folder / f"{number}"
        options = ReplayConfig(logs=tuple(logs), report=report, variation=variation)
        result = Replay(first.config, options).run(
            lambda done, total, n=number: progress(n * total + done, len(grouped) * total)  # type: ignore[misc]  # mypy cannot type a default of a lambda
        )
        try:
            passes.append(
                Pass(
                    arms=group, predictions=result.predictions,
                    counts=counts_of(result.composition.pipeline),
                    learners=dict(result.composition.pipeline.learner.counts()),
                    log_end_ms=result.log_end_ms, samples=result.samples_run,
                    events=result.events_run, seconds=result.seconds,
                    samples_per_s=result.samples_per_s,
                    source_ids=result.source_ids,
                )
            )  # fmt: skip
        finally:
            result.composition.close()
        shutil.rmtree(report / "vectors", ignore_errors=True)
    return passes


def item_keys(logs: Sequence[RecordLog], config: Config) -> NDArray[np.int64]:
    """Keys of all items that the logs describe or bring vectors of, distinct."""
    found = {key for log in logs for key in _keys(log, config)}
    return np.sort(np.fromiter(found, np.int64, len(found)))


def _keys(log: RecordLog, config: Config) -> Iterator[int]:
    for batches in log.batches_of(config.topics.items):
        for batch in batches:
            for event in decode_items(batch):
                if isinstance(event, ItemEvent):
                    yield key_of(event.item.item_id)
    for batches in log.batches_of(config.topics.item_vectors):
        for value in (v for batch in batches for v in batch.values if v is not None):
            item = decode_item_vector(value)
            if not isinstance(item, BadVector):
                yield key_of(item.item_id)
