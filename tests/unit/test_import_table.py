"""Tables of one's own to a record log: what a mapping does, and every way a row can be bad."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra import config as loader
from infra.errors import InputError
from stream.cli import run
from stream.commands.import_ import command
from stream.importers.import_config import ImportConfig
from stream.importers.table import TableImport, import_table
from stream.importers.table_events import TableFiles
from stream.importers.table_mapping import TableMapping
from stream.record_log import RecordLog
from stream.validate import ValidateConfig, validate
from tests.support.imported import messages

T0 = 1_650_000_000_000
MAPPING = """
[time]
unit = "s"

[impressions]
user = "uid"
item = "iid"
time = "at"
request = "req"
position = "pos"
propensity = "prop"
context = { device = "dev", age = "age" }
features = { price = "price" }

[label.click]
column = "clicked"
delay_ms = 500
"""
ROWS = """uid,iid,at,req,pos,prop,dev,age,price,clicked,unused
u1,7,1650000000,1,0,0.5,phone,30,1.5,1,x
u1,8,1650000001,1,1,0.25,phone,30,2,0,
u2,7,1650000002,2,,,,41,,true,
"""


def mapped(tmp_path: Path, mapping: str = MAPPING) -> TableMapping:
    file = tmp_path / "map.toml"
    file.write_text(mapping)
    return loader.load(TableMapping, [file])


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def imported(
    tmp_path: Path, rows: str = ROWS, mapping: str = MAPPING, **options: Any
) -> TableImport:
    more = {key: options.pop(key) for key in ("clicks", "items") if key in options}
    shown = (text(tmp_path / "rows.csv", rows),) if rows else ()
    files = TableFiles(impressions=shown, **more)
    config = ImportConfig(partitions=1, **options.pop("config", {}))
    out = tmp_path / "log.parquet"
    return import_table(files, out, mapped(tmp_path, mapping), config, **options)


def test_rows_of_one_request_become_one_event(tmp_path: Path) -> None:
    made = imported(tmp_path)
    assert (made.counts.impressions, made.counts.clicks, made.rejected) == (3, 2, {})
    shown = messages(tmp_path / "log.parquet", "impressions")
    assert [{k: m[k] for k in ("request_id", "user_id", "ts_ms", "context", "items")} for m in
            shown] == [
        {
            "request_id": 1, "user_id": "u1", "ts_ms": T0,
            "context": {"device": "phone", "age": 30}, "items": [
                {"item_id": 7, "position": 0, "propensity": 0.5, "features": {"price": 1.5}},
                {"item_id": 8, "position": 1, "propensity": 0.25, "features": {"price": 2.0}},
            ],
        },
        {
            "request_id": 2, "user_id": "u2", "ts_ms": T0 + 2_000, "context": {"age": 41},
            "items": [{"item_id": 7}],
        },
    ]  # fmt: skip
    clicks = messages(tmp_path / "log.parquet", "clicks")
    assert [(m["request_id"], m["item_id"], m["ts_ms"], m["kind"]) for m in clicks] == [
        (1, 7, T0 + 500, "click"),
        (2, 7, T0 + 2_500, "click"),
    ]


def test_the_log_is_valid(tmp_path: Path) -> None:
    imported(tmp_path)
    report = validate(RecordLog(tmp_path / "log.parquet"), ValidateConfig())
    assert report["rejected"]["total"] == 0
    assert report["impressions"]["distinct"] == 3
    assert report["clicks"]["by_kind"]["click"]["positives"] == 2


PLAIN = """
[impressions]
user = "u"
item = "i"
time = "t"
"""


def test_rows_without_request_are_their_own_and_equal_ones_are_duplicates(tmp_path: Path) -> None:
    rows = f"u,i,t\n1,5,{T0}\n1,6,{T0}\n1,5,{T0}\n"
    made = imported(tmp_path, rows, '[time]\nunit = "ms"\n' + PLAIN)
    assert made.counts.impressions == 3
    facts = validate(RecordLog(tmp_path / "log.parquet"), ValidateConfig())["impressions"]
    assert (facts["distinct"], facts["duplicates"], facts["requests"]) == (2, 1, 2)


@pytest.mark.parametrize(
    ("time", "cell", "ms"),
    (
        ('unit = "us"', f"{T0}000", T0),
        ('unit = "s"', "1650000000.25", T0 + 250),
        ("", "2022-04-15T05:20:00+00:00", T0),
        ("", "2022-04-15 05:20:00", T0),
        ("offset_minutes = 480", "2022-04-15T13:20", T0),
        ("offset_minutes = 480", "2022-04-15T05:20Z", T0),
        ('pattern = "%d/%m/%Y %H:%M"', "15/04/2022 05:20", T0),
    ),
)
def test_times_are_read_as_they_are_written(tmp_path: Path, time: str, cell: str, ms: int) -> None:
    imported(tmp_path, f"u,i,t\n1,5,{cell}\n", f"[time]\n{time}\n{PLAIN}")
    assert messages(tmp_path / "log.parquet", "impressions")[0]["ts_ms"] == ms


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    at = dt.datetime(2022, 4, 15, 5, 20, tzinfo=dt.UTC)
    table = pa.table({
        "u": pa.array([3.0, 4.0]), "i": ["a", "b"],
        "t": pa.array([at, at], pa.timestamp("ns", "UTC")), "c": [True, False],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    mapping = mapped(tmp_path, PLAIN + '[label.click]\ncolumn = "c"\n')
    out = tmp_path / "log.parquet"
    files = TableFiles(impressions=[tmp_path / "rows.parquet"])
    made = import_table(files, out, mapping, ImportConfig())
    assert made.counts.clicks == 1
    assert {(m["user_id"], m["ts_ms"]) for m in messages(out, "impressions")} == {(3, T0), (4, T0)}


def test_ids_are_integers_in_all_tables_or_in_none(tmp_path: Path) -> None:
    mapping = '[time]\nunit = "ms"\n' + PLAIN + '[items]\nitem = "id"\n'
    items = text(tmp_path / "items.csv", "id\n5\n006\n")
    imported(tmp_path, f"u,i,t\n01,5,{T0}\n", mapping, items=[items])
    out = tmp_path / "log.parquet"
    assert {m["item_id"] for m in messages(out, "items")} == {"5", "006"}
    shown = messages(out, "impressions")[0]
    assert (shown["items"][0]["item_id"], shown["user_id"]) == ("5", "01")
    imported(tmp_path, f"u,i,t\n1,5,{T0}\n", "text_ids = true\n" + mapping, items=[items])
    assert messages(out, "impressions")[0]["user_id"] == "1"


def test_items_have_texts_and_lists(tmp_path: Path) -> None:
    mapping = (
        '[time]\nunit = "ms"\n'
        + PLAIN
        + """
