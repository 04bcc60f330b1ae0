"""`millrace replay`: its report, its exit codes, and what its options do."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream import cli
from stream.commands.replay import offset_minutes, time_ms
from stream.record_log import RecordLogWriter
from tests.support.logs import HOUR_MS, write_log
from tests.support.replays import ranked_config, replay, write_config
from tests.support.streams import T0, small_config

KEYS = {
    "samples", "positives", "negatives", "open", "evicted", "duplicates", "rejected", "too_late",
    "late_clicks", "orphan_clicks", "idle_advances", "late_vectors", "predict_at", "from_ms",
    "to_ms", "evaluated", "metrics", "daily", "samples_per_s", "events_per_s", "config", "seed",
    "version",
}  # fmt: skip
METRICS = {"log_loss", "ne", "auc", "gauc_user_day", "gauc_request", "calibration", "ctr"}
SAMPLES = 500


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "a.parquet", samples=SAMPLES)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "c.toml", ranked_config())


def run(*arguments):
    return cli.run(["replay", *map(str, arguments)])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def ran(log, config, tmp_path_factory):
    """A run with rates as its learner, its report and its predictions."""
    folder = tmp_path_factory.mktemp("report")
    assert run(log, "--config", config, "--report", folder, "--set", "ranker.name=base_rate") == 0
    return report_of(folder), pq.read_table(folder / "predictions.parquet")


def test_the_report_has_all_keys(ran):
    report, _ = ran
    assert report.keys() >= KEYS
    assert report["metrics"].keys() >= METRICS
    assert report["evaluated"].keys() == {"samples", "positives", "from_ms", "to_ms"}
    assert report["config"]["ranker"]["name"] == "base_rate"
    assert report["predict_at"] == "impression"
    assert report["version"]
    assert report["samples_per_s"] > 0
    assert report["events_per_s"] > 0
    assert report["idle_advances"] == report["late_vectors"] == 0


def test_what_is_undefined_is_null_with_a_reason(ran):
    report, _ = ran
    for name, value in report["metrics"].items():
        assert (value is None) == (name in report["reasons"]), name
    for day in report["daily"]:
        for name, value in day.items():
            assert (value is None) == (f"daily.{day['date']}.{name}" in report["reasons"]), name
    assert report["metrics"]["gauc_request"] is None
    assert "one item" in report["reasons"]["gauc_request"]


def test_nothing_gets_lost(ran):
    report, predictions = ran
    assert report["samples"] == SAMPLES == len(predictions)
    for kind in ("click", "like"):
        settled = report["positives"][kind] + report["negatives"][kind]
        rest = report["open"][kind] + report["evicted"][kind]
        assert report["admitted"] == settled + rest
        assert settled == report["samples"] + report["waiting_for_batch"]
    learned = report["learned"] + report["sampled_out"] + report["skipped_nonfinite"]
    assert learned == report["samples"]
    assert report["open"] == {"click": 0, "like": 0}
    assert report["duplicates"] > 0
    assert report["positives"]["click"] == sum(predictions["label"].to_pylist())
    assert report["joined_clicks"]["click"] == report["positives"]["click"]


def test_predictions_are_those_of_the_samples(ran):
    report, predictions = ran
    names = ["request_id", "item_id", "user_id", "ts_ms", "label", "logit", "batch", "weights_ms",
             "history_len", "has_vector"]  # fmt: skip
    assert predictions.column_names == names
    assert sorted(predictions["request_id"].to_pylist()) == list(range(SAMPLES))
    assert set(predictions["item_id"].to_pylist()) <= set(range(40))
    times = predictions["ts_ms"].to_numpy()
    assert report["from_ms"] == times.min() == report["evaluated"]["from_ms"]
    assert report["to_ms"] == times.max()
    assert np.isfinite(predictions["logit"].to_numpy()).all()


def test_evaluate_from_narrows_metrics_and_counts_nothing_else(log, config, ran, tmp_path):
    whole, predictions = ran
    middle = int(np.median(predictions["ts_ms"].to_numpy()))
    at = np.datetime64(middle + 8 * HOUR_MS, "ms").astype(str)
    assert run(log, "--config", config, "--report", tmp_path, "--evaluate-from", at,
               "--timezone", "+08:00", "--set", "ranker.name=base_rate") == 0  # fmt: skip
    report = report_of(tmp_path)
    kept = predictions["ts_ms"].to_numpy() >= middle
    assert report["evaluated"]["samples"] == kept.sum() < whole["samples"]
    assert report["evaluated"]["from_ms"] >= middle > report["from_ms"]
    assert report["samples"] == whole["samples"]
    assert report["metrics"]["log_loss"] != whole["metrics"]["log_loss"]


def test_an_empty_evaluated_span_is_null_with_reasons(log, config, tmp_path):
    assert run(log, "--config", config, "--report", tmp_path, "--evaluate-from", "2050-01-01",
               "--set", "ranker.name=base_rate") == 0  # fmt: skip
    report = report_of(tmp_path)
    assert report["evaluated"] == {"samples": 0, "positives": 0, "from_ms": None, "to_ms": None}
    assert set(report["metrics"].values()) == {None}
    assert report["reasons"].keys() >= METRICS
    assert report["daily"] == []


def test_days_are_those_of_the_timezone(log, config, ran, tmp_path):
    whole, _ = ran
    assert run(log, "--config", config, "--report", tmp_path, "--timezone", "+14:00",
               "--set", "ranker.name=base_rate") == 0  # fmt: skip
    moved = report_of(tmp_path)
    assert sum(d["samples"] for d in moved["daily"]) == SAMPLES
    first = np.datetime64(T0, "ms")
    assert whole["daily"][0]["date"] == str(first.astype("datetime64[D]"))
    assert moved["daily"][0]["date"] == str((first + 14 * HOUR_MS).astype("datetime64[D]"))


def test_predict_at_settle_is_said_and_differs(log, config, ran, tmp_path):
    assert run(log, "--config", config, "--report", tmp_path, "--set", "ranker.name=base_rate",
               "--set", "stream.predict_at=settle") == 0  # fmt: skip
    report = report_of(tmp_path)
    assert report["predict_at"] == "settle"
    assert report["samples"] == ran[0]["samples"]
    assert report["metrics"]["log_loss"] != ran[0]["metrics"]["log_loss"]


def test_chunks_change_nothing(log, tmp_path):
    """Report, predictions and counts of a run do not depend on how records are cut."""
    config = small_config(batch_size=64)
    tables = [
        pq.read_table(replay(config, (log,), tmp_path / str(n), chunk_records=n).predictions)
        for n in (7, 4_096)
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("none.parquet",), "there is no such file"),
        (("LOG", "--timezone", "Mars/Olympus"), "expected an offset such as +08:00"),
        (("LOG", "--evaluate-from", "yesterday"), "expected an ISO time"),
        (("LOG", "--set", "stream.latenes_ms=1"), "did you mean 'lateness_ms'?"),
        (("LOG", "--set", "ranker.name=id_contents"), "did you mean 'id_content'?"),
        (("LOG", "--set", "topics.clicks=taps"), "has no topic 'taps'"),
        (("LOG", "--config", "none.toml"), "cannot be read"),
    ),
)
def test_wrong_input_is_one_line_and_code_two(log, config, tmp_path, capsys, arguments, words):
    given = [str(log) if a == "LOG" else a for a in arguments]
    if "--config" not in given:
        given += ["--config", str(config)]
    assert run(*given, "--report", tmp_path / "r") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "r" / "report.json").exists()


def test_a_clock_that_follows_late_is_told(log, config, tmp_path, capsys):
    """A limit below the usual step between two events."""
    for jump, told in ((600_000, False), (1, True)):
        given = [log, "--config", config, "--report", tmp_path / "r"]
        given += ["--set", "ranker.name=base_rate", "--set", f"stream.max_jump_ms={jump}"]
        assert run(*given) == 0
        assert ("set stream.max_jump_ms" in capsys.readouterr().err) == told
        assert (report_of(tmp_path / "r")["clock_jumps"] > SAMPLES / 100) == told


def test_the_configuration_that_is_printed_loads_again(log, config, tmp_path, capsys):
    assert run(log, "--config", config, "--report", tmp_path / "r", "--print-config") == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert run(log, "--config", printed, "--report", tmp_path / "r", "--print-config") == 0
    assert capsys.readouterr().out == printed.read_text()
    assert not (tmp_path / "r").exists()


def test_a_log_without_impressions_gives_an_empty_report(config, tmp_path):
    with RecordLogWriter(tmp_path / "e.parquet", {"impressions": 1, "clicks": 1}, ordered=True):
        pass
    assert run(tmp_path / "e.parquet", "--config", config, "--report", tmp_path / "r") == 0
    report = report_of(tmp_path / "r")
    assert report["samples"] == report["events"] == 0
    assert report["from_ms"] is None
    assert pq.read_table(tmp_path / "r" / "predictions.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("text", "minutes"),
    ((None, 480), ("+08:00", 480), ("-03:30", -210), ("UTC", 0), ("Asia/Shanghai", 480)),
)
def test_timezones(text, minutes):
    assert offset_minutes(text, small_config(timezone_offset_minutes=480)) == minutes


def test_times_without_a_zone_are_those_of_the_option():
    assert time_ms("2022-04-30T00:00", 480) == 1_651_248_000_000
    assert time_ms("2022-04-30T00:00+00:00", 480) == 1_651_276_800_000
    assert time_ms(None, 0) is None
