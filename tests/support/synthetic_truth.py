"""Small synthetic streams, replays of them, and their predictions beside the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra import config as loader
from stream.composition import load_config
from stream.config import Config
from stream.importers.synthetic_config import SyntheticConfig
from stream.importers.synthetic_log import read_truth, truth_path, write_synthetic
from stream.importers.synthetic_truth import rows_of
from tests.support.replays import replay

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SMALL: dict[str, Any] = {
    "users": 150,
    "items": 60,
    "impressions": 16_000,
    "days": 2.0,
    "new_items_per_hour": 0,
    "item_life_hours": 1e6,
    "drift": 0.0,
}
"""Few users and items, so that a short stream has something to learn of each."""

AT_ONCE: dict[str, Any] = {"adam": {"averaged_rows": 0}}
"""Options of `id_content`: predict with the weights as they are; an average over thousands of rows
would be over half of such a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Predictions of one replay in order of learning, and the truth of the same rows."""

    path: Path
    logit: F64
    label: I64
    ts_ms: I64
    batch: I64
    weights_ms: I64
    item_id: I64
    user_id: I64
    position: I64
    p: F64
    counts: dict[str, int]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.logit)

    @property
    def late(self) -> NDArray[np.bool_]:
        """The second half of the rows in time: the first is warm-up."""
        return self.ts_ms >= np.median(self.ts_ms)


def stream_of(folder: Path, **settings: Any) -> Path:
    """The record log of a small synthetic stream, its truth beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "synthetic.parquet"
    write_synthetic(out, SyntheticConfig(**(SMALL | settings)))
    return out


def config_of(name: str = "id_content", **changes: Any) -> Config:
    """The synthetic preset for short streams with the learner `name`.

    `features` and `counters` keep those of these names (None: all); `options` are the learner's,
    by default `AT_ONCE` for `id_content`;
    `items` and `stream` change settings of these tables; `plain_counts` turns decay off.
    """
    table = loader.to_dict(load_config("synthetic", ()))
    for what in ("feature", "counter"):
        kept = changes.pop(f"{what}s", None)
        if kept is not None:
            table[what] = [one for one in table[what] if one["name"] in kept]
    for one in table["feature"]:
        one["dim"] = 8
    if changes.pop("plain_counts", False):
        for one in table["counter"]:
            one["half_life_hours"] = 0
    table["report"] = {"fields": []}
    table["stream"] |= {"batch_size": 256, "linger_ms": 3_600_000}
    options = changes.pop("options", AT_ONCE if name == "id_content" else {})
    table["ranker"] |= {"name": name, "options": options}
    for name_, values in changes.items():
        table[name_] = table[name_] | values if isinstance(values, dict) else values
    return loader.build(Config, table)


def replayed(log: Path, folder: Path, config: Config) -> Replayed:
    """A replay of `log`, with the truth of its predictions."""
    result = replay(config, (log,), folder)
    table = pq.read_table(result.predictions)
    column = {name: table[name].to_numpy() for name in table.column_names}
    truth, _ = read_truth(truth_path(log))
    row = rows_of(truth, column["request_id"], column["item_id"])
    assert np.array_equal(truth["ts_ms"][row], column["ts_ms"])
    return Replayed(
        path=result.predictions,
        logit=column["logit"].astype(np.float64),
        label=column["label"].astype(np.int64),
        ts_ms=column["ts_ms"],
        batch=column["batch"],
        weights_ms=column["weights_ms"],
        item_id=column["item_id"],
        user_id=column["user_id"],
        position=truth["position"][row].astype(np.int64),
        p=truth["probability"][row],
        counts=dict(result.composition.pipeline.learner.counts()),
    )
