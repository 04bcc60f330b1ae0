"""Open Bandit's logged impressions to a record log. The only module that knows this data set.

One row is one item at one of three places, chosen by the policy `random` or `bts` with the logged
probability. The data has no user: rows with equal four user features share an id, the hash of
these. Items of the campaigns have numbers of their own: an id here is `campaign/number`. Clicks
have no time: each gets `CLICK_DELAY_MS` after its impression. Positions count from 0 here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from infra.errors import InputError
from stream.codec_write import click_body, encode_key, impression_body, item_body
from stream.columns import I64
from stream.importers.import_config import ImportConfig, ImportCounts, Progress, unheard
from stream.importers.log_builder import Outgoing, write_log
from stream.importers.table_file import in_span, milliseconds, read_table, row_ids

Policy = Literal["both", "random", "bts"]
Campaign = Literal["both", "all", "men", "women"]

CLICK_DELAY_MS: Final = 1_000
_USER: Final = tuple(f"user_feature_{i}" for i in range(4))
_ITEM: Final = tuple(f"item_feature_{i}" for i in range(4))
_LOG: Final = ("timestamp", "item_id", "position", "click", "propensity_score", *_USER)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBanditImportConfig(ImportConfig):
    """Which policies and campaigns to take; `both` takes every one that the folder has."""

    policy: Policy = "both"
    campaign: Campaign = "both"

    def __post_init__(self) -> None:
        """Check the words."""
        ImportConfig.__post_init__(self)
        for name, kind in (("policy", Policy), ("campaign", Campaign)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}")


def import_open_bandit(
    source: Path, out: Path, config: OpenBanditImportConfig, on_records: Progress = unheard
) -> ImportCounts:
    """Write the record log `out` from the tables in the folder `source`.

    Needs impressions.parquet and items.parquet (with columns policy and campaign), or the
    publisher's folders POLICY/CAMPAIGN/ with CAMPAIGN.csv and item_context.csv. Raises InputError
    when a table is absent, unreadable or lacks a column, or nothing is left to write.
    """
    log, items = _tables(source, config)
    log, ts_ms_n = in_span(log, milliseconds(log["timestamp"]), config, source)
    shown = _Shown.of(log, ts_ms_n)
    streams = {
        "items": _items(items, int(ts_ms_n.min()) - 1),
        "impressions": _impressions(log, shown),
        "clicks": _clicks(shown),
    }
    return write_log(out, streams, config, on_records)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    requests: list[int]
    users: list[int]
    items: list[str]
    times: list[int]
    clicked: list[int]

    @classmethod
    def of(cls, log: pa.Table, ts_ms_n: I64) -> _Shown:
        rows = zip(*(log[name].to_pylist() for name in _USER), strict=True)
        user_n = np.array([_hash("|".join(map(str, row))) for row in rows], np.int64)
        names = zip(log["campaign"].to_pylist(), log["item_id"].to_pylist(), strict=True)
        items = [f"{campaign}/{item}" for campaign, item in names]
        # Two rows of one user may share the millisecond: microseconds and place tell them apart.
        micros = log["timestamp"].cast(pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
        policy_n = np.array([_hash(policy) for policy in log["policy"].to_pylist()], np.int64)
        item_n = np.array([_hash(item) for item in items], np.int64)
        columns = [user_n, item_n, micros, log["position"].to_numpy(), policy_n]
        return cls(
            requests=row_ids(columns, "open bandit request").tolist(),
            users=user_n.tolist(),
            items=items,
            times=ts_ms_n.tolist(),
            clicked=log["click"].to_pylist(),
        )


def _hash(text: str) -> int:
    """Positive 63-bit integer of a text."""
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def _tables(source: Path, config: OpenBanditImportConfig) -> tuple[pa.Table, pa.Table]:
    if (source / "impressions.parquet").is_file():
        log = read_table(source / "impressions.parquet", (*_LOG, "policy", "campaign"))
        items = read_table(source / "items.parquet", ("item_id", "campaign"))
        for name in ("policy", "campaign"):
            wanted = getattr(config, name)
            if wanted != "both":
                log = log.filter(pc.equal(log[name], wanted))
                if name == "campaign":
                    items = items.filter(pc.equal(items[name], wanted))
        return log, items
    logs, items_of = [], {}
    for policy in ("random", "bts") if config.policy == "both" else (config.policy,):
        campaigns = ("all", "men", "women") if config.campaign == "both" else (config.campaign,)
        for campaign in campaigns:
            folder = source / policy / campaign
            if config.campaign == "both" and not folder.is_dir():
                continue
            log = _with(read_table(folder / f"{campaign}.csv", _LOG), campaign)
            logs.append(log.append_column("policy", pa.array([policy] * len(log))))
            items = read_table(folder / "item_context.csv", ("item_id",))
            items_of[campaign] = _with(items, campaign)
    if not logs:
        raise InputError(
            f"{source}: expected impressions.parquet, or folders such as random/men with men.csv"
        )
    return _joined(logs), _joined(list(items_of.values()))


def _with(table: pa.Table, campaign: str) -> pa.Table:
    return table.append_column("campaign", pa.array([campaign] * len(table)))


def _joined(tables: list[pa.Table]) -> pa.Table:
    # Campaigns have a different number of affinity columns each.
    return pa.concat_tables(tables, promote_options="permissive")


def _impressions(log: pa.Table, shown: _Shown) -> Iterator[Outgoing]:
    names = ("policy", "campaign", *_USER)
    contexts = [dict(zip(names, row, strict=True)) for row in zip(
        *(log[name].to_pylist() for name in names), strict=True)]  # fmt: skip
    columns = (
        shown.requests, shown.users, shown.items, shown.times, log["position"].to_pylist(),
        log["propensity_score"].to_pylist(), _affinities(log), contexts,
    )  # fmt: skip
    for request, user, item, ts_ms, position, propensity, affinity, context in zip(
        *columns, strict=True
    ):
        one: dict[str, Any] = {
            "item_id": item, "position": position - 1, "propensity": propensity,
        }  # fmt: skip
        if affinity is not None:
            one["features"] = {"affinity": affinity}
        body = impression_body(
            request_id=request, user_id=user, ts_ms=ts_ms, context=context, items=[one]
        )
        yield Outgoing(ts_ms, encode_key(user), "impression", body)


def _affinities(log: pa.Table) -> list[float | None]:
    """How often the user clicked the item shown before, of the list or column of all items."""
    numbers = log["item_id"].to_pylist()
    if "user_item_affinity" in log.column_names:
        lists = log["user_item_affinity"].to_pylist()
        return [row[i] if i < len(row) else None for row, i in zip(lists, numbers, strict=True)]
    columns: dict[int, list[float | None]] = {}
    out: list[float | None] = []
    for row, number in enumerate(numbers):
        name = f"user-item_affinity_{number}"
        if number not in columns:
            have = name in log.column_names
            columns[number] = log[name].to_pylist() if have else [None] * len(log)
        value = columns[number][row]
        out.append(None if value is None else float(value))
    return out


def _clicks(shown: _Shown) -> Iterator[Outgoing]:
    rows = zip(shown.requests, shown.users, shown.items, shown.times, shown.clicked, strict=True)
    for request, user, item, shown_ms, clicked in rows:
        if clicked:
            ts_ms = shown_ms + CLICK_DELAY_MS
            body = click_body(
                request_id=request, item_id=item, user_id=user, ts_ms=ts_ms, kind="click"
            )
            yield Outgoing(ts_ms, encode_key(user), "click", body)


def _items(items: pa.Table, ts_ms: int) -> Iterator[Outgoing]:
    present = [name for name in _ITEM if name in items.column_names]
    for row in items.to_pylist():
        item = f"{row['campaign']}/{row['item_id']}"
        attributes = {name: row[name] for name in present if row[name] is not None}
        body = item_body(
            item_id=item, ts_ms=ts_ms, attributes=attributes | {"campaign": row["campaign"]}
        )
        yield Outgoing(ts_ms, encode_key(item), "item", body)
