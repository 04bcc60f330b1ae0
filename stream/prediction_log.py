"""Prediction log on disk: parts while a run goes on, one Parquet file at its end.

A part is durable before the snapshot that counts it, so that a killed run continues with exactly
the predictions of its snapshot: later parts are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream.predictions import MISSING, Predictions
from stream.table_parts import TableParts

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
        self._parts = TableParts(folder, _PARTS)
        self._column, self._arms = trained_column, tuple(arms)
        self._waiting: list[Predictions] = []
        self._rows_waiting = 0
        self.rows = 0

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
            self._parts.write(self._table())
            self._waiting.clear()
            self._rows_waiting = 0
        return list(self._parts.names)

    def begin(self, epoch: int, parts: Sequence[str]) -> None:
        """Continue behind the parts that a snapshot counts, and drop all others.

        Raises InputError where a part is missing.
        """
        self.rows = self._parts.begin(epoch, parts)

    def finish(self, *, keep_parts: bool = False, names: Mapping[int, str] | None = None) -> Path:
        """Join the parts to `predictions.parquet`, atomically; its path.

        `keep_parts` lets a later run go on behind them. Fields of which `names` knows any value are
        written as text.
        """
        self.flush()
        tables = self._parts.read()
        text = any(pa.types.is_string(t.schema.field("item_id").type) for t in tables)
        joined = pa.concat_tables([_as_text(t) if text else t for t in tables] or [self._table()])
        path = self._parts.publish(_named(joined, names or {}), FILE)
        if not keep_parts:
            self._parts.remove()
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
