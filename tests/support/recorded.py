"""Learn steps of a log, recorded once and run again with other learners, columns and step sizes.

The front (decode, join, assemble) runs a single time; a trial then costs what its learner costs.
Frozen inputs do not depend on the learner, so a trial gives the logits of a replay.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infra.state import Part
from learners import catalog
from learners.batch import ContentRows, MiniBatch
from learners.feature_spec import FeatureSpec
from learners.learner import Learner, StepReport
from learners.net_learner import NetLearner
from stream.composition import Variation, compose
from stream.config import Config
from tests.support.bench import LogInMemory, run_chunks

CHUNK_RECORDS = 64
I64 = NDArray[np.int64]
Step = tuple[tuple[MiniBatch, ...], MiniBatch]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was predicted before each learn step, and what was then learned; rows by learning."""

    spec: FeatureSpec
    steps: tuple[Step, ...]

    @property
    def sample_n(self) -> I64:
        """Identity of each row."""
        return np.concatenate([learned.sample_id_B.numpy() for _, learned in self.steps])

    @property
    def ts_ms_n(self) -> I64:
        """Time of each row's impression."""
        return np.concatenate([learned.ts_ms_B.numpy() for _, learned in self.steps])

    def id_n(self, field: str) -> I64:
        """Keys of one id field."""
        at = [f.name for f in self.spec.ids].index(field)
        return np.concatenate([learned.ids_BF[:, at].numpy() for _, learned in self.steps])

    def label_n(self) -> NDArray[np.int8]:
        """The trained label."""
        k = self.spec.trained_column
        labels = [learned.labels_BK[:, k].numpy() for _, learned in self.steps]
        return np.concatenate(labels).astype(np.int8)

    def coarser(self, factor: int) -> Recording:
        """Steps of `factor` times as many samples: a step ends where its last part ended."""
        groups = [self.steps[i : i + factor] for i in range(0, len(self.steps), factor)]
        steps = []
        for group in groups:
            shown = [batch for predicted, _ in group for batch in predicted]
            learned = [batch for _, batch in group]
            steps.append(((joined(shown, factor),) if shown else (), joined(learned, factor)))
        return replace(self, steps=tuple(steps))

    def without(self, dropped: Collection[str]) -> Recording:
        """No id field, bag or dense input of these names; `counter.*` drops all of a counter."""
        spec = self.spec
        gone = set(dropped)
        ids = [i for i, f in enumerate(spec.ids) if f.name not in gone]
        bags = [i for i, b in enumerate(spec.bags) if b.name not in gone]
        dense = [
            i
            for i, d in enumerate(spec.dense)
            if d.name not in gone and f"{d.counter.partition('.')[0]}.*" not in gone
        ]
        histories = [i for i, b in enumerate(spec.bags) if b.is_history]
        content = [histories.index(i) for i in bags if i in histories]
        kept = {spec.bags[i].field for i in bags}
        smaller = replace(
            spec,
            ids=tuple(spec.ids[i] for i in ids),
            bags=tuple(spec.bags[i] for i in bags),
            bag_fields=tuple(f for f in spec.bag_fields if f.name in kept),
            dense=tuple(spec.dense[i] for i in dense),
            content_dim=0 if "content" in gone else spec.content_dim,
            content_blocks=() if "content" in gone else spec.content_blocks,
        )

        def cut(batch: MiniBatch) -> MiniBatch:
            rows = batch.content if smaller.content_dim else None
            if rows is not None:
                rows = replace(
                    rows,
                    bags_BL=tuple(rows.bags_BL[i] for i in content),
                    bag_inv_len_B=tuple(rows.bag_inv_len_B[i] for i in content),
                )
            return replace(
                batch,
                ids_BF=batch.ids_BF[:, ids].contiguous(),
                bags_BL=tuple(batch.bags_BL[i] for i in bags),
                dense_BD=batch.dense_BD[:, dense].contiguous(),
                content=rows,
            )

        steps = tuple((tuple(map(cut, shown)), cut(learned)) for shown, learned in self.steps)
        return Recording(spec=smaller, steps=steps)

    def run(
        self, name: str, options: Mapping[str, Any], *, from_ms: int
    ) -> tuple[NDArray[np.float32], float]:
        """Logits of all rows shown from `from_ms` on (NaN before), microseconds a learned row.

        Processor time of this process, learning alone.
        """
        learner = _built(name, self.spec, options)
        found: dict[str, list[NDArray[Any]]] = {"sample": [], "logit": []}
        seconds, rows = 0.0, 0
        for shown, learned in self.steps:
            for batch in shown:
                if int(batch.ts_ms_B.max()) >= from_ms:
                    found["sample"].append(batch.sample_id_B.numpy())
                    found["logit"].append(learner.predict_many(batch).numpy().copy())
            start = time.process_time()
            learner.learn_many(learned)
            seconds += time.process_time() - start
            rows += len(learned)
        sample, logit = (np.concatenate(found[k]) for k in ("sample", "logit"))
        order = np.argsort(sample, kind="stable")
        own = self.sample_n
        place = np.minimum(np.searchsorted(sample, own, sorter=order), len(sample) - 1)
        at = order[place]
        logits = np.where(sample[at] == own, logit[at], np.nan).astype(np.float32)
        logits[self.ts_ms_n < from_ms] = np.nan
        return logits, 1e6 * seconds / rows

    def times(self, name: str, options: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        """Microseconds a row of each step: learned, and predicted just before. Wall time."""
        learner = _built(name, self.spec, options)
        learn, predict = [], []
        for _, batch in self.steps:
            start = time.perf_counter()
            learner.predict_many(batch)
            between = time.perf_counter()
            learner.learn_many(batch)
            predict.append(1e6 * (between - start) / len(batch))
            learn.append(1e6 * (time.perf_counter() - between) / len(batch))
        return learn, predict


def _built(name: str, spec: FeatureSpec, options: Mapping[str, Any]) -> Learner:
    learner = catalog.build(name, spec, options)
    if isinstance(learner, NetLearner):
        learner.reports_logits = False  # as in a pipeline that predicts at the impression
    return learner


class _Recorder:
    """A learner that keeps its batches and predicts 0."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._shown: list[MiniBatch] = []

    def learn_many(self, batch: MiniBatch) -> StepReport:
        self.steps.append((tuple(self._shown), batch))
        self._shown.clear()
        zero = torch.zeros(())
        return StepReport(logits_B=torch.zeros(len(batch)), loss=zero, skipped=zero)

    def predict_many(self, batch: MiniBatch) -> torch.Tensor:
        self._shown.append(batch)
        return torch.zeros(len(batch))

    def export_full(self) -> Sequence[Part]:
        return []

    def export_since(self, mark: int) -> Sequence[Part]:
        del mark
        return []

    def apply(self, parts: Mapping[str, Part]) -> None:
        del parts

    def counts(self) -> Mapping[str, int]:
        return {}


def record(config: Config, log: Path, variation: Variation | None = None) -> Recording:
    """The steps of a log; in batches as small as the smallest step that is to be tried."""
    composition = compose(config, None, variation=variation)
    recorder = _Recorder()
    composition.pipeline.learner = recorder
    memory = LogInMemory(log, CHUNK_RECORDS)
    memory.begin(composition)
    for chunks in (memory.history, memory.slice):
        run_chunks(composition.pipeline, chunks)
    composition.pipeline.finish()
    composition.close()
    return Recording(spec=composition.plan.spec, steps=tuple(recorder.steps))


def joined(batches: Sequence[MiniBatch], factor: int) -> MiniBatch:
    """One batch of several that read the same content table."""
    first = batches[0]
    out: dict[str, Any] = {}
    for f in fields(first):
        values = [getattr(batch, f.name) for batch in batches]
        if f.name == "nominal_size":
            out[f.name] = first.nominal_size * factor
        elif f.name in ("content", "incoming"):
            out[f.name] = _joined_content(values)
        elif values[0] is None:
            assert all(value is None for value in values), f.name
            out[f.name] = None
        elif isinstance(values[0], tuple):
            out[f.name] = tuple(map(torch.cat, zip(*values, strict=True)))
        else:
            out[f.name] = torch.cat(values)
    out["request_row_B"] = torch.arange(len(out["ids_BF"]))
    return MiniBatch(**out)


def _joined_content(rows: Sequence[ContentRows | None]) -> ContentRows | None:
    first = rows[0]
    if first is None:
        return None
    every = [r for r in rows if r is not None]
    assert all(r.table_VC.data_ptr() == first.table_VC.data_ptr() for r in every), "tables differ"
    return ContentRows(
        table_VC=first.table_VC,
        target_B=torch.cat([r.target_B for r in every]),
        missing_B=torch.cat([r.missing_B for r in every]),
        bags_BL=tuple(map(torch.cat, zip(*(r.bags_BL for r in every), strict=True))),
        bag_inv_len_B=tuple(map(torch.cat, zip(*(r.bag_inv_len_B for r in every), strict=True))),
        encoder=first.encoder,
    )