[items]
item = "id"
title = "name"
text = "words"
attributes = { tags = "tags", year = "year", brand = "brand" }
lists = { tags = "|" }
"""
    )
    items = text(
        tmp_path / "items.csv",
        'id,name,words,tags,year,brand\n5,"A, b","two\nlines",x| y,1999,acme\n6,,,,,\n,z,,,,\n',
    )
    made = imported(tmp_path, f"u,i,t\n1,5,{T0}\n", mapping, items=[items])
    found = {m["item_id"]: m for m in messages(tmp_path / "log.parquet", "items")}
    assert found[5]["attributes"] == {"tags": ["x", "y"], "year": 1999, "brand": "acme"}
    assert (found[5]["title"], found[5]["text"]) == ("A, b", "two\nlines")
    assert (found[6]["attributes"], "title" in found[6]) == ({}, False)
    assert found[5]["ts_ms"] == T0 - 1
    assert made.rejected == {"bad_id": 1}


CLICKS = """
[clicks]
user = "u"
item = "i"
time = "t"
request = "r"
kind_column = "k"
"""


def test_clicks_may_have_a_table_of_their_own(tmp_path: Path) -> None:
    rows = f"u,i,t,r\n1,5,{T0},9\n"
    clicks = text(
        tmp_path / "clicks.csv", f"u,i,t,r,k\n1,5,{T0 + 5},9,click\n1,6,{T0},,watch\n1,6,{T0},,\n"
    )
    mapping = '[time]\nunit = "ms"\n' + PLAIN + 'request = "r"\n' + CLICKS
    made = imported(tmp_path, rows, mapping, clicks=[clicks])
    assert (made.counts.clicks, made.counts.organic, made.rejected) == (1, 1, {"missing_field": 1})
    assert "'k' is empty" in made.examples[0]


def test_a_click_stays_with_its_request_where_a_span_is_cut(tmp_path: Path) -> None:
    rows = f"u,i,t,r\n1,5,{T0},8\n1,5,{T0 + 10},9\n1,5,{T0 + 20},10\n"
    clicks = text(
        tmp_path / "clicks.csv",
        f"u,i,t,r,k\n1,5,{T0 + 12},8,a\n1,5,{T0 + 90},9,b\n1,6,{T0 + 15},,c\n1,6,{T0},,d\n",
    )
    mapping = '[time]\nunit = "ms"\n' + PLAIN + 'request = "r"\n' + CLICKS
    span = {"from_ms": T0 + 10, "to_ms": T0 + 20}
    made = imported(tmp_path, rows, mapping, clicks=[clicks], config=span)
    assert made.counts.impressions == 1
    assert [m["kind"] for m in messages(tmp_path / "log.parquet", "clicks")] == ["c", "b"]


def test_clicks_alone_make_a_log(tmp_path: Path) -> None:
    clicks = text(tmp_path / "clicks.csv", f"u,i,t\n1,5,{T0}\n1,6,{T0 + 1}\n")
    columns = CLICKS.replace('request = "r"\n', "").replace('kind_column = "k"', 'kind = "buy"')
    made = imported(tmp_path, "", '[time]\nunit = "ms"\n' + columns, clicks=[clicks])
    assert (made.counts.organic, set(made.counts.records)) == (2, {"items", "clicks"})
    report = validate(RecordLog(tmp_path / "log.parquet"), ValidateConfig())
    assert report["clicks"]["organic_by_kind"] == {"buy": 2}


BAD = f"""u,i,t,r,p,q,c
1,5,{T0},1,0,.5,1
,5,{T0},2,0,.5,1
1,5,yesterday,3,0,.5,1
1,5,12,4,0,.5,1
1,5,{T0},5,-1,.5,1
1,5,{T0},6,0,0,1
1,5,{T0},7,0,.5,maybe
too,few

