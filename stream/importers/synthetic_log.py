"""The synthetic stream to a record log, and its truth to a file beside it.

Impressions and clicks travel in columnar envelopes, or, with `envelope` 1, one event a record. No
event holds a probability of a click: those are in the truth file alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import InputError
from stream.codec_write import (
    click_body,
    encode_columns,
    encode_event,
    encode_key,
    impression_body,
    item_body,
)
from stream.importers.log_builder import Record, partition_of, write_records
from stream.importers.synthetic import (
    F64,
    I64,
    ImpressionColumns,
    ItemColumns,
    simulate,
)
from stream.importers.synthetic_config import SyntheticConfig

CLICK: Final = "click"
VECTOR: Final = "content"
"""Name of the vector that an item event carries."""
TRUTH_KEY: Final = b"millrace.synthetic"
_RESENT_MS: Final = 30_000
"""A duplicate is sent so much later, at most."""

Table = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticCounts:
    """What was written; events without duplicates, which are counted apart."""

    impressions: int
    clicks: int
    clicks_in_window: int
    items: int
    duplicates: int
    records: Mapping[str, int]
    source_id: str
    truth: str


def truth_path(out: Path) -> Path:
    """Where the truth of the log `out` is: OUT.truth.parquet."""
    return out.with_suffix(".truth.parquet")


def write_synthetic(
    out: Path, config: SyntheticConfig, on_records: Callable[[int], None] = lambda _: None
) -> SyntheticCounts:
    """Write the record log `out` and its truth. Raises OSError where the folder is not writable."""
    items, shown = simulate(config)
    return write_stream(out, config, items, shown, on_records=on_records)


def write_stream(
    out: Path,
    config: SyntheticConfig,
    items: ItemColumns,
    shown: ImpressionColumns,
    *,
    context: Mapping[str, I64] | None = None,
    on_records: Callable[[int], None] = lambda _: None,
) -> SyntheticCounts:
    """Write a stream that was simulated; `context` adds fields to the impressions' contexts."""
    # A generator of its own: duplicates and disorder change no probability and no click.
    rng = np.random.default_rng([config.seed, 1])
    clicked = np.flatnonzero(shown.click_delay_ms)
    clicks = {
        "request_id": shown.request_id[clicked],
        "user_id": shown.user_id[clicked],
        "item_id": shown.item_id[clicked],
        "ts_ms": shown.ts_ms[clicked] + shown.click_delay_ms[clicked],
    }
    extra = {f"context.{name}": column for name, column in (context or {}).items()}
    impressions = {**_impression_table(shown), **extra}
    partition_U = np.array(
        [partition_of(encode_key(user), config.partitions) for user in range(config.users + 1)]
    )
    records, resent = {"items": _item_records(items, config)}, 0
    for topic, table, unit in (("impressions", impressions, config.slate), ("clicks", clicks, 1)):
        sent_n, again_n = _sending(table["ts_ms"][::unit], config, rng)
        resent += len(again_n) * unit
        groups = []
        for p in range(config.partitions):
            mine = partition_U[table["user_id"][::unit]] == p
            groups.append(list(_records(topic, table, unit, _order(sent_n, again_n, mine), config)))
        records[topic] = groups
    built = write_records(out, records, on_records=on_records)
    write_truth(truth_path(out), shown, config)
    return SyntheticCounts(
        impressions=len(shown),
        clicks=len(clicked),
        clicks_in_window=int((shown.click_delay_ms[clicked] <= config.window_ms).sum()),
        items=len(items.item_id),
        duplicates=resent,
        records=built.records,
        source_id=built.source_id,
        truth=str(truth_path(out)),
    )


def write_truth(path: Path, shown: ImpressionColumns, config: SyntheticConfig) -> None:
    """One row an impression: ids, place, and the probabilities of its label being 1."""
    share = config.share_in_window
    table = pa.table(
        {
            "request_id": shown.request_id,
            "item_id": shown.item_id,
            "user_id": shown.user_id,
            "ts_ms": shown.ts_ms,
            "position": shown.position.astype(np.int32),
            "propensity": shown.propensity,
            "probability": share * shown.probability,
            "probability_without_position": share * shown.probability_without_position,
        }
    )
    meta = {TRUTH_KEY: json.dumps(asdict(config)).encode()}
    pq.write_table(table.replace_schema_metadata(meta), path, compression="zstd")


