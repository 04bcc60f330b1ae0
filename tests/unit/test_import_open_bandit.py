"""Open Bandit's impressions to a record log, on tables of a few rows in both published forms."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.commands.import_ import command
from stream.importers.open_bandit import (
    CLICK_DELAY_MS,
    OpenBanditImportConfig,
    import_open_bandit,
)
from tests.support.imported import messages

AT = dt.datetime(2019, 11, 24, 0, 0, 1, 500, tzinfo=dt.UTC)
T0 = int(AT.timestamp() * 1_000)


def row(number: int, campaign: str, policy: str, item: int, **more: Any) -> dict[str, Any]:
    user = {f"user_feature_{i}": f"h{i}" for i in range(4)} | {"user_feature_3": f"u{number % 2}"}
    return {
        "timestamp": AT + dt.timedelta(milliseconds=number), "item_id": item, "position": 2,
        "click": 0, "propensity_score": 0.5, **user,
        "user_item_affinity": [0.0, 3.0] if campaign == "men" else [0.0, 0.0, 4.0],
        "policy": policy, "campaign": campaign,
    } | more  # fmt: skip


ROWS = [
    row(0, "men", "random", 1, click=1),
    row(1, "men", "bts", 0, propensity_score=0.25, position=1),
    row(2, "women", "random", 2, position=3),
    # Same user, item and millisecond as the first; another microsecond.
    row(0, "men", "random", 1, timestamp=AT + dt.timedelta(microseconds=9)),
]
ITEMS = [
    {"item_id": i, "item_feature_0": 0.5, "item_feature_1": f"a{i}", "item_feature_2": "b",
     "item_feature_3": "c", "campaign": c}
    for c, n in (("men", 2), ("women", 3)) for i in range(n)
]  # fmt: skip


def parquet(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist(ITEMS), folder / "items.parquet")
    return folder


def published(folder: Path) -> Path:
    for policy, campaign in {(r["policy"], r["campaign"]) for r in ROWS}:
        place = folder / policy / campaign
        place.mkdir(parents=True)
        rows = []
        for r in ROWS:
            if (r["policy"], r["campaign"]) == (policy, campaign):
                affinity = {f"user-item_affinity_{i}": v for i, v in
                            enumerate(r["user_item_affinity"])}  # fmt: skip
                left_out = ("user_item_affinity", "policy", "campaign")
                rows.append({k: v for k, v in r.items() if k not in left_out} | affinity)
        pa_csv.write_csv(pa.Table.from_pylist(rows), place / f"{campaign}.csv")
        items = [{k: v for k, v in i.items() if k != "campaign"} for i in ITEMS
                 if i["campaign"] == campaign]  # fmt: skip
        pa_csv.write_csv(pa.Table.from_pylist(items), place / "item_context.csv")
    return folder


def imported(source: Path, out: Path, **config: Any) -> Path:
    import_open_bandit(source, out, OpenBanditImportConfig(partitions=1, **config))
    return out


def test_impressions_carry_propensity_position_and_affinity(tmp_path: Path) -> None:
    shown = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "impressions")
    assert [m["items"] for m in shown] == [
        [{"item_id": "men/1", "position": 1, "propensity": 0.5, "features": {"affinity": 3.0}}],
        [{"item_id": "men/1", "position": 1, "propensity": 0.5, "features": {"affinity": 3.0}}],
        [{"item_id": "men/0", "position": 0, "propensity": 0.25, "features": {"affinity": 0.0}}],
        [{"item_id": "women/2", "position": 2, "propensity": 0.5, "features": {"affinity": 4.0}}],
    ]
    assert shown[2]["context"] == {
        "policy": "bts", "campaign": "men", "user_feature_0": "h0", "user_feature_1": "h1",
        "user_feature_2": "h2", "user_feature_3": "u1",
    }  # fmt: skip
    assert [m["ts_ms"] - T0 for m in shown] == [0, 0, 1, 2]


def test_users_are_their_four_features_and_requests_are_rows(tmp_path: Path) -> None:
    shown = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "impressions")
    users = [m["user_id"] for m in shown]
    assert users[0] == users[1] == users[3] != users[2]
    assert len({m["request_id"] for m in shown}) == 4
    assert all(0 < m["request_id"] < 2**63 for m in shown)


def test_clicks_come_a_second_later(tmp_path: Path) -> None:
    log = imported(parquet(tmp_path / "in"), tmp_path / "log")
    clicks = messages(log, "clicks")
    assert [(m["item_id"], m["ts_ms"] - T0) for m in clicks] == [("men/1", CLICK_DELAY_MS)]
    assert clicks[0]["request_id"] in {m["request_id"] for m in messages(log, "impressions")[:2]}


def test_items_are_told_apart_by_campaign(tmp_path: Path) -> None:
    items = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "items")
    assert {m["item_id"] for m in items} == {"men/0", "men/1", "women/0", "women/1", "women/2"}
    assert items[0]["attributes"]["item_feature_0"] == 0.5
    assert {m["ts_ms"] for m in items} == {T0 - 1}


def test_the_publishers_files_give_the_same_log(tmp_path: Path) -> None:
    ours = imported(parquet(tmp_path / "a"), tmp_path / "log_a")
    theirs = imported(published(tmp_path / "b"), tmp_path / "log_b")
    for topic in ("impressions", "clicks"):
        assert messages(ours, topic) == messages(theirs, topic)
    key = "item_id"
    assert sorted(messages(ours, "items"), key=lambda m: str(m[key])) == sorted(
        messages(theirs, "items"), key=lambda m: str(m[key])
    )


@pytest.mark.parametrize("form", (parquet, published))
def test_policies_and_campaigns_can_be_chosen(tmp_path: Path, form: Any) -> None:
    source = form(tmp_path / "in")
    shown = messages(imported(source, tmp_path / "a", policy="bts"), "impressions")
    assert [m["context"]["policy"] for m in shown] == ["bts"]
    log = imported(source, tmp_path / "b", campaign="women", policy="random")
    assert [m["items"][0]["item_id"] for m in messages(log, "impressions")] == ["women/2"]
    assert {m["attributes"]["campaign"] for m in messages(log, "items")} == {"women"}
    with pytest.raises(InputError, match=r"no row in the span|there is no such file"):
        imported(source, tmp_path / "c", campaign="all")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="policy must be one of both, random, bts"):
        OpenBanditImportConfig(policy="greedy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="or folders such as random/men"):
        imported(tmp_path, tmp_path / "log")
    result = CliRunner().invoke(command, ["open-bandit", "x", "y", "--policy", "greedy"])
    assert result.exit_code == 2


def test_the_command_writes(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in")
    result = CliRunner().invoke(command, ["open-bandit", str(source), str(tmp_path / "log")])
    assert "4 impressions, 1 clicks, 0 organic events, 5 items" in result.output
