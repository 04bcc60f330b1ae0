"""`millrace compare`: arms on one log, to a page, a report and a sentence for each pair."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream.cli import run
from stream.commands.compare import arms_of
from tests.support.replays import envelope_log, ranked_config, write_config
from tests.support.streams import T0

FROM = np.datetime64(T0 + 30_000, "ms").astype(str)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return str(envelope_log(tmp_path_factory.mktemp("log") / "log.parquet"))


@pytest.fixture
def config(tmp_path):
    return str(write_config(tmp_path / "net.toml", ranked_config()))


def test_arms_are_scored_on_the_same_rows_and_compared(log, config, tmp_path, capsys):
    report = tmp_path / "report"
    assert run(["compare", config, log, "--report", str(report), "--warm-up", "0.2",
                "--arm", "base", "ranker.name=base_rate", "--resamples", "50",
                "--arm", "late", "stream.batch_size=300", "--threads", "1"]) == 0  # fmt: skip
    whole = json.loads((report / "report.json").read_text())
    content = whole["evaluation"]
    assert [arm["name"] for arm in content["arms"]] == ["net", "base", "late"]
    assert [one["arms"] for one in whole["passes"]] == [["net", "base"], ["late"]]
    assert content["rows"] + content["warm_up_rows"] == 1_200
    pairs = {(pair["a"], pair["b"]): pair for pair in content["pairs"]}
    assert set(pairs) == {("net", "base"), ("net", "late"), ("base", "late")}
    loss = {arm["name"]: arm["metrics"]["log_loss"] for arm in content["arms"]}
    found = pairs["net", "base"]["mean"]
    assert found == pytest.approx(loss["net"] - loss["base"], abs=1e-9)
    assert pairs["net", "base"]["low"] < found < pairs["net", "base"]["high"]
    assert whole["configs"]["base"]["ranker"]["name"] == "base_rate"
    out = capsys.readouterr().out
    for pair in pairs.values():
        assert "".join(pair["decision"]["words"].split()) in "".join(out.split())
    assert "base" in (report / "report.md").read_text()
    assert "<html" in (report / "report.html").read_text()[:2_000]


def test_an_arm_against_itself_differs_by_nothing(log, config, tmp_path):
    assert run(["compare", config, config, log, "--report", str(tmp_path / "r"),
                "--resamples", "20"]) == 0  # fmt: skip
    content = json.loads((tmp_path / "r" / "report.json").read_text())["evaluation"]
    assert [arm["name"] for arm in content["arms"]] == ["net", "net 2"]
    (pair,) = content["pairs"]
    assert (pair["mean"], pair["low"], pair["high"]) == (0.0, 0.0, 0.0)
    assert pair["decision"]["winner"] is None


@pytest.mark.slow
def test_published_copies_and_placebos_are_named_and_shown(log, config, tmp_path):
    report = tmp_path / "r"
    assert run(["compare", config, log, "--report", str(report), "--resamples", "20",
                "--sync-every", "1m,never", "--placebo", "content", "--evaluate-from", FROM,
                "--permutations", "2"]) == 0  # fmt: skip
    whole = json.loads((report / "report.json").read_text())
    content = whole["evaluation"]
    assert [row["name"] for row in content["freshness"]] == ["net", "net sync 1m", "net sync never"]
    waits = [row["sync_ms"] for row in content["freshness"]]
    assert waits[:2] == [0, 60_000]
    assert waits[2] > waits[1]
    assert {(p["arm"], p["permutation"]) for p in content["placebo"]} >= {("net", 1), ("net", 2)}
    assert [one["arms"][0] for one in whole["passes"]] == [
        "net", "net placebo 1", "net placebo 2",
    ]  # fmt: skip
    alone = pq.read_table(report / "passes" / "0" / "predictions.parquet")
    assert [n for n in alone.column_names if n.startswith("logit.")] == [
        "logit.net", "logit.net sync 1m", "logit.net sync never",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["CONFIG"], "name at least one record log"),
        (["CONFIG", "LOG"], "give two configurations"),
        (["CONFIG", "LOG", "--arm", "net", "ranker.name=base_rate"], "a configuration has that"),
        (["CONFIG", "LOG", "--arm", "b", "ranker.name=bse_rate"], "did you mean 'base_rate'"),
        (["CONFIG", "LOG", "--arm", "b", "ranker.label=like"], "same ranker.label"),
        (["CONFIG", "LOG", "--sync-every", "1h"], "--sync-every needs --evaluate-from"),
        (
            ["CONFIG", "LOG", "--evaluate-from", "2022-01-01", "--sync-every", "soon"],
            "interval 'soon'",
        ),
    ),
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    log, config, tmp_path, capsys, arguments, message
):
    named = [{"CONFIG": config, "LOG": log}.get(word, word) for word in arguments]
    assert run(["compare", *named, "--report", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_arms_are_named_after_files_without_their_folders(tmp_path):
    change = tmp_path / "beh.toml"
    change.write_text("[items]\ndim = 64\n")
    arms = arms_of([f"default+{change}", f"default+simtier+{change}"], [], ())
    assert [arm.name for arm in arms] == ["default+beh", "default+simtier+beh"]
    assert {arm.config.items.dim for arm in arms} == {64}