2,6,{T0},1,0,.5,1
1,{"x" * 257},{T0},8,0,.5,1
1,5,{T0},,0,.5,1
1,5,,9,0,.5,1
1,6,{T0},1,1,.5,0
"""
BAD_MAPPING = (
    '[time]\nunit = "ms"\n'
    + PLAIN
    + 'request = "r"\nposition = "p"\npropensity = "q"\n[label.click]\ncolumn = "c"\n'
)


def test_bad_rows_are_left_out_counted_and_named(tmp_path: Path) -> None:
    made = imported(tmp_path, BAD, BAD_MAPPING)
    assert made.rejected == {
        "malformed": 1, "missing_field": 3, "bad_time": 2, "wrong_type": 3, "key_mismatch": 1,
        "bad_id": 1,
    }  # fmt: skip
    assert (made.counts.impressions, made.counts.clicks) == (2, 1)
    places = {e.split(": ", 1)[0].rpartition(":")[2]: e.split(": ", 1)[1] for e in made.examples}
    assert list(places) == ["9", "3", "4", "5", "6", "7", "8", "11", "12", "13", "14"]
    assert places["9"] == "malformed: expected 7 cells, got 2"
    assert places["4"].startswith("bad_time: 't' is 'yesterday', expected a time of 2000 to 2100")
    assert places["11"] == "key_mismatch: request 1 is of user 1, not 2"
    assert "'c' is 'maybe'" in places["8"]


def test_strict_refuses_what_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"11 rows cannot be used, the first: .*rows.csv:9: malf"):
        imported(tmp_path, BAD, BAD_MAPPING, strict=True)
    assert not (tmp_path / "log.parquet").exists()


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 rows cannot be used, the first:"):
        imported(tmp_path, "u,i,t\n1,5,x\n1,5,y\n", PLAIN)
    with pytest.raises(InputError, match="no row in the span"):
        imported(tmp_path, config={"from_ms": T0 + 10**9})


def test_a_span_can_be_cut(tmp_path: Path) -> None:
    made = imported(tmp_path, config={"from_ms": T0 + 1_000, "to_ms": T0 + 2_000})
    assert (made.counts.impressions, made.counts.clicks) == (1, 0)


@pytest.mark.parametrize(
    ("mapping", "words"),
    (
        ("", "neither \\[impressions\\] nor \\[clicks\\]"),
        (PLAIN + "users = 'x'\n", "did you mean 'user'"),
        (PLAIN + '[time]\nunit = "ms"\npattern = "%d"\n', "a pattern is of text"),
        ('delimiter = "||"\n' + PLAIN, "delimiter must be one character"),
        (PLAIN + '[label.click]\ncolumn = "c"\ndelay_ms = -1\n', "delay_ms"),
        (PLAIN + '[items]\nitem = "i"\nlists = { a = "," }\n', "'a' in lists"),
    ),
)
def test_wrong_mappings_are_refused(tmp_path: Path, mapping: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        mapped(tmp_path, mapping)


def test_files_and_mapping_must_fit(tmp_path: Path) -> None:
    other = text(tmp_path / "other.csv", "a\n1\n")
    with pytest.raises(InputError, match=r"no \[clicks\] for it"):
        imported(tmp_path, clicks=[other])
    with pytest.raises(InputError, match=r"has \[clicks\], but no file of clicks"):
        imported(tmp_path, mapping=MAPPING + CLICKS)
    with pytest.raises(InputError, match="no column 'uid', only u, i, t"):
        imported(tmp_path, "u,i,t\n1,2,3\n")
    with pytest.raises(InputError, match="there is no such file"):
        import_table(
            TableFiles(impressions=[tmp_path / "none.csv"]), tmp_path / "o", mapped(tmp_path),
            ImportConfig(),
        )  # fmt: skip
    (tmp_path / "bad.parquet").write_bytes(b"junk")
    with pytest.raises(InputError, match="not readable"):
        import_table(
            TableFiles(impressions=[tmp_path / "bad.parquet"]), tmp_path / "o", mapped(tmp_path),
            ImportConfig(),
        )  # fmt: skip


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    rows, out = text(tmp_path / "rows.csv", BAD), tmp_path / "log.parquet"
    mapping = text(tmp_path / "map.toml", BAD_MAPPING)
    arguments = ["table", str(rows), str(out), "--mapping", str(mapping)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "2 impressions, 1 clicks" in result.output
    assert "left out: 3 rows, wrong_type" in result.output
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(result.output)["rejected"]["bad_time"] == 2
    assert run(["import", *arguments, "--strict"]) == 2
