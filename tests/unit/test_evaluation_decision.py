"""The decision rule: each rule alone turns an acceptance, and unsure is an answer."""

import copy

import pytest

from stream.evaluation.decision import decide

CALIBRATION = {"new": 1.003, "old": 0.997}


def slice_of(value, share, mean, low, high):
    return {
        "by": "item age",
        "value": value,
        "share": share,
        "mean": mean,
        "low": low,
        "high": high,
    }


BETTER = {
    "a": "new",
    "b": "old",
    "mean": -0.002,
    "low": -0.003,
    "high": -0.001,
    "blocks": 5_000,
    "daily": [{"mean": -0.002}, {"mean": -0.003}, {"mean": 0.001}],
    "slices": [
        slice_of("<1 h", 0.02, 0.001, -0.001, 0.003),
        slice_of(">7 d", 0.98, -0.002, -0.003, -0.001),
    ],
}
PLACEBO = {
    "arm": "new",
    "permutation": 0,
    "pair": {"a": "placebo", "b": "old", "mean": 1e-4, "low": -1e-4, "high": 3e-4},
}


def passed(decision):
    return [rule["passed"] for rule in decision["rules"]]


def mirrored(pair):
    """The same difference with the arms the other way round."""
    out = copy.deepcopy(pair) | {"a": pair["b"], "b": pair["a"]}
    for entry in (out, *out["daily"], *out["slices"]):
        entry["mean"] = -entry["mean"]
        if "low" in entry:
            entry["low"], entry["high"] = -entry["high"], -entry["low"]
    return out


def test_a_treatment_that_passes_all_rules_is_accepted():
    decision = decide(BETTER, CALIBRATION, [PLACEBO])
    assert (decision["accept"], decision["winner"]) == (True, "new")
    assert passed(decision) == [True] * 5
    assert decision["words"].startswith("new is better than old by 0.00200 nats per impression")
    assert "Not checked" not in decision["words"]


def test_the_order_of_the_arms_does_not_matter():
    decision = decide(mirrored(BETTER), CALIBRATION, [PLACEBO])
    assert (decision["accept"], decision["winner"]) == (False, "new")
    assert passed(decision) == [True] * 5
    assert decision["words"] == decide(BETTER, CALIBRATION, [PLACEBO])["words"]


def test_a_placebo_that_was_not_run_is_said():
    decision = decide(BETTER, CALIBRATION)
    assert (decision["accept"], decision["winner"]) == (True, "new")
    assert passed(decision)[4] is None
    assert decision["rules"][4]["detail"] == "not run"
    assert "Not checked: a placebo shows no gain" in decision["words"]


def test_an_interval_that_holds_zero_shows_no_difference():
    decision = decide(BETTER | {"high": 0.0001}, CALIBRATION, [PLACEBO])
    assert (decision["accept"], decision["winner"]) == (None, None)
    assert decision["words"].startswith("No difference between new and old is shown")


def test_too_few_blocks_leave_it_open():
    decision = decide(BETTER | {"low": None, "high": None, "blocks": 7}, CALIBRATION)
    assert (decision["accept"], decision["winner"]) == (None, None)
    assert passed(decision)[0] is None
    assert "7 blocks are too few" in decision["words"]


@pytest.mark.parametrize(
    ("rule", "change", "calibration"),
    (
        (1, {"daily": [{"mean": -1.0}, {"mean": 1.0}]}, CALIBRATION),
        (
            2,
            {"slices": [BETTER["slices"][1], BETTER["slices"][0] | {"low": 0.0001}]},
            CALIBRATION,
        ),
        (3, {}, {"new": 1.021, "old": 1.0}),
        (3, {}, {"new": 0.979, "old": 1.0}),
        (4, {}, CALIBRATION),
    ),
)
def test_each_rule_alone_prevents_acceptance(rule, change, calibration):
    placebo = copy.deepcopy(PLACEBO)
    if rule == 4:
        placebo["pair"] |= {"mean": -0.002, "low": -0.003, "high": -0.0001}
    for pair in (BETTER | change, mirrored(BETTER | change)):
        decision = decide(pair, calibration, [placebo])
        assert (decision["accept"], decision["winner"]) == (False, None)
        assert [i for i, ok in enumerate(passed(decision)) if ok is False] == [rule]
        assert decision["rules"][rule]["rule"] in decision["words"]
        assert "is not accepted" in decision["words"]


def test_a_small_slice_may_lose():
    small = BETTER["slices"][0] | {"low": 0.0005, "share": 0.01}
    assert decide(BETTER | {"slices": [small, BETTER["slices"][1]]}, CALIBRATION)["accept"]


def test_two_thirds_of_the_days_suffice_and_one_day_says_nothing():
    days = [{"mean": -1.0}, {"mean": -1.0}, {"mean": 1.0}]
    assert passed(decide(BETTER | {"daily": days}, CALIBRATION))[1] is True
    decision = decide(BETTER | {"daily": days[:1]}, CALIBRATION)
    assert passed(decision)[1] is None
    assert decision["accept"] is True


def test_where_more_than_content_differs_a_placebo_may_gain():
    decision = decide(BETTER, CALIBRATION, None)
    assert (decision["accept"], decision["rules"][4]["passed"]) == (True, None)
    assert decision["rules"][4]["detail"] == "not run: the arms differ in more than content"


def test_placebos_of_other_arms_or_against_others_do_not_count():
    for wrong in (PLACEBO | {"arm": "old"}, PLACEBO | {"pair": PLACEBO["pair"] | {"b": "third"}}):
        assert passed(decide(BETTER, CALIBRATION, [wrong]))[4] is None
