"""`millrace ope` on a small log: rewards, selections, what is left out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from infra.errors import InputError
from stream.codec_write import click_body, encode_columns, encode_event, impression_body
from stream.commands.ope import command
from stream.logged_actions import read_actions, value_keys
from stream.record_log import RecordLogWriter
from tests.support.records import T0

PARTITIONS = {"impressions": 1, "clicks": 1}


def shown(request: int, item: str, policy: str, *, place: int = 0, user: int = 1) -> bytes:
    one = {"item_id": item, "position": place, "propensity": 0.5}
    body = impression_body(
        request_id=request, user_id=user, ts_ms=T0 + request, items=[one],
        context={"policy": policy, "arm": 7},
    )  # fmt: skip
    return encode_event("impression", body)


def clicked(request: int, item: str, *, after_ms: int = 10, kind: str = "click") -> bytes:
    body = click_body(
        request_id=request, item_id=item, user_id=1, ts_ms=T0 + request + after_ms, kind=kind
    )
    return encode_event("click", body)


def log_of(path: Path, shown_: list[bytes], clicks: list[bytes]) -> Path:
    with RecordLogWriter(path, PARTITIONS, ordered=True) as log:
        for topic, values in (("impressions", shown_), ("clicks", clicks)):
            for offset, value in enumerate(values):
                log.write(topic, 0, offset, T0 + 10**6, None, value)
    return path


def bandit_log(path: Path, n: int = 4_000) -> Path:
    """`a` is clicked in 3 of 10, `b` in 1 of 10; `old` takes both evenly, `new` mostly `a`."""
    rng = np.random.default_rng(1)
    shown_, clicks = [], []
    for request in range(1, n + 1):
        policy = "old" if request % 2 else "new"
        item = "a" if rng.random() < (0.5 if policy == "old" else 0.9) else "b"
        shown_.append(shown(request, item, policy, user=request % 300))
        if rng.random() < (0.3 if item == "a" else 0.1):
            clicks.append(clicked(request, item))
    return log_of(path, shown_, clicks)


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_rewards_come_from_clicks_of_the_kind_in_time(tmp_path: Path) -> None:
    log = log_of(
        tmp_path / "log.parquet",
        [shown(1, "a", "x"), shown(1, "a", "x"), shown(2, "a", "x"), shown(3, "b", "y", place=4),
         shown(4, "b", "y"), b"junk"],
        [clicked(1, "a"), clicked(2, "a", after_ms=101), clicked(2, "a", after_ms=5),
         clicked(3, "a"), clicked(4, "b", kind="like"), clicked(9, "a")],
    )  # fmt: skip
    paths = ["context.policy", "impression.position", "context.policy"]
    actions = read_actions([log], paths, label="click", window_ms=100)
    assert (len(actions), actions.rejected) == (4, 1)
    by_request = np.argsort(actions.request_n)
    assert sorted(actions.reward_n.tolist()) == [0.0, 0.0, 0.0, 1.0]
    assert set(actions.fields) == {"context.policy", "impression.position"}
    is_x = np.isin(actions.fields["context.policy"], value_keys("context.policy", "x"))
    assert actions.reward_n[is_x].sum() == 1
    at_4 = np.isin(actions.fields["impression.position"], value_keys("impression.position", "4"))
    assert (at_4.sum(), len(by_request)) == (1, 4)
    assert actions.propensity_n.tolist() == [0.5] * 4


def test_a_policys_value_is_found_from_the_other_ones_rows(tmp_path: Path) -> None:
    log = bandit_log(tmp_path / "log.parquet")
    found = run(log, "--logged", "context.policy=old", "--target", "context.policy=new")
    assert (found["rows"], found["rows_without_target"]) == (2_000, 0)
    assert found["logged"]["value"] == pytest.approx(0.2, abs=0.03)
    for name in ("ips", "snips", "dr", "on_policy"):
        assert found[name]["low"] < 0.28 < found[name]["high"]
        assert found[name]["low"] > found["logged"]["value"]
    assert found["difference"]["dr"]["low"] < 0 < found["difference"]["dr"]["high"]
    assert found["weights"]["max"] == pytest.approx(1.8, abs=0.05)
    even = run(log, "--logged", "context.policy=old", "--target", "uniform", "--blocks", "request")
    assert even["ips"]["value"] == pytest.approx(even["logged"]["value"], rel=0.02)
    assert "on_policy" not in even


def test_rows_of_cells_unknown_to_the_target_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [shown(r, "a", "old", place=r % 2, user=r) for r in range(40)]
    rows += [shown(100 + r, "a", "new", place=0, user=r) for r in range(20)]
    log = log_of(tmp_path / "log.parquet", rows, [clicked(0, "a")])
    found = run(
        log, "--logged", "context.policy=old", "--target", "context.policy=new",
        "--cell", "impression.position",
    )  # fmt: skip
    assert (found["rows"], found["rows_without_target"]) == (20, 20)


def test_numbers_select_as_numbers_and_the_table_is_printed(tmp_path: Path) -> None:
    log = bandit_log(tmp_path / "log.parquet", n=400)
    arguments = [str(log), "--target", "context.policy=new", "--where", "context.arm=7"]
    result = CliRunner().invoke(command, [*arguments, "--clip", "1.5"], catch_exceptions=False)
    assert "400 logged rows" in result.output
    assert "clipped" in result.output
    for name in ("ips", "snips", "dm", "dr", "on_policy"):
        assert f" {name} " in result.output


def test_a_log_without_propensities_has_no_estimates_but_reasons(tmp_path: Path) -> None:
    body = impression_body(request_id=1, user_id=1, ts_ms=T0, items=[{"item_id": "a"}])
    log = log_of(tmp_path / "log.parquet", [encode_event("impression", body)], [])
    found = run(log, "--target", "uniform")
    assert found["ips"]["value"] is None
    assert "1 of 1 rows have no propensity" in found["reasons"]["ips"]


def test_a_feature_stands_in_for_the_propensity(tmp_path: Path) -> None:
    """Columnar envelopes carry it so."""
    columns = {
        "request_id": np.arange(1, 5), "user_id": 1, "ts_ms": T0, "item_id": np.array([1, 2, 1, 2]),
        "features.propensity": np.array([0.5, 0.25, 0.5, 0.0]),
    }  # fmt: skip
    log = log_of(tmp_path / "log.parquet", [encode_columns("impression_columns", 4, columns)], [])
    actions = read_actions([log], [], label="click", window_ms=100)
    assert np.nan_to_num(actions.propensity_n, nan=-1).tolist() == [0.5, 0.25, 0.5, -1.0]


def policy_file(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_policy_may_come_as_a_file(tmp_path: Path) -> None:
    log = log_of(
        tmp_path / "log.parquet", [shown(r, "a" if r % 2 else "b", "x", user=r) for r in range(40)],
        [clicked(r, "a") for r in range(1, 40, 4)],
    )  # fmt: skip
    columns: dict[str, list[Any]] = {
        "request_id": [*range(1, 40), 99], "item_id": ["a" if r % 2 else "b" for r in range(1, 41)],
        "probability": [0.75 if r % 2 else 0.25 for r in range(1, 41)],
    }  # fmt: skip
    found = run(log, "--target", policy_file(tmp_path / "p.parquet", **columns))
    assert (found["rows"], found["rows_without_target"]) == (39, 1)
    assert found["ips"]["value"] == pytest.approx(10 * 1.5 / 39)
    assert found["reasons"]["dr"] == "no reward model was given"
    model = {"reward_logged": [0.5] * 40, "reward_target": [0.4] * 40}
    found = run(log, "--target", policy_file(tmp_path / "q.parquet", **columns, **model))
    weights = [1.5 if r % 2 else 0.5 for r in range(1, 40)]
    rewards = [r % 4 == 1 for r in range(1, 40)]
    expected = 0.4 + np.mean([w * (r - 0.5) for w, r in zip(weights, rewards, strict=True)])
    assert found["dr"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"probability": None}, "no column 'probability'"),
        ({"reward_logged": [0.1, 0.1]}, "no column 'reward_target'"),
        ({"item_id": ["a", "a"], "request_id": [1, 1]}, "is there twice"),
        ({"probability": [0.5, None]}, "'probability' has empty cells"),
        ({"request_id": [8, 9]}, "none of the logged requests"),
    ),
)
def test_policy_files_that_cannot_be_used_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    log = log_of(tmp_path / "log.parquet", [shown(1, "a", "x"), shown(2, "b", "x")], [])
    columns = {"request_id": [1, 2], "item_id": ["a", "b"], "probability": [0.5, 0.5]} | changes
    file = policy_file(tmp_path / "p.parquet", **{k: v for k, v in columns.items() if v})
    result = CliRunner().invoke(command, [str(log), "--target", str(file)])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)
    result = CliRunner().invoke(command, [str(log), "--target", str(tmp_path / "none.parquet")])
    assert "not readable" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (["--target", "policy"], "expected FIELD=VALUE"),
        (["--target", "context.policy=none"], "no impression has context.policy = none"),
        (["--target", "title=x"], "unknown path 'title'"),
        (["--target", "uniform", "--clip", "-1"], "--clip"),
        (["--target", "uniform", "--prior-weight", "0"], "--prior-weight"),
        (
            ["--target", "context.policy=new", "--where", "context.policy=old"],
            "no impression is left",
        ),
    ),
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    log = bandit_log(tmp_path / "log.parquet", n=20)
    result = CliRunner().invoke(command, [str(log), *arguments])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_a_log_of_clicks_alone_is_refused(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log.parquet", [], [clicked(1, "a")])
    result = CliRunner().invoke(command, [str(log), "--target", "uniform"])
    assert "no usable impression" in str(result.exception)
