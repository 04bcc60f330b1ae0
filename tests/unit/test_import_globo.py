"""Globo's clicks to a record log of organic clicks, on tables of a few rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.cli import run
from stream.commands.import_ import command
from stream.importers.globo import import_globo
from stream.importers.import_config import ImportConfig
from stream.record_log import RecordLog
from stream.validate import ValidateConfig, validate
from tests.support.imported import messages

T0 = 1_506_902_403_367
CLICKS = [
    {"user_id": u, "session_id": 1, "click_article_id": a, "click_timestamp": T0 + ms}
    for u, a, ms in ((1, 7, 0), (2, 8, 5), (1, 9, 3))
]


def parquet(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(CLICKS), folder / "clicks.parquet")
    return folder


def test_every_click_is_organic_and_in_order(tmp_path: Path) -> None:
    made = import_globo(parquet(tmp_path / "in"), tmp_path / "log", ImportConfig(partitions=1))
    assert (made.organic, made.clicks, made.impressions) == (3, 0, 0)
    assert messages(tmp_path / "log", "clicks") == [
        {"v": 1, "type": "click", "item_id": i, "user_id": u, "ts_ms": T0 + ms, "kind": "click"}
        for u, i, ms in ((1, 7, 0), (1, 9, 3), (2, 8, 5))
    ]


@pytest.mark.parametrize("inside", ("", "clicks"))
def test_the_publishers_hours_give_the_same_log(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "hours" / inside
    folder.mkdir(parents=True)
    for hour, rows in enumerate((CLICKS[:1], CLICKS[1:])):
        pa_csv.write_csv(pa.Table.from_pylist(rows), folder / f"clicks_hour_{hour:03d}.csv")
    import_globo(tmp_path / "hours", tmp_path / "a", ImportConfig(partitions=2))
    import_globo(parquet(tmp_path / "in"), tmp_path / "b", ImportConfig(partitions=2))
    assert messages(tmp_path / "a", "clicks") == messages(tmp_path / "b", "clicks")


def test_the_log_can_be_validated(tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = CliRunner().invoke(command, ["globo", str(parquet(tmp_path / "in")), str(log)])
    assert "0 impressions, 0 clicks, 3 organic events, 0 items" in result.output
    clicks = validate(RecordLog(log), ValidateConfig())["clicks"]
    assert (clicks["organic"], clicks["organic_users"], clicks["organic_items"]) == (3, 2, 3)
    assert run(["validate", str(log)]) == 0


def test_unusable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clicks.parquet: there is no such file"):
        import_globo(tmp_path, tmp_path / "log", ImportConfig())
    with pytest.raises(InputError, match="no row in the span; it holds"):
        import_globo(parquet(tmp_path / "in"), tmp_path / "log", ImportConfig(from_ms=T0 + 10**6))
