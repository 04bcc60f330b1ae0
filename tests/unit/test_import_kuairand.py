"""KuaiRand's tables to a record log, on tables of a few rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.commands.import_ import command
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.importers.log_builder import partition_of
from stream.record_log import LogRecord, RecordLog

T0 = 1_650_000_000_000
ROW = {"user_id": 1, "video_id": 10, "time_ms": T0, "is_click": 0, "long_view": 0,
       "play_time_ms": 0, "duration_ms": 60_000, "tab": 1}  # fmt: skip
LOG = [
    ROW | {"is_click": 1, "long_view": 1, "play_time_ms": 30_000},
    ROW | {"is_click": 1, "long_view": 1, "play_time_ms": 30_000},  # a repeated row
    ROW | {"user_id": 2, "video_id": 11, "time_ms": T0 + 5, "is_click": 1, "duration_ms": 4_000},
    ROW | {"user_id": 2, "video_id": 10, "time_ms": T0 + 9, "is_click": 1, "duration_ms": -3},
    ROW | {"user_id": 3, "video_id": 11, "time_ms": T0 + 100_000, "tab": 4},
]
VIDEOS = [
    {"video_id": 10, "author_id": 7.0, "upload_dt": "2022-04-10", "video_duration": 87_433.0,
     "tag": "1,62"},
    {"video_id": 11, "author_id": 8.0, "upload_dt": "2022-04-11", "video_duration": None,
     "tag": None},
]  # fmt: skip
USERS = [
    {"user_id": 1, "range": "500+", "onehot": 2.0},
    {"user_id": 2, "range": "0", "onehot": None},
]
HISTORY = [{"user_id": 1, "watch_seq": [10, 10, 11]}, {"user_id": 9, "watch_seq": [11]},
           {"user_id": 4, "watch_seq": []}]  # fmt: skip


def tables(folder: Path, **changes: list[dict[str, Any]] | None) -> Path:
    """A folder with the four tables, with changes; None leaves one out."""
    rows = {
        "impressions": LOG,
        "videos": VIDEOS,
        "users": USERS,
        "user_history_before_20220425": HISTORY,
    } | changes
    folder.mkdir(exist_ok=True)
    for name, table in rows.items():
        if table is not None:
            pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    return folder


def imported(tmp_path: Path, source: Path, **config: Any) -> list[LogRecord]:
    """Records of the imported log, in its order."""
    out = tmp_path / "log.parquet"
    import_kuairand(source, out, KuaiRandImportConfig(**config))
    return [
        LogRecord(batch.tp.topic, batch.tp.partition, int(o), int(t), key, value)
        for chunk in RecordLog(out).batches(1)
        for batch in chunk
        for o, t, key, value in zip(
            batch.offset_n, batch.timestamp_ms_n, batch.keys, batch.values, strict=True
        )
    ]


def messages(records: list[LogRecord], topic: str) -> list[dict[str, Any]]:
    return [msgpack.unpackb(r.value) for r in records if r.topic == topic and r.value]


def test_impressions_carry_their_users_static_fields(tmp_path: Path) -> None:
    records = imported(tmp_path, tables(tmp_path / "in"), partitions=1)
    shown = messages(records, "impressions")
    assert [m["type"] for m in shown] == ["impression"] * 5
    assert [(m["user_id"], m["ts_ms"], m["items"]) for m in shown[:1]] == [
        (1, T0, [{"item_id": 10, "position": 0}])
    ]
    assert [m["context"] for m in shown] == [
        {"tab": 1, "range": "500+", "onehot": 2},
        {"tab": 1, "range": "500+", "onehot": 2},
        {"tab": 1, "range": "0"},
        {"tab": 1, "range": "0"},
        {"tab": 4},
    ]
    assert isinstance(shown[0]["context"]["onehot"], int)


def test_repeated_rows_repeat_requests_and_others_do_not(tmp_path: Path) -> None:
    shown = messages(imported(tmp_path, tables(tmp_path / "in"), partitions=1), "impressions")
    requests = [m["request_id"] for m in shown]
    assert requests[0] == requests[1]
    assert len(set(requests)) == 4
    assert all(0 < request < 2**63 for request in requests)


def test_clicks_come_after_seven_seconds_or_a_shorter_video(tmp_path: Path) -> None:
    records = imported(tmp_path, tables(tmp_path / "in"), partitions=1)
    clicks = [m for m in messages(records, "clicks") if m["type"] == "click"]
    shown = {m["request_id"]: m for m in messages(records, "impressions")}
    found = sorted(
        (m["kind"], m["user_id"], m["item_id"], m["ts_ms"] - shown[m["request_id"]]["ts_ms"])
        for m in clicks
    )
    assert found == [
        ("click", 1, 10, 7_000),
        ("click", 1, 10, 7_000),
        ("click", 2, 10, 7_000),
        ("click", 2, 11, 4_000),
        ("long_view", 1, 10, 30_000),
        ("long_view", 1, 10, 30_000),
    ]


def test_histories_are_organic_and_before_everything(tmp_path: Path) -> None:
    records = imported(tmp_path, tables(tmp_path / "in"), partitions=1)
    organic = [m for m in messages(records, "clicks") if m["type"] == "click_columns"]
    columns = [m["columns"] for m in organic]
    assert [(m["n"], c["user_id"], c["kind"]) for m, c in zip(organic, columns, strict=True)] == [
        (3, 1, "watch"),
        (1, 9, "watch"),
    ]
    times = np.concatenate([np.frombuffer(c["ts_ms"], "<i8") for c in columns])
    assert times.tolist() == [T0 - 4, T0 - 3, T0 - 2, T0 - 1]
    videos = np.concatenate([np.frombuffer(c["item_id"], "<i8") for c in columns])
    assert videos.tolist() == [10, 10, 11, 11]
    items = messages(records, "items")
    assert [m["ts_ms"] for m in items] == [T0 - 5] * 2


def test_videos_become_items(tmp_path: Path) -> None:
    items = messages(imported(tmp_path, tables(tmp_path / "in"), partitions=1), "items")
    assert {m["item_id"]: m["attributes"] for m in items} == {
        10: {
            "author_id": 7,
            "upload_dt": "2022-04-10",
            "upload_day": 19_092,
            "video_duration": 87_433,
            "video_duration_log2": 17,
            "tag": ["1", "62"],
        },
        11: {"author_id": 8, "upload_dt": "2022-04-11", "upload_day": 19_093},
    }


def test_records_stand_in_sequencer_order(tmp_path: Path) -> None:
    records = imported(tmp_path, tables(tmp_path / "in"), partitions=3)
    rank = {"items": 0, "impressions": 1, "clicks": 2}
    keys = [(r.timestamp_ms, rank[r.topic], r.partition, r.offset) for r in records]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == 2 + 5 + 6 + 2
    assert RecordLog(tmp_path / "log.parquet").ordered
    for record in records:
        assert record.key is not None
        assert record.partition == partition_of(record.key, 3)


@pytest.mark.parametrize(
    ("key", "murmur2"),  # values of the tests of Kafka's own client
    ((b"21", -973932308), (b"foobar", -790332482), (b"abc", 479470107)),
)
def test_partitions_are_those_of_kafkas_producer(key: bytes, murmur2: int) -> None:
    assert partition_of(key, 7) == (murmur2 & 0x7FFF_FFFF) % 7


def test_envelopes_pack_neighbours_of_a_partition(tmp_path: Path) -> None:
    source = tables(tmp_path / "in")
    single = imported(tmp_path, source, partitions=1)
    packed = imported(tmp_path, source, partitions=1, envelope=2)
    shown = [r for r in packed if r.topic == "impressions"]
    assert [r.key for r in shown] == [None] * 3
    bodies = [event for m in messages(packed, "impressions") for event in m["events"]]
    expected = messages(single, "impressions")
    assert [{"v": 1, "type": "impression"} | body for body in bodies] == expected
    assert [r.timestamp_ms for r in shown] == [T0, T0 + 9, T0 + 100_000]
    clicks = messages(packed, "clicks")
    assert [m["type"] for m in clicks] == ["click_columns"] * 2 + ["clicks"] * 3


def test_only_two_tables_are_needed(tmp_path: Path) -> None:
    source = tables(tmp_path / "in", users=None, user_history_before_20220425=None)
    records = imported(tmp_path, source, partitions=1)
    assert {m["type"] for m in messages(records, "clicks")} == {"click"}
    assert messages(records, "impressions")[0]["context"] == {"tab": 1}
    assert messages(records, "items")[0]["ts_ms"] == T0 - 1


def test_a_span_can_be_cut(tmp_path: Path) -> None:
    source = tables(tmp_path / "in")
    records = imported(tmp_path, source, partitions=1, from_ms=T0 + 5, to_ms=T0 + 100_000)
    assert [m["ts_ms"] for m in messages(records, "impressions")] == [T0 + 5, T0 + 9]
    first = messages(records, "clicks")[0]["columns"]["ts_ms"]
    assert int.from_bytes(first[:8], "little") == T0 + 5 - 4


@pytest.mark.parametrize(
    ("changes", "text"),
    (
        ({"impressions": None}, "impressions.parquet: there is no such file"),
        ({"videos": None}, "videos.parquet: there is no such file"),
        ({"impressions": [{"user_id": 1}]}, "no column 'video_id'"),
        ({"impressions": [ROW | {"time_ms": None}]}, "'time_ms' has empty cells"),
        ({"user_history_before_20220503": HISTORY}, "expected at most one"),
    ),
)
def test_unusable_tables_are_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    source = tables(tmp_path / "in", **changes)
    with pytest.raises(InputError, match=text):
        import_kuairand(source, tmp_path / "log.parquet", KuaiRandImportConfig())
    assert not (tmp_path / "log.parquet").exists()


def test_a_span_without_impressions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row in the span"):
        import_kuairand(
            tables(tmp_path / "in"), tmp_path / "o", KuaiRandImportConfig(from_ms=T0 + 10**9)
        )


@pytest.mark.parametrize(
    "config", ({"partitions": 0}, {"envelope": 0}, {"envelope": 10**6}, {"from_ms": 5, "to_ms": 5})
)
def test_wrong_numbers_are_refused(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least|must"):
        KuaiRandImportConfig(**config)


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    source = tables(tmp_path / "in")
    out = tmp_path / "deep" / "log.parquet"
    result = CliRunner().invoke(command, ["kuairand", str(source), str(out), "--to", str(T0 + 10)])
    assert result.exit_code == 0, result.output
    assert "4 impressions, 6 clicks, 4 organic events, 2 items" in result.output
    assert len(RecordLog(out)) == 2 + 4 + 6 + 2


def test_the_command_refuses_an_unwritable_place(tmp_path: Path) -> None:
    source = tables(tmp_path / "in")
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(command, ["kuairand", str(source), str(tmp_path / "file" / "log")])
    assert isinstance(result.exception, InputError)
    assert "cannot be written" in str(result.exception)