def read_truth(path: Path) -> tuple[dict[str, I64 | F64], SyntheticConfig]:
    """Columns of a truth file and the configuration it was made with. Raises InputError."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error
    packed = (table.schema.metadata or {}).get(TRUTH_KEY)
    if packed is None:
        raise InputError(
            f"{path}: expected the truth of a synthetic stream (OUT.truth.parquet, written by "
            f"`millrace synth`), got columns {', '.join(table.column_names[:8])}"
        )
    config = SyntheticConfig(**json.loads(packed))
    return {name: table[name].to_numpy() for name in table.column_names}, config


def _impression_table(shown: ImpressionColumns) -> Table:
    return {
        "request_id": shown.request_id,
        "user_id": shown.user_id,
        "item_id": shown.item_id,
        "ts_ms": shown.ts_ms,
        "position": shown.position,
        "context.segment": shown.segment,
        "context.device": shown.device,
        "features.propensity": shown.propensity.astype(np.float32),
    }


def _sending(ts_R: I64, config: SyntheticConfig, rng: np.random.Generator) -> tuple[I64, I64]:
    """Sending time of each unit, and of those sent again (as places: unit, then its time)."""
    sent_R = ts_R + rng.integers(config.disorder_ms + 1, size=len(ts_R))
    again = np.flatnonzero(rng.random(len(ts_R)) < config.duplicates)
    at_ms = sent_R[again] + 1 + rng.integers(_RESENT_MS, size=len(again))
    return sent_R, np.column_stack([again, at_ms]).astype(np.int64)


def _order(sent_R: I64, again_n2: I64, mine_R: np.ndarray[Any, Any]) -> I64:
    """Units of one partition in order of sending; those sent again stand twice."""
    own = np.flatnonzero(mine_R)
    again_n2 = again_n2[mine_R[again_n2[:, 0]]]
    unit = np.concatenate([own, again_n2[:, 0]])
    sent = np.concatenate([sent_R[own], again_n2[:, 1]])
    ordered: I64 = unit[np.argsort(sent, kind="stable")]
    return ordered


def _records(
    topic: str, table: Table, unit: int, order_R: I64, config: SyntheticConfig
) -> Iterator[Record]:
    """Records of one partition; a unit (request or click) is never cut."""
    row_n = (order_R[:, None] * unit + np.arange(unit)).ravel()
    columns = {name: column[row_n] for name, column in table.items()}
    if config.envelope > 1:
        yield from _envelopes(topic, columns, max(1, config.envelope // unit) * unit)
        return
    lists = {name: column.tolist() for name, column in columns.items()}
    for start in range(0, len(row_n), unit):
        yield _single(topic, {name: cells[start : start + unit] for name, cells in lists.items()})


def _envelopes(topic: str, columns: Table, step: int) -> Iterator[Record]:
    type_, scalars = "impression_columns", {}
    if topic == "clicks":
        type_, scalars = "click_columns", {"kind": CLICK}
    for start in range(0, len(columns["ts_ms"]), step):
        part = {name: column[start : start + step] for name, column in columns.items()}
        value = encode_columns(type_, len(part["ts_ms"]), {**part, **scalars})
        yield Record(int(part["ts_ms"].max()), None, value)


def _single(topic: str, rows: Mapping[str, list[Any]]) -> Record:
    """One event as a record of its own."""
    user, ts_ms, request = rows["user_id"][0], rows["ts_ms"][0], rows["request_id"][0]
    if topic == "clicks":
        body = click_body(
            item_id=rows["item_id"][0], user_id=user, ts_ms=ts_ms, kind=CLICK, request_id=request
        )
        return Record(ts_ms, encode_key(user), encode_event("click", body))
    context = {name[8:]: rows[name][0] for name in rows if name.startswith("context.")}
    shown = zip(rows["item_id"], rows["position"], rows["features.propensity"], strict=True)
    body = impression_body(
        request_id=request,
        user_id=user,
        ts_ms=ts_ms,
        context=context,
        items=[
            {"item_id": item, "position": position, "features": {"propensity": p}, "propensity": p}
            for item, position, p in shown
        ],
    )
    return Record(ts_ms, encode_key(user), encode_event("impression", body))


def _item_records(items: ItemColumns, config: SyntheticConfig) -> list[list[Record]]:
    """One event an item with its attributes and its vector, in order of announcement."""
    groups: list[list[Record]] = [[] for _ in range(config.partitions)]
    vectors = items.vectors_ID.astype("<f4")
    for i in np.argsort(items.born_ms, kind="stable").tolist():
        key = encode_key(int(items.item_id[i]))
        ts_ms = int(items.born_ms[i])
        content: dict[str, Any] = {"attributes": {"day": ts_ms // 86_400_000}}
        if config.content != "none":
            content["attributes"] |= {"topic": int(items.topic[i]), "author": int(items.author[i])}
            content["vectors"] = {VECTOR: vectors[i].tobytes()}
        body = item_body(item_id=int(items.item_id[i]), ts_ms=ts_ms, **content)
        record = Record(ts_ms, key, encode_event("item", body))
        groups[partition_of(key, config.partitions)].append(record)
    return groups
