"""Prediction log on disk: parts while a run goes on, one Parquet file at its end.

A part is durable before the snapshot that counts it, so that a killed run continues with exactly
the predictions of its snapshot: later parts are dropped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.errors import InputError
from stream.predictions import MISSING, Predictions

FILE = "predictions.parquet"
_PARTS = "predictions.parts"
_ROWS_PER_PART = 50_000
_FIELD = "field."


class PredictionLog:
    """Appends predictions below a folder; `finish` makes `predictions.parquet` of them."""

    def __init__(self, folder: Path, trained_column: int, arms: Sequence[str] = ()) -> None:
        """`trained_column` of the labels is the one written. Raises InputError if unwritable.

        Logits of several `arms` are columns `logit.NAME`; without them there is one, `logit`.
        """
        self._folder, self._parts = folder, folder / _PARTS
        self._column, self._arms = trained_column, tuple(arms)
        self._waiting: list[Predictions] = []
        self._rows_waiting = 0
        self._names: list[str] = []
        self._epoch = 0
        self.rows = 0
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"report directory '{folder}': cannot be written ({error})") from error

    def append(self, predictions: Predictions) -> None:
        """Keep rows; full parts are written."""
        self._waiting.append(predictions)
        self._rows_waiting += len(predictions)
        self.rows += len(predictions)
        if self._rows_waiting >= _ROWS_PER_PART:
            self.flush()

    def flush(self) -> list[str]:
        """Write what waits as a part, durably; the names of the parts so far."""
        if self._waiting:
            path = self._parts / f"{self._epoch:06d}-{len(self._names):08d}.parquet"
            pq.write_table(self._table(), path.with_suffix(".tmp"))
            with path.with_suffix(".tmp").open("rb") as file:
                os.fsync(file.fileno())
            path.with_suffix(".tmp").rename(path)
            folder = os.open(self._parts, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._names.append(path.name)
            self._waiting.clear()
            self._rows_waiting = 0
        return list(self._names)

    def begin(self, epoch: int, parts: Sequence[str]) -> None:
        """Continue behind the parts that a snapshot counts, and drop all others.

        Parts are named by `epoch`: an earlier owner that wakes up again writes beside the point.
        Raises InputError where a part is missing.
        """
        self._epoch, self._names = epoch, list(parts)
        self.rows = 0
        for name in self._names:
            path = self._parts / name
            if not path.exists():
                raise InputError(
                    f"report directory '{self._folder}': part {name} of {len(parts)} is missing; "
                    "resume with the directory that the snapshot was taken with"
                )
            self.rows += pq.read_metadata(path).num_rows
        for path in self._parts.iterdir():
            if path.name not in self._names:
                path.unlink()

    def finish(self, *, keep_parts: bool = False, names: Mapping[int, str] | None = None) -> Path:
        """Join the parts to `predictions.parquet`, atomically; its path.

        `keep_parts` lets a later run go on behind them. Fields of which `names` knows any value are
        written as text.
        """
        self.flush()
        tables = [pq.read_table(self._parts / name) for name in self._names]
        text = any(pa.types.is_string(t.schema.field("item_id").type) for t in tables)
        joined = pa.concat_tables([_as_text(t) if text else t for t in tables] or [self._table()])
        joined = _named(joined, names or {})
        path = self._folder / FILE
        pq.write_table(joined, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
        if not keep_parts:
            shutil.rmtree(self._parts)
        return path

    def _table(self) -> pa.Table:
        ids = [p.ids() for p in self._waiting]
        text = any(isinstance(i[0], list) for i in ids)
        columns = {}
        for place, name in enumerate(("request_id", "item_id", "user_id")):
            if text:
                columns[name] = pa.array([str(v) for i in ids for v in i[place]], pa.string())
            else:
                columns[name] = pa.array(_cat([np.asarray(i[place]) for i in ids], np.int64))
        columns["ts_ms"] = pa.array(_cat([p.ts_ms_n for p in self._waiting], np.int64))
        labels = _cat([p.labels_nK[:, self._column] for p in self._waiting], np.float32)
        columns["label"] = pa.array(labels.astype(np.int8))
        for a, name in enumerate([f"logit.{arm}" for arm in self._arms] or ["logit"]):
            logits = [p.predicted.logit_nA[:, a] for p in self._waiting]
            columns[name] = pa.array(_cat(logits, np.float32))
        for name in ("batch", "weights_ms"):
            values = [getattr(p.predicted, f"{name}_n") for p in self._waiting]
            columns[name] = pa.array(_cat(values, np.int64))
        lengths = _cat([p.history_len_n for p in self._waiting], np.int32)
        columns["history_len"] = pa.array(lengths)
        vectors = _cat([p.predicted.has_vector_n for p in self._waiting], np.bool_)
        columns["has_vector"] = pa.array(vectors)
        for name in self._waiting[0].fields if self._waiting else ():
            columns[_FIELD + name] = pa.array(
                _cat([p.fields[name] for p in self._waiting], np.int64)
            )
        return pa.table(columns)


def _cat(arrays: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)


def _as_text(table: pa.Table) -> pa.Table:
    for name in ("request_id", "item_id", "user_id"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].cast(pa.string()))
    return table


def _named(table: pa.Table, names: Mapping[int, str]) -> pa.Table:
    """The table with text for fields whose values were text."""
    for name in [n for n in table.schema.names if n.startswith(_FIELD)]:
        values, place_n = np.unique(table[name].to_numpy(), return_inverse=True)
        if not any(value in names for value in values.tolist()):
            continue
        texts = [names.get(v, "missing" if v == MISSING else str(v)) for v in values.tolist()]
        column = pa.array(np.array(texts, object)[place_n], pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table
