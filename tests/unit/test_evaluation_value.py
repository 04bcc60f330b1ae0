"""The evaluation value: its contract, its protocol, and what it says where a score is null."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from infra.errors import InputError
from learners.metrics import LossSums, entropy, gauc, log_losses
from stream.evaluation import EvaluationOptions, breakdown, evaluate, markdown
from tests.support.prediction_rows import (
    DAY_MS,
    HOUR_MS,
    START_MS,
    columns,
    rows_of,
    some,
    two_arms,
)

OPTIONS = EvaluationOptions(window_ms=60_000, resamples=100)
TOP = {
    "label", "predict_at", "rows", "positives", "users", "from_ms", "to_ms", "warm_up_rows",
    "unsettled_rows", "log_from_ms", "log_to_ms", "arms", "pairs", "placebo", "freshness",
    "throughput", "missing", "reasons",
}  # fmt: skip
METRICS = {
    "log_loss", "ne", "ne_causal", "auc", "auc_daily_mean", "gauc_request", "gauc_user_batch",
    "gauc_user_day", "calibration", "ece", "ece_floor", "ece_z", "ctr", "ndcg", "mrr", "hit1",
}  # fmt: skip


def nulls(value, path=""):
    """Dotted paths of all nulls; entries of lists go by name, date or slice."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "decision":  # its words say what is open
                continue
            yield from nulls(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            key = inner.get("name") or inner.get("date")
            if "a" in inner:
                key = f"{inner['a']}.{inner['b']}"
            if "by" in inner:
                key = f"{inner['by']}.{inner['value']}"
            yield from nulls(inner, f"{path}.{key}" if key else path)
    elif value is None:
        yield path


def of_slice(arm, by):
    return [entry for entry in arm["slices"] if entry["by"] == by]


def test_the_value_has_the_agreed_form():
    value = evaluate(rows_of(two_arms(slate=4)), OPTIONS)
    assert set(value) == TOP
    json.dumps(value, allow_nan=False)
    arm = value["arms"][0]
    assert set(arm["metrics"]) == METRICS
    assert set(arm["groups"]) == {"gauc_request", "gauc_user_batch", "gauc_user_day", "slates"}
    assert set(arm["reliability"][0]) == {"n", "predicted", "observed", "low", "high"}
    assert set(arm["daily"][0]) == {
        "date", "samples", "positives", "unsettled", "log_loss", "ne", "auc", "calibration", "ctr",
    }  # fmt: skip
    assert set(arm["hourly"][0]) == {
        "ts_ms", "samples", "positives", "unsettled", "log_loss", "ne", "auc", "calibration",
    }  # fmt: skip
    assert set(arm["learning_curve"][0]) == {"k_from", "k_to", "n", "log_loss", "calibration"}
    assert set(arm["slices"][0]) == {
        "by", "value", "n", "positives", "share", "log_loss", "ne_global", "ne_slice",
        "calibration", "auc", "standard_error",
    }  # fmt: skip
    pair = value["pairs"][0]
    assert set(pair) == {
        "a", "b", "mean", "low", "high", "blocks", "resamples", "days", "days_better", "daily",
        "slices", "cold_start_regret", "decision",
    }  # fmt: skip
    assert set(pair["slices"][0]) == {"by", "value", "n", "share", "mean", "low", "high"}
    assert set(pair["decision"]) == {"accept", "winner", "rules", "words"}
    assert set(value["missing"][0]) == {"ts_ms", "samples", "missing_vector", "empty_history"}


def test_metrics_are_those_of_other_libraries_and_of_the_definitions():
    log = columns()
    arm = evaluate(rows_of(log), OPTIONS)["arms"][0]
    s, y = log["logit"].astype(np.float64), log["label"]
    metrics = arm["metrics"]
    assert metrics["log_loss"] == pytest.approx(log_loss(y, expit(s)), rel=1e-9)
    assert metrics["auc"] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert metrics["ne"] == pytest.approx(metrics["log_loss"] / entropy(y.mean()))
    assert metrics["calibration"] == pytest.approx(expit(s).sum() / y.sum())
    assert metrics["ctr"] == pytest.approx(y.mean())
    day = log["ts_ms"] // DAY_MS
    by_day = [roc_auc_score(y[day == d], s[day == d]) for d in np.unique(day)]
    assert [d["auc"] for d in arm["daily"]] == pytest.approx(by_day)
    assert metrics["auc_daily_mean"] == pytest.approx(np.mean(by_day))
    user_batch = log["user_id"] * 100_000 + log["batch"]
    assert metrics["gauc_user_batch"] == pytest.approx(gauc(s, y, user_batch).score, abs=1e-9)
    assert arm["groups"]["gauc_user_batch"]["used"] == gauc(s, y, user_batch).groups_used
    user_day = log["user_id"] * 100_000 + day
    assert metrics["gauc_user_day"] == pytest.approx(gauc(s, y, user_day).score, abs=1e-9)


def test_sums_of_days_hours_and_slices_are_those_of_the_whole():
    value = evaluate(rows_of(columns(slate=2)), OPTIONS)
    arm = value["arms"][0]
    total = arm["metrics"]["log_loss"] * value["rows"]
    for entries, n in ((arm["daily"], "samples"), (arm["hourly"], "samples")):
        assert sum(e[n] for e in entries) == value["rows"]
        assert sum(e["positives"] for e in entries) == value["positives"]
        assert sum(e["log_loss"] * e[n] for e in entries) == pytest.approx(total)
    for by in {entry["by"] for entry in arm["slices"]}:
        entries = of_slice(arm, by)
        assert sum(e["n"] for e in entries) == value["rows"]
        assert sum(e["positives"] for e in entries) == value["positives"]
        assert sum(e["log_loss"] * e["n"] for e in entries) == pytest.approx(total)
        assert sum(e["share"] for e in entries) == pytest.approx(1)


def test_slices_are_scored_by_the_whole_rate_and_by_their_own():
    log = columns()
    arm = evaluate(rows_of(log), OPTIONS)["arms"][0]
    none = ~log["has_vector"]
    entry = next(e for e in of_slice(arm, "missing vector") if e["value"] == "yes")
    sums = LossSums.of(log["logit"][none], log["label"][none])
    assert entry["log_loss"] == pytest.approx(sums.log_loss)
    assert entry["ne_slice"] == pytest.approx(sums.ne)
    assert entry["ne_global"] == pytest.approx(sums.log_loss / entropy(log["label"].mean()))
    assert entry["auc"] == pytest.approx(roc_auc_score(log["label"][none], log["logit"][none]))


def test_warm_up_is_left_out_of_scores_but_not_of_counters():
    log = columns()
    start = START_MS + DAY_MS
    late = log["ts_ms"] >= start
    value = evaluate(rows_of(log), EvaluationOptions(evaluate_from_ms=start))
    assert value["rows"] == late.sum()
    assert value["warm_up_rows"] == (~late).sum()
    assert value["from_ms"] >= start
    assert (value["log_from_ms"], value["log_to_ms"]) == (log["ts_ms"].min(), log["ts_ms"].max())
    expected = log_losses(log["logit"][late], log["label"][late]).mean()
    assert value["arms"][0]["metrics"]["log_loss"] == pytest.approx(expected)
    fresh = next(e for e in of_slice(value["arms"][0], "item exposures") if e["value"] == "1-9")
    alone = evaluate(rows_of(some(log, late)), EvaluationOptions())["arms"][0]
    assert fresh["n"] < next(
        e["n"] for e in of_slice(alone, "item exposures") if e["value"] == "1-9"
    )


def test_warm_up_may_be_a_share():
    value = evaluate(rows_of(columns()), EvaluationOptions(warm_up_share=0.25))
    assert value["warm_up_rows"] == pytest.approx(1_000, abs=3)


def test_rows_whose_window_ends_after_the_log_are_flagged():
    log = columns()
    end = int(log["ts_ms"].max())
    window = 2 * HOUR_MS
    value = evaluate(rows_of(log), EvaluationOptions(window_ms=window, end_ms=end))
    unsettled = log["ts_ms"] > end - window
    assert value["unsettled_rows"] == unsettled.sum() > 0
    assert str(unsettled.sum()) in value["reasons"]["unsettled_rows"]
    for entries in (value["arms"][0]["hourly"], value["arms"][0]["daily"]):
        assert sum(entry["unsettled"] for entry in entries) == unsettled.sum()
    flagged = [h["ts_ms"] for h in value["arms"][0]["hourly"] if h["unsettled"]]
    assert min(flagged) + HOUR_MS > end - window
    settled = evaluate(rows_of(log), EvaluationOptions(window_ms=window, end_ms=end + window))
    assert settled["unsettled_rows"] == 0
    assert "unsettled_rows" not in settled["reasons"]


def test_late_clicks_alone_change_the_scores_of_unsettled_windows():
    """Scored at t, and again once the windows have ended: the difference is theirs."""
    log = columns()
    window = 2 * HOUR_MS
    end = int(log["ts_ms"].max())
    late = np.flatnonzero((log["ts_ms"] > end - window) & (log["label"] == 1))
    assert len(late) > 3
    early = log | {"label": log["label"].copy()}
    early["label"][late] = 0
    options = EvaluationOptions(window_ms=window, end_ms=end)
    now, then = evaluate(rows_of(early), options), evaluate(rows_of(log), options)
    assert now["positives"] == then["positives"] - len(late)
    changed = [
        h["ts_ms"]
        for h, i in zip(now["arms"][0]["hourly"], then["arms"][0]["hourly"], strict=True)
        if h != i
    ]
    assert min(changed) + HOUR_MS > end - window
    # Of a click that comes, the loss changes by -s.
    difference = then["arms"][0]["metrics"]["log_loss"] - now["arms"][0]["metrics"]["log_loss"]
    assert difference * now["rows"] == pytest.approx(-log["logit"][late].sum(dtype=np.float64))


def test_the_causal_base_rate_knows_the_past_alone():
    """A click rate that jumps: the span's rate knows both levels, the causal one learns them."""
    n = 6_000
    rng = np.random.default_rng(0)
    log = columns(n, days=4)
    level = np.where(log["ts_ms"] < START_MS + 2 * DAY_MS, 0.1, 0.6)
    log["label"] = (rng.random(n) < level).astype(np.int8)
    log["logit"] = np.log(level / (1 - level)).astype(np.float32)
    start = START_MS + 3 * DAY_MS
    of_last_day = evaluate(rows_of(log), EvaluationOptions(evaluate_from_ms=start))
    metrics = of_last_day["arms"][0]["metrics"]
    assert metrics["ne"] == pytest.approx(1, abs=0.01)
    assert metrics["ne_causal"] == pytest.approx(1, abs=0.03)
    whole = evaluate(rows_of(log), EvaluationOptions())["arms"][0]["metrics"]
    assert whole["ne"] < 0.85
    # Who follows the level gains more on the span's rate than on one that follows it too.
    assert whole["ne"] + 0.05 < whole["ne_causal"] < 1
    alone = some(log, (log["ts_ms"] >= START_MS) & (log["ts_ms"] < START_MS + HOUR_MS))
    value = evaluate(rows_of(alone), EvaluationOptions())
    assert value["arms"][0]["metrics"]["ne_causal"] is None
    assert "24 h before" in value["reasons"]["arms.logit.metrics.ne_causal"]


def test_every_null_has_its_reason():
    log = two_arms(300, users=5, days=2)
    del log["batch"], log["has_vector"], log["history_len"]
    log["label"][:] = 0
    value = evaluate(rows_of(log), OPTIONS)
    paths = set(nulls(value))
    assert {p for p in paths if p not in value["reasons"]} == set()
    assert value["arms"][0]["metrics"]["calibration"] is None
    assert value["reasons"]["arms.a.metrics.calibration"] == "no positives"
    assert "5 blocks are too few" in value["reasons"]["pairs.a.b.low"]
    assert value["reasons"]["slices.missing vector"] == "not recorded in the prediction log"
    assert value["missing"][0]["missing_vector"] is None
    json.dumps(value, allow_nan=False)


def test_no_rows_give_a_value_too():
    value = evaluate(rows_of(some(two_arms(20), slice(0, 0))), OPTIONS)
    assert (value["rows"], value["from_ms"], value["pairs"]) == (0, None, [])
    assert value["arms"][0]["metrics"]["log_loss"] is None
    assert value["reasons"]["arms.a.metrics.log_loss"] == "no rows"
    assert "0 impressions" in markdown(value)


def test_rows_that_one_arm_did_not_predict_are_scored_for_none():
    log = two_arms()
    log["logit.b"][:7] = np.nan
    value = evaluate(rows_of(log), OPTIONS)
    assert value["rows"] == 3_993
    assert value["reasons"]["predictions.b"] == "7 rows without a prediction"
    expected = log_losses(log["logit.a"][7:], log["label"][7:]).mean()
    assert value["arms"][0]["metrics"]["log_loss"] == pytest.approx(expected)


def test_the_better_arm_is_found_and_the_difference_is_that_of_the_losses():
    value = evaluate(rows_of(two_arms(12_000)), OPTIONS)
    a, b = (arm["metrics"]["log_loss"] for arm in value["arms"])
    pair = value["pairs"][0]
    assert (pair["a"], pair["b"]) == ("a", "b")
    assert pair["mean"] == pytest.approx(a - b, abs=1e-12)
    assert pair["low"] < pair["mean"] < pair["high"] < 0
    assert (pair["days"], pair["days_better"]) == (3, 3)
    weighted = sum(d["mean"] * e["samples"] for d, e in zip(
        pair["daily"], value["arms"][0]["daily"], strict=True))  # fmt: skip
    assert weighted / value["rows"] == pytest.approx(pair["mean"])
    assert pair["decision"]["rules"][0]["passed"]


def test_the_learning_curve_and_its_area():
    log = two_arms(12_000, users=300, items=50)
    value = evaluate(rows_of(log), OPTIONS)
    curve = value["arms"][0]["learning_curve"]
    assert [(c["k_from"], c["k_to"]) for c in curve][:4] == [(0, 0), (1, 1), (2, 2), (3, 4)]
    assert curve[-1]["k_to"] == 200
    index = np.zeros(12_000, int)
    for item in np.unique(log["item_id"]):
        own = log["item_id"] == item
        index[own] = np.searchsorted(log["ts_ms"][own], log["ts_ms"][own])
    of_early = (index >= 3) & (index <= 4)
    losses = {a: log_losses(log[f"logit.{a}"], log["label"]) for a in "ab"}
    assert curve[3]["n"] == of_early.sum()
    assert curve[3]["log_loss"] == pytest.approx(losses["a"][of_early].mean())
    d = losses["a"] - losses["b"]
    regret = sum(d[index == k].mean() for k in range(100))
    assert value["pairs"][0]["cold_start_regret"] == pytest.approx(regret)
    short = evaluate(rows_of(some(log, slice(0, 60))), OPTIONS)
    assert short["pairs"][0]["cold_start_regret"] is None
    assert "have no rows" in short["reasons"]["pairs.a.b.cold_start_regret"]


def test_placebos_stand_beside_the_arms_and_feed_the_decision():
    log = two_arms(6_000)
    rng = np.random.default_rng(1)
    for k in range(2):
        log[f"logit.a placebo {k}"] = log["logit.b"] + rng.normal(0, 0.3, 6_000).astype(np.float32)
    names = {f"a placebo {k}": ("a", k) for k in range(2)}
    options = EvaluationOptions(resamples=100, placebos=names)
    value = evaluate(rows_of(log), options)
    assert [arm["name"] for arm in value["arms"]] == ["a", "b"]
    assert len(value["pairs"]) == 1
    against = [(p["arm"], p["permutation"], p["pair"]["b"]) for p in value["placebo"]]
    assert against == [("a", 0, "a"), ("a", 0, "b"), ("a", 1, "a"), ("a", 1, "b")]
    assert all(p["pair"]["mean"] > 0 for p in value["placebo"])
    assert value["placebo"][0]["metrics"]["log_loss"] > value["arms"][0]["metrics"]["log_loss"]
    assert value["pairs"][0]["decision"]["rules"][4]["passed"] is True

    def rule(**given):
        found = evaluate(rows_of(log), EvaluationOptions(resamples=20, placebos=names, **given))
        return found["pairs"][0]["decision"]["rules"][4]

    assert rule(content_treatments={("b", "a")})["passed"] is True
    assert rule(content_treatments=())["detail"] == "not run: the arms differ in more than content"


def test_a_freshness_curve_compares_with_the_shortest_wait():
    log = columns(6_000, arms=("logit.x", "logit.y", "logit.z"), noise=(0.9, 0.2, 1.5))
    options = EvaluationOptions(resamples=100, sync_ms={"x": 60_000, "y": 0, "z": 3_600_000})
    curve = evaluate(rows_of(log), options)["freshness"]
    assert [(c["name"], c["sync_ms"]) for c in curve] == [("y", 0), ("x", 60_000), ("z", 3_600_000)]
    assert (curve[0]["mean"], curve[0]["low"], curve[0]["high"]) == (0, 0, 0)
    assert 0 < curve[1]["mean"] < curve[2]["mean"]
    assert curve[1]["mean"] == pytest.approx(curve[1]["log_loss"] - curve[0]["log_loss"])


@pytest.mark.parametrize("block", ("user", "user_day", "hour"))
def test_blocks_are_what_the_options_say(block):
    log = two_arms()
    pair = evaluate(rows_of(log), EvaluationOptions(resamples=50, block=block))["pairs"][0]
    day, hour = log["ts_ms"] // DAY_MS, log["ts_ms"] // HOUR_MS
    expected = {
        "user": len(np.unique(log["user_id"])),
        "user_day": len(set(zip(log["user_id"], day, strict=True))),
        "hour": len(np.unique(hour)),
    }
    assert pair["blocks"] == expected[block]


def test_one_arm_may_be_the_reference_of_all():
    log = columns(arms=("logit.x", "logit.y", "logit.z"), noise=(0.1, 0.2, 0.3))

    def pairs(**options):
        value = evaluate(rows_of(log), EvaluationOptions(resamples=20, **options))
        return [(pair["a"], pair["b"]) for pair in value["pairs"]]

    assert pairs() == [("x", "y"), ("x", "z"), ("y", "z")]
    assert pairs(reference="y") == [("x", "y"), ("z", "y")]


@pytest.mark.parametrize(
    "options",
    (
        {"reference": "nobody"},
        {"placebos": {"nobody": ("a", 0)}},
        {"placebos": {"a": ("nobody", 0)}},
        {"sync_ms": {"nobody": 5}},
        {"reference": "a", "placebos": {"a": ("b", 0)}},
    ),
)
def test_arms_that_are_not_there_are_refused(options):
    with pytest.raises(InputError, match="evaluation: "):
        evaluate(rows_of(two_arms(50)), EvaluationOptions(**options))


@pytest.mark.parametrize(
    "options", ({"warm_up_share": 1.0}, {"window_ms": -1}, {"bins": 0}, {"resamples": 0})
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=f"evaluation: {next(iter(options))}"):
        EvaluationOptions(**options)


def test_many_rows_are_ranked_by_buckets_to_the_same_scores(monkeypatch):
    rows = rows_of(columns(20_000))
    exact = evaluate(rows, OPTIONS)["arms"][0]
    monkeypatch.setattr(breakdown, "EXACT_ROWS_MAX", 100)
    fast = evaluate(rows, OPTIONS)["arms"][0]
    for name in ("daily", "slices"):
        for a, b in zip(exact[name], fast[name], strict=True):
            assert (a["auc"] is None) == (b["auc"] is None)
            assert a["auc"] is None or b["auc"] == pytest.approx(a["auc"], abs=2e-4)
    assert fast["metrics"]["auc"] == exact["metrics"]["auc"]


def test_long_logs_have_wider_windows():
    log = columns(5_000, days=400)
    hourly = evaluate(rows_of(log), OPTIONS)["arms"][0]["hourly"]
    assert 1_000 < len(hourly) <= 2_000
    assert all(h["ts_ms"] % (3 * HOUR_MS) == 0 for h in hourly)


def test_days_begin_where_the_local_clock_says():
    log = columns(days=2)
    value = evaluate(rows_of(log), EvaluationOptions(offset_ms=8 * HOUR_MS))
    assert [d["date"] for d in value["arms"][0]["daily"]] == [
        "2022-04-29",
        "2022-04-30",
        "2022-05-01",
    ]


def test_markdown_holds_the_figures_and_escapes_names():
    log = two_arms(6_000)
    log["logit.<b>|x"] = log.pop("logit.b")
    value = evaluate(rows_of(log), OPTIONS)
    text = markdown(value)
    assert f"{value['arms'][0]['metrics']['log_loss']:.5f}" in text
    assert f"{value['pairs'][0]['mean']:+.5f}" in text
    assert "\\<b\\>\\|x" in text
    assert "the 95 % interval of the difference excludes 0" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_an_early_prediction_by_later_weights_is_reported():
    value = evaluate(rows_of(columns(50), ahead=3), OPTIONS)
    assert value["reasons"]["rows.ahead"].startswith("3 rows")
    at_settle = evaluate(rows_of(columns(50), ahead=50), EvaluationOptions(predict_at="settle"))
    assert "rows.ahead" not in at_settle["reasons"]
