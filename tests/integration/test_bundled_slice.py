"""The bundled slice, imported and validated whole: the numbers that everything is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.demo import SLICE
from stream.importers.kuairand import KuaiRandImportConfig, import_kuairand
from stream.record_log import RecordLog
from stream.validate import ValidateConfig, validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out: Path = tmp_path_factory.mktemp("slice") / "log.parquet"
    import_kuairand(SLICE, out, KuaiRandImportConfig(envelope=100))
    windows = {"click": 60_000, "long_view": 900_000}
    return validate(RecordLog(out), ValidateConfig(windows_ms=windows))


def test_impressions(report: dict[str, Any]) -> None:
    facts = report["impressions"]
    assert (facts["events"], facts["distinct"], facts["duplicates"]) == (135_307, 131_352, 3_955)
    assert (facts["users"], facts["items"]) == (23_042, 5_878)


def test_clicks(report: dict[str, Any]) -> None:
    facts = report["clicks"]
    assert facts["by_kind"]["click"]["positives"] == 59_306
    assert facts["by_kind"]["long_view"]["positives"] == 41_787
    assert facts["by_kind"]["long_view"]["outside_window"] == 0
    assert facts["orphans"] == 0


def test_organic_events(report: dict[str, Any]) -> None:
    facts = report["clicks"]
    assert (facts["organic"], facts["organic_duplicates"]) == (817_187, 0)
    assert facts["organic_by_kind"] == {"watch": 817_187}


def test_nothing_is_rejected_and_hardly_anything_behind(report: dict[str, Any]) -> None:
    assert report["rejected"]["total"] == 0
    assert all(p["late"] == 0 for p in report["disorder"]["by_partition"].values())
    assert report["items"] == {"described": 7_583, "shown": 5_878, "shown_without_description": 0}
