"""Shared samples of public data sets: imported whole, counted independently, replayed.

Figures of what a replay reaches are bounds with room, not records of one run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stream.cli import run
from stream.importers.globo import import_globo
from stream.importers.import_config import ImportConfig
from stream.importers.mind import import_mind
from stream.importers.movielens import SHIFT_MS, MovieLensImportConfig, import_movielens
from stream.importers.open_bandit import OpenBanditImportConfig, import_open_bandit
from stream.record_log import RecordLog
from stream.times import time_ms
from stream.validate import ValidateConfig, validate
from tests.support.imported import shared_data

pytestmark = pytest.mark.slow
WINDOWS = ValidateConfig(windows_ms={"click": 60_000})


def checked(log: Path) -> dict[str, Any]:
    """The report on a log that must have nothing wrong with it."""
    report = validate(RecordLog(log), WINDOWS)
    assert report["rejected"]["total"] == 0
    assert report["clicks"]["orphans"] == report["clicks"]["duplicates"] == 0
    assert report["disorder"]["behind"] == 0
    return report


def normalized_entropy(log: Path, preset: str, folder: Path) -> float:
    """Log loss of a replay over that of the base rate of all rows, which no run can know."""
    assert run(["replay", str(log), "--config", preset, "--report", str(folder)]) == 0
    rows = pq.read_table(folder / "predictions.parquet", columns=["logit", "label"])
    logit_n = rows["logit"].to_numpy().astype(np.float64)
    label_n = rows["label"].to_numpy()
    assert np.isfinite(logit_n).all()
    loss = float((np.logaddexp(0, logit_n) - label_n * logit_n).mean())
    rate = float(label_n.mean())
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert json.loads((folder / "report.json").read_text())["samples"] == len(logit_n)
    return loss / entropy


def test_mind(tmp_path: Path) -> None:
    source, log = shared_data("mind-5k"), tmp_path / "log.parquet"
    rows = pq.read_table(source / "impressions.parquet").to_pylist()
    made = import_mind(source, log, ImportConfig(envelope=100))
    report = checked(log)
    shown, clicks = report["impressions"], report["clicks"]
    assert made.impressions == shown["distinct"] == sum(len(r["candidates"]) for r in rows)
    assert shown["requests"] == len(rows) == 5_000
    assert shown["items"] == len({item for r in rows for item in r["candidates"]})
    users = {r["user_id"]: r["history"] for r in rows}
    assert shown["users"] == len(users)
    assert clicks["organic"] == made.organic == sum(map(len, users.values()))
    assert clicks["by_kind"]["click"]["positives"] == sum(sum(r["clicked"]) for r in rows) == 7_542
    assert report["items"]["described"] == made.items == 2_000
    two_days = ImportConfig(envelope=100, to_ms=time_ms("2019-11-11"))
    import_mind(source, log, two_days)
    assert normalized_entropy(log, "mind", tmp_path / "report") < 0.95


def test_open_bandit(tmp_path: Path) -> None:
    source, log = shared_data("obd-small"), tmp_path / "log.parquet"
    rows = pq.read_table(source / "impressions.parquet").to_pylist()
    made = import_open_bandit(source, log, OpenBanditImportConfig(envelope=100))
    report = checked(log)
    shown = report["impressions"]
    assert made.impressions == shown["distinct"] == len(rows) == 40_000
    assert shown["users"] == len({tuple(r[f"user_feature_{i}"] for i in range(4)) for r in rows})
    assert shown["items"] == len({(r["campaign"], r["item_id"]) for r in rows}) == 80
    assert shown["positions"] == {
        str(p): sum(r["position"] == p + 1 for r in rows) for p in range(3)
    }
    assert report["clicks"]["by_kind"]["click"]["positives"] == sum(r["click"] for r in rows) == 207
    # 207 clicks in 40,000 rows teach next to nothing: no model is expected to beat their rate.
    assert normalized_entropy(log, "open-bandit", tmp_path / "report") < 1.03
    result = tmp_path / "ope.json"
    assert run(["ope", str(log), "--logged", "context.policy=random", "--target",
                "context.policy=bts", "--cell", "context.campaign", "--cell",
                "impression.position", "--out", str(result)]) == 0  # fmt: skip
    found = json.loads(result.read_text())
    own = [r["click"] for r in rows if r["policy"] == "bts"]
    assert found["on_policy"]["value"] == pytest.approx(sum(own) / len(own))
    for name in ("ips", "snips", "dr"):
        assert found[name]["low"] < found["on_policy"]["value"] < found[name]["high"]
    assert found["weights"]["mean"] == pytest.approx(1, abs=0.05)


def test_movielens(tmp_path: Path) -> None:
    source, log = shared_data("ml100k-multimodal-dev"), tmp_path / "log.parquet"
    texts = shared_data("ml-items") / "items.parquet"
    rows = pq.read_table(source / "ratings.parquet").to_pylist()
    made = import_movielens(source, log, MovieLensImportConfig(envelope=100, texts=texts))
    report = checked(log)
    shown = report["impressions"]
    assert made.impressions == shown["distinct"] == len(rows) == 77_985
    assert shown["users"] == len({r["user_id"] for r in rows})
    assert shown["items"] == len({r["item_id"] for r in rows})
    liked = sum(r["rating"] >= 4 for r in rows)
    assert report["clicks"]["by_kind"]["click"]["positives"] == liked == 43_100
    assert report["clicks"]["by_kind"]["dislike"]["distinct"] == len(rows) - liked
    assert report["items"]["shown_without_description"] == 0
    end_ms = sorted(r["ts"] for r in rows)[20_000] * 1_000 + SHIFT_MS
    import_movielens(source, log, MovieLensImportConfig(envelope=100, to_ms=end_ms))
    assert normalized_entropy(log, "movielens", tmp_path / "report") < 0.97


def test_globo(tmp_path: Path) -> None:
    source, log = shared_data("globo-clicks-dev"), tmp_path / "log.parquet"
    columns = ["user_id", "click_article_id", "click_timestamp"]
    rows = pq.read_table(source / "clicks.parquet", columns=columns)
    assert len(rows) == 780_685
    end_ms = time_ms("2017-10-02T12:00")
    rows = rows.filter(pc.less(rows["click_timestamp"], end_ms))
    import_globo(source, log, ImportConfig(envelope=1_000, to_ms=end_ms))
    clicks = checked(log)["clicks"]
    assert clicks["organic"] == len(rows) > 50_000
    assert clicks["organic_users"] == len(set(rows["user_id"].to_pylist()))
    assert clicks["organic_items"] == len(set(rows["click_article_id"].to_pylist()))
    assert clicks["organic_duplicates"] == 0
    assert run(["replay", str(log), "--report", str(tmp_path / "report")]) == 2
