"""Rows of prediction logs as columns of numbers: reads and checks them, computes no score.

Columns are read one at a time and ids become int32 codes, so that 10 million rows take about
300 MB. What an older log lacks is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.errors import InputError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_REQUIRED = ("request_id", "item_id", "user_id", "ts_ms", "label")
MISSING = int(np.iinfo(np.int64).min)
"""Stands for an integer field's value that an impression lacks."""

_ARM = "logit."
_FIELD = "field."


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A column whose value of row i is `values[code_n[i]]`; every value is there once."""

    code_n: I32
    values: pa.Array

    @property
    def count(self) -> int:
        """Number of codes."""
        return len(self.values)

    def take(self, rows: NDArray[Any]) -> Coded:
        """Some of the rows, with the codes that they had."""
        return replace(self, code_n=self.code_n[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRows:
    """Predictions of one or several arms for the same impressions, in order of learning.

    Shapes [n]: `ts_ms_n` int64 (of the impression), `label_n` int8, logits float32 by arm name,
    `batch_n` the learn step (rows of one number were predicted by the same weights). `ahead` counts
    rows whose weights had labels from after the impression; `unmatched` the rows of each log that
    the others lack.
    """

    request: Coded
    item: Coded
    user: Coded
    ts_ms_n: I64
    label_n: NDArray[np.int8]
    logits: Mapping[str, F32]
    batch_n: I32 | None = None
    history_len_n: I32 | None = None
    has_vector_n: NDArray[np.bool_] | None = None
    fields: Mapping[str, Coded] = field(default_factory=dict)
    ahead: int | None = None
    unmatched: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Columns have one length."""
        assert self.logits, "rows without an arm"
        lengths = {len(self.request.code_n), len(self.label_n), *map(len, self.logits.values())}
        assert lengths == {len(self)}, "columns of different lengths"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ts_ms_n)

    def take(self, rows: NDArray[Any]) -> Self:
        """Rows of a mask, or by number; codes stay what they were."""
        return replace(
            self,
            request=self.request.take(rows),
            item=self.item.take(rows),
            user=self.user.take(rows),
            ts_ms_n=self.ts_ms_n[rows],
            label_n=self.label_n[rows],
            logits={name: logit[rows] for name, logit in self.logits.items()},
            batch_n=None if self.batch_n is None else self.batch_n[rows],
            history_len_n=None if self.history_len_n is None else self.history_len_n[rows],
            has_vector_n=None if self.has_vector_n is None else self.has_vector_n[rows],
            fields={name: values.take(rows) for name, values in self.fields.items()},
        )


def coded(values: Any) -> Coded:
    """Codes of ids, int64 or string [n]; equal ids have equal codes."""
    column = values if isinstance(values, pa.Array) else pa.array(values)
    if not pa.types.is_string(column.type) and column.null_count == 0:
        numbers = column.to_numpy()
        new = np.ones(len(numbers), np.bool_)
        np.not_equal(numbers[1:], numbers[:-1], out=new[1:])
        firsts = numbers[new]
        # A request's rows lie together: its runs are its codes, where no request comes back. This
        # spares a hash table of as many ids as there are rows, 1 GB of them for 10 million.
        ordered = np.sort(firsts)
        if not (ordered[1:] == ordered[:-1]).any():
            codes = np.cumsum(new, dtype=np.int32)
            codes -= 1
            return Coded(code_n=codes, values=pa.array(firsts))
    found = column.dictionary_encode()
    return Coded(code_n=found.indices.to_numpy().astype(np.int32), values=found.dictionary)


def read_rows(path: Path, *, name: str = "ranker") -> PredictionRows:
    """Rows of a prediction log (Parquet); `name` is the arm of a log that holds only one.

    Raises InputError where the file is none, lacks a column, or holds a null or another label than
    0 and 1.
    """
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"prediction log '{path}': cannot be read as Parquet ({error})") from error
    with file:
        rows = _read(file, path, name)
    pa.default_memory_pool().release_unused()
    return rows


def _read(file: pq.ParquetFile, path: Path, name: str) -> PredictionRows:
    present = file.schema_arrow.names
    arms = {c.removeprefix(_ARM): c for c in present if c.startswith(_ARM)}
    if "logit" in present:
        arms = {name: "logit", **arms}
    missing = [c for c in _REQUIRED if c not in present] or ([] if arms else ["logit"])
    if missing:
        raise InputError(
            f"prediction log '{path}': column '{missing[0]}' is missing, found "
            f"{', '.join(present) or 'none'}; give the predictions.parquet of a run"
        )

    def column(which: str) -> pa.Array:
        chunks = file.read(columns=[which]).column(0)
        if chunks.null_count and which.startswith(_FIELD):
            chunks = chunks.fill_null("missing" if pa.types.is_string(chunks.type) else MISSING)
        if chunks.null_count:
            raise InputError(f"prediction log '{path}': column '{which}' has empty values")
        return chunks.combine_chunks() if chunks.num_chunks != 1 else chunks.chunk(0)

    def numbers(which: str, dtype: type) -> NDArray[Any] | None:
        if which not in present:
            return None
        # A copy, so that arrow's buffer is free for the next column.
        return np.array(column(which).to_numpy(zero_copy_only=False), dtype)

    ts_ms = numbers("ts_ms", np.int64)
    label = numbers("label", np.int8)
    assert ts_ms is not None
    assert label is not None
    if len(label) and not ((label == 0) | (label == 1)).all():
        raise InputError(f"prediction log '{path}': labels are 0 and 1, found others")
    weights_ms = numbers("weights_ms", np.int64)
    return PredictionRows(
        request=coded(column("request_id")),
        item=coded(column("item_id")),
        user=coded(column("user_id")),
        ts_ms_n=ts_ms,
        label_n=label,
        logits={arm: np.asarray(numbers(c, np.float32)) for arm, c in arms.items()},
        batch_n=numbers("batch", np.int32),
        history_len_n=numbers("history_len", np.int32),
        has_vector_n=numbers("has_vector", np.bool_),
        fields={c.removeprefix(_FIELD): coded(column(c)) for c in present if c.startswith(_FIELD)},
        ahead=None if weights_ms is None else int((weights_ms > ts_ms).sum()),
    )
