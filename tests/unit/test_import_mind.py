"""MIND's requests and news to a record log, on tables of a few rows in both published forms."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.commands.import_ import command
from stream.importers.import_config import ImportConfig
from stream.importers.mind import CLICK_DELAY_MS, import_mind
from tests.support.imported import messages

AT = dt.datetime(2019, 11, 9, 13, 5, 7)  # noqa: DTZ001 - as published, without a zone
T0 = int(AT.replace(tzinfo=dt.UTC).timestamp() * 1_000)
REQUESTS: list[dict[str, Any]] = [
    {"impression_id": 1, "user_id": "U1", "time": AT, "history": ["N9", "N8"],
     "candidates": ["N1", "N2", "N3"], "clicked": [0, 1, 1]},
    {"impression_id": 2, "user_id": "U2", "time": AT + dt.timedelta(hours=1), "history": [],
     "candidates": ["N2"], "clicked": [0]},
    {"impression_id": 3, "user_id": "U1", "time": AT + dt.timedelta(hours=2),
     "history": ["N9", "N8"], "candidates": ["N1", "N2"], "clicked": [1, 0]},
]  # fmt: skip
ENTITY = '[{{"Label": "x", "WikidataId": "{}"}}]'
NEWS: list[dict[str, Any]] = [
    {"news_id": "N1", "category": "news", "subcategory": "world", "title": 'A "quoted" title',
     "abstract": None, "url": "u", "title_entities": ENTITY.format("Q2"),
     "abstract_entities": ENTITY.format("Q1")},
    {"news_id": "N2", "category": "sports", "subcategory": "golf", "title": "B", "abstract": "Text",
     "url": "u", "title_entities": "[]", "abstract_entities": "not json"},
]  # fmt: skip


def parquet(folder: Path, requests: list[dict[str, Any]] = REQUESTS) -> Path:
    folder.mkdir()
    types = {"time": pa.timestamp("ms"), "history": pa.list_(pa.string()),
             "candidates": pa.list_(pa.string()), "clicked": pa.list_(pa.int8())}  # fmt: skip
    columns = {name: pa.array([r[name] for r in requests], types.get(name)) for name in requests[0]}
    pq.write_table(pa.table(columns), folder / "impressions.parquet")
    pq.write_table(pa.Table.from_pylist(NEWS), folder / "news_partial.parquet")
    return folder


def published(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for r in REQUESTS:
        pairs = zip(r["candidates"], r["clicked"], strict=True)
        cells = (r["impression_id"], r["user_id"], r["time"].strftime("%m/%d/%Y %-I:%M:%S %p"),
                 " ".join(r["history"]), " ".join(f"{i}-{c}" for i, c in pairs))  # fmt: skip
        lines.append("\t".join(map(str, cells)))
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    rows = ["\t".join(str(v or "") for v in r.values()) for r in NEWS]
    (folder / "news.tsv").write_text("\n".join(rows) + "\n")
    return folder


def imported(source: Path, out: Path, **config: Any) -> Path:
    import_mind(source, out, ImportConfig(partitions=1, **config))
    return out


def test_a_request_shows_all_its_candidates(tmp_path: Path) -> None:
    shown = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "impressions")
    assert [(m["request_id"], m["user_id"], m["ts_ms"] - T0) for m in shown] == [
        (1, "U1", 0), (2, "U2", 3_600_000), (3, "U1", 7_200_000),
    ]  # fmt: skip
    assert shown[0]["items"] == [{"item_id": "N1"}, {"item_id": "N2"}, {"item_id": "N3"}]
    assert shown[0]["context"] == {"slate": 3, "slate_log2": 2}


def test_clicks_come_five_seconds_later(tmp_path: Path) -> None:
    found = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "clicks")
    clicks = [m for m in found if m["type"] == "click"]
    assert {(m["request_id"], m["item_id"], m["ts_ms"] - T0, m["kind"]) for m in clicks} == {
        (1, "N2", CLICK_DELAY_MS, "click"), (1, "N3", CLICK_DELAY_MS, "click"),
        (3, "N1", 7_200_000 + CLICK_DELAY_MS, "click"),
    }  # fmt: skip
    assert CLICK_DELAY_MS == 5_000


def test_a_users_history_is_organic_once_and_in_front(tmp_path: Path) -> None:
    found = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "clicks")
    organic = [m for m in found if m["type"] == "click_columns"]
    assert [(m["n"], m["columns"]["user_id"], m["columns"]["kind"]) for m in organic] == [
        (2, "U1", "click")
    ]
    columns = organic[0]["columns"]
    assert columns["item_id"]["blob"] == b"N9N8"
    assert np.frombuffer(columns["ts_ms"], "<i8").tolist() == [T0 - 2, T0 - 1]
    items = messages(tmp_path / "log", "items")
    assert {m["ts_ms"] for m in items} == {T0 - 3}


def test_news_become_items(tmp_path: Path) -> None:
    found = messages(imported(parquet(tmp_path / "in"), tmp_path / "log"), "items")
    items = {m["item_id"]: m for m in found}
    first = {"category": "news", "subcategory": "world", "entities": ["Q1", "Q2"]}
    assert items["N1"]["attributes"] == first
    assert items["N1"]["title"] == 'A "quoted" title'
    assert "text" not in items["N1"]
    assert items["N2"]["attributes"] == {"category": "sports", "subcategory": "golf"}
    assert items["N2"]["text"] == "Text"


def test_the_publishers_files_give_the_same_log(tmp_path: Path) -> None:
    ours = imported(parquet(tmp_path / "a"), tmp_path / "log_a")
    theirs = imported(published(tmp_path / "b"), tmp_path / "log_b")
    for topic in ("items", "impressions", "clicks"):
        assert messages(ours, topic) == messages(theirs, topic)


def test_a_span_can_be_cut_and_news_are_optional(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in")
    (source / "news_partial.parquet").unlink()
    log = imported(source, tmp_path / "log", from_ms=T0 + 1, to_ms=T0 + 7_200_000)
    assert [m["request_id"] for m in messages(log, "impressions")] == [2]
    assert messages(log, "items") == []


@pytest.mark.parametrize(
    ("changes", "text"),
    (
        ({"clicked": [0, 1]}, "expected as many clicks as candidates"),
        ({"candidates": [], "clicked": []}, "at least one, got 0 and 0"),
        ({"time": None}, "'time' has empty cells"),
    ),
)
def test_unusable_requests_are_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    source = parquet(tmp_path / "in", [REQUESTS[0], REQUESTS[1] | changes])
    with pytest.raises(InputError, match=text):
        imported(source, tmp_path / "log")


@pytest.mark.parametrize(
    ("line", "text"),
    (
        ("1\tU1\t11/09/2019 1:05:07 PM\t\tN1 N2\n", "expected candidates such as N123-0"),
        ("1\tU1\t2019-11-09\t\tN1-0\n", "expected times such as"),
        ("1\tU1\n", "not readable"),
    ),
)
def test_unusable_lines_are_named(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "behaviors.tsv").write_text(line)
    with pytest.raises(InputError, match=text):
        imported(tmp_path, tmp_path / "log")
    with pytest.raises(InputError, match="there is no such file"):
        imported(tmp_path / "none", tmp_path / "log")


def test_the_command_counts_items_shown(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in")
    result = CliRunner().invoke(command, ["mind", str(source), str(tmp_path / "log")])
    assert result.exit_code == 0, result.output
    assert "6 impressions, 3 clicks, 2 organic events, 2 items" in result.output
