"""The report on a record log: every number on a log of which each event is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from embeddings.vector_codec import encode_item_vector
from infra.errors import InputError
from stream.codec_write import encode_envelope, encode_event, encode_watermark, item_body
from stream.commands.validate import command
from stream.events import TopicRole
from stream.record_log import RecordLog, RecordLogUnusable, RecordLogWriter
from stream.validate import ValidateConfig, validate
from tests.support.records import T0, click, impression

PARTITIONS = {"impressions": 2, "clicks": 1, "items": 1, "item-vectors": 1, "other": 1}


def shown(request: int, item: int, ms: int, position: int = 0, **more: Any) -> bytes:
    body = impression(
        request_id=request, ts_ms=T0 + ms, items=[{"item_id": item, "position": position}], **more
    )
    return encode_event("impression", body)


def clicked(request: int | None, item: int, ms: int, kind: str = "click") -> bytes:
    return encode_event("click", click(request_id=request, item_id=item, ts_ms=T0 + ms, kind=kind))


RECORDS: list[tuple[str, int, bytes | None]] = [
    ("items", 0, encode_event("item", item_body(item_id=1, ts_ms=T0))),
    ("items", 0, encode_event("item", {"item_id": 2})),
    ("item-vectors", 0, encode_item_vector(item_id=1, ts_ms=T0, encoder="e", vector=np.ones(2))),
    ("item-vectors", 0, b"junk"),
    ("item-vectors", 0, None),
    ("impressions", 0, shown(1, 1, 10_000)),
    ("impressions", 0, shown(1, 1, 10_000)),  # a duplicate
    ("impressions", 0, shown(2, 2, 9_000, position=1, surprise=1)),  # 1 s behind
    ("impressions", 0, shown(3, 3, 1_000)),  # 9 s behind: late
    ("impressions", 1, shown(4, 1, 2_000)),
    ("impressions", 1, None),
    ("impressions", 1, encode_watermark(T0 + 50_000)),
    ("clicks", 0, clicked(1, 1, 15_000)),
    ("clicks", 0, clicked(1, 1, 16_000)),  # a duplicate, by request, item and kind
    ("clicks", 0, clicked(1, 1, 16_000, "like")),
    ("clicks", 0, clicked(2, 2, 80_000)),  # outside the window of 60 s
    ("clicks", 0, clicked(9, 1, 80_000)),  # an orphan
    ("clicks", 0, clicked(1, 2, 80_000)),  # an orphan: of that request, but not that item
    ("clicks", 0, clicked(None, 1, 80_000, "watch")),
    ("clicks", 0, encode_envelope("clicks", [click(request_id=None, ts_ms=T0 + 80_000)] * 2)),
    ("other", 0, b"anything"),
]


def log_of(path: Path, records: list[tuple[str, int, bytes | None]], **partitions: int) -> Path:
    offsets: dict[tuple[str, int], int] = {}
    with RecordLogWriter(path, partitions or PARTITIONS, ordered=True) as log:
        for topic, partition, value in records:
            offset = offsets[topic, partition] = offsets.get((topic, partition), -1) + 1
            log.write(topic, partition, offset, T0 + 80_000, None, value)
    return path


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    log = RecordLog(log_of(tmp_path / "log.parquet", RECORDS))
    config = ValidateConfig(
        windows_ms={"click": 60_000}, paths=("context.tab", "context.absent", "user")
    )
    return validate(log, config)


def test_events_and_rejects_are_counted(report: dict[str, Any]) -> None:
    assert report["events"] == {
        "clicks": {"click": 6, "organic": 3},
        "impressions": {"impression": 5, "rejected": 1, "watermark": 1},
        "items": {"item": 1},
        "item-vectors": {"item_vector": 2},
    }
    assert report["ignored_topics"] == {"other": 1}
    assert report["rejected"]["total"] == 3
    assert report["rejected"]["by_topic"] == {
        "impressions": {"null_value": 1},
        "items": {"missing_field": 1},
        "item-vectors": {"malformed": 1},
    }
    assert report["rejected"]["examples"][-1] == {
        "topic": "impressions",
        "partition": 1,
        "offset": 1,
        "index": -1,
        "reason": "null_value",
        "detail": "the record has no value",
    }


def test_impressions_and_positions(report: dict[str, Any]) -> None:
    facts = report["impressions"]
    assert (facts["events"], facts["distinct"], facts["duplicates"]) == (5, 4, 1)
    assert (facts["requests"], facts["users"], facts["items"]) == (4, 1, 3)
    assert (facts["from_ms"], facts["to_ms"]) == (T0 + 1_000, T0 + 10_000)
    assert facts["positions"] == {"0": 3, "1": 1}


def test_joins_orphans_and_labels(report: dict[str, Any]) -> None:
    facts = report["clicks"]
    assert (facts["events"], facts["distinct"], facts["duplicates"]) == (6, 5, 1)
    assert facts["orphans"] == 2
    assert (facts["organic"], facts["organic_duplicates"]) == (3, 1)
    assert facts["organic_by_kind"] == {"click": 2, "watch": 1}
    clicks, likes = facts["by_kind"]["click"], facts["by_kind"]["like"]
    assert (clicks["distinct"], clicks["joined"], clicks["outside_window"]) == (4, 2, 1)
    assert (clicks["join_rate"], clicks["positives"], clicks["label_share"]) == (0.5, 1, 0.25)
    assert clicks["delay_max_ms"] == 71_000
    assert (likes["positives"], likes["window_ms"]) == (1, 900_000)


def test_disorder_and_lateness(report: dict[str, Any]) -> None:
    facts = report["disorder"]
    assert (facts["behind"], facts["lag_max_ms"]) == (2, 9_000)
    first = facts["by_partition"]["impressions/0"]
    assert (first["events"], first["behind"], first["late"], first["late_share"]) == (4, 2, 1, 0.25)
    assert facts["by_partition"]["clicks/0"]["behind"] == 0


def test_fields_and_items(report: dict[str, Any]) -> None:
    assert report["fields"] == {"context.tab": 5}
    assert report["missing_fields"] == ["context.absent"]
    assert report["unknown_fields"] == {"surprise": 1}
    assert report["items"] == {"described": 1, "shown": 3, "shown_without_description": 2}


def test_a_log_without_usable_impressions_is_refused(tmp_path: Path) -> None:
    bad = log_of(tmp_path / "a.parquet", [("impressions", 0, b"junk")])
    with pytest.raises(InputError, match=r"no usable impression in it \(1 malformed"):
        validate(RecordLog(bad), ValidateConfig())
    other = log_of(tmp_path / "b.parquet", [], clicks=1)
    with pytest.raises(InputError, match="no usable click in it"):
        validate(RecordLog(other), ValidateConfig())
    items = log_of(tmp_path / "c.parquet", [], items=1)
    with pytest.raises(InputError, match="no topic of impressions or clicks, only items"):
        validate(RecordLog(items), ValidateConfig())


def test_clicks_alone_are_a_log(tmp_path: Path) -> None:
    organic, orphan = clicked(None, 1, 0), clicked(5, 1, 0)
    rows = [("clicks", 0, organic), ("clicks", 0, orphan), ("clicks", 0, organic)]
    report = validate(RecordLog(log_of(tmp_path / "a.parquet", rows, clicks=1)), ValidateConfig())
    clicks, shown = report["clicks"], report["impressions"]
    assert (clicks["organic"], clicks["organic_duplicates"], clicks["orphans"]) == (2, 1, 1)
    assert (clicks["organic_users"], clicks["organic_items"]) == (1, 1)
    assert clicks["by_kind"]["click"]["label_share"] is None
    assert (shown["events"], shown["from_ms"], shown["to_ms"]) == (0, None, None)


def test_topics_may_have_other_names(tmp_path: Path) -> None:
    path = log_of(tmp_path / "a.parquet", [("shown", 0, shown(1, 1, 0))], shown=1)
    config = ValidateConfig(topics={"shown": TopicRole.IMPRESSIONS})
    assert validate(RecordLog(path), config)["impressions"]["distinct"] == 1


def test_the_command_prints_tables_and_json(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log.parquet", RECORDS)
    shown_text = CliRunner().invoke(command, [str(path)])
    assert shown_text.exit_code == 0, shown_text.output
    for words in ("null_value", "clicks, orphans", "late share", "unknown field surprise"):
        assert words in shown_text.output
    as_json = CliRunner().invoke(command, [str(path), "--json"])
    assert json.loads(as_json.output)["impressions"]["distinct"] == 4


def test_names_in_a_log_are_not_markup(tmp_path: Path) -> None:
    path = log_of(
        tmp_path / "log.parquet",
        [("impressions", 0, shown(1, 1, 0)), ("clicks", 0, clicked(1, 1, 1, "[/red]"))],
    )
    result = CliRunner().invoke(command, [str(path)])
    assert result.exit_code == 0, result.output
    assert "[/red]" in result.output


def test_the_command_reads_a_configuration(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log.parquet", RECORDS)
    file = tmp_path / "config.toml"
    file.write_text(
        "[stream]\nlateness_ms = 500\n[label.click]\nwindow_ms = 60000\n"
        '[[feature]]\nname = "lang"\npath = "context.language"\n'
    )
    result = CliRunner().invoke(command, [str(path), "--config", str(file), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["disorder"]["by_partition"]["impressions/0"]["late"] == 2
    assert found["missing_fields"] == ["context.language"]
    assert found["clicks"]["by_kind"]["click"]["positives"] == 1


def test_gaps_that_the_clock_follows_late_are_told(tmp_path: Path) -> None:
    """Requests three hours apart: from the second gap on, the clock is one gap behind."""
    hours = [-9, -6, -3, 0]
    path = log_of(
        tmp_path / "log.parquet",
        [("impressions", 0, shown(i, 1, h * 3_600_000, user_id=i)) for i, h in enumerate(hours)],
    )
    log = RecordLog(path)
    found = validate(log, ValidateConfig(max_future_ms=10**9))["jumps"]
    assert (found["events"], found["cut"]) == (4, 3)
    assert found["behind_max_ms"] == 3 * 10_800_000 - 3 * 600_000
    found = validate(log, ValidateConfig())["jumps"]
    assert (found["cut"], found["behind_max_ms"]) == (3, 10_800_000 - 600_000)
    usual = validate(log, ValidateConfig(max_jump_ms=10_800_000))["jumps"]
    assert (usual["cut"], usual["behind_max_ms"], usual["advice"]) == (0, 0, None)
    text = CliRunner().invoke(command, [str(path)]).output
    assert "warning: 3 of 4 events" in text
    assert "stream.max_jump_ms" in text


def test_the_command_refuses_what_is_no_log(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "absent")])
    assert isinstance(result.exception, RecordLogUnusable)
