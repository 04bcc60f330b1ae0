"""Off-policy estimates against exact answers: hand-made rows, and a bandit of known values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stream.evaluation.ope import (
    ESTIMATORS,
    LoggedRows,
    OnPolicyRows,
    OpeConfig,
    off_policy,
    weight_facts,
)
from stream.evaluation.ope_policies import (
    cross_fitted_rates,
    empirical_policy,
    uniform_policy,
)
from tests.support.synthetic_bandit import BanditLog, bandit_world

WORLD = bandit_world(seed=3)
POLICIES = ("softmax", "greedy")
SIMULATIONS = 200


def rows_of(log: BanditLog, policy: str, *, model: np.ndarray | None = None) -> LoggedRows:
    at = np.arange(len(log.action_n))
    target_nA = log.policies_nA[policy]
    return LoggedRows(
        reward_n=log.reward_n,
        propensity_n=log.propensity_n,
        target_n=target_nA[at, log.action_n],
        block_n=log.user_n,
        model_logged_n=None if model is None else model[at, log.action_n],
        model_target_n=None if model is None else (target_nA * model).sum(1),
    )


def four_rows(**changes: Any) -> LoggedRows:
    columns: dict[str, Any] = {
        "reward_n": np.array([1.0, 0.0, 1.0, 0.0]),
        "propensity_n": np.array([0.5, 0.25, 0.5, 0.25]),
        "target_n": np.array([0.25, 0.5, 1.0, 0.0]),
        "block_n": np.array([0, 0, 1, 1]),
    }
    return LoggedRows(**columns | changes)


def test_estimates_by_hand() -> None:
    """Weights are 1/2, 2, 2 and 0."""
    model = {
        "model_logged_n": np.array([0.5, 0.0, 0.5, 0.0]),
        "model_target_n": np.array([0.2, 0.2, 0.4, 0.4]),
    }
    found = off_policy(four_rows(**model), OpeConfig())
    assert found["logged"]["value"] == 0.5
    assert found["ips"]["value"] == pytest.approx((0.5 + 2) / 4)
    assert found["snips"]["value"] == pytest.approx(2.5 / 4.5)
    assert found["dm"]["value"] == pytest.approx(0.3)
    assert found["dr"]["value"] == pytest.approx(0.3 + (0.25 + 1.0) / 4)
    clipped = off_policy(four_rows(**model), OpeConfig(clip=1.0))
    assert clipped["ips"]["value"] == pytest.approx((0.5 + 1) / 4)
    assert clipped["snips"]["value"] == pytest.approx(1.5 / 2.5)


def test_weight_facts_by_hand() -> None:
    facts = weight_facts(four_rows(), clip=1.0)
    assert facts["mean"] == 4.5 / 4
    assert facts["max"] == 2.0
    assert facts["ess"] == pytest.approx(4.5**2 / 8.25)
    assert facts["ess_share"] == pytest.approx(4.5**2 / 8.25 / 4)
    assert (facts["zero_share"], facts["clipped_share"]) == (0.25, 0.5)
    assert facts["clipped_mass"] == pytest.approx(2 / 4.5)
    assert facts["top_block_share"] == pytest.approx(2.5 / 4.5)


@pytest.mark.parametrize(
    ("changes", "names", "words"),
    (
        ({"propensity_n": np.array([0.5, np.nan, 0.5, 0.0])}, ("ips", "dr"), "2 of 4 rows have no"),
        ({"target_n": np.zeros(4)}, ("ips", "snips"), "takes none of the logged actions"),
        ({}, ("dm", "dr"), "no reward model"),
        ({"target_n": np.full(4, 1.5)}, ("ips",), "not between 0 and 1"),
        ({"reward_n": np.array([1, 0, np.inf, 0])}, ("logged",), "not finite"),
    ),
)
def test_what_cannot_be_said_has_a_reason(
    changes: dict[str, Any], names: tuple[str, ...], words: str
) -> None:
    found = off_policy(four_rows(**changes), OpeConfig())
    for name in names:
        assert found[name] == {"value": None, "low": None, "high": None}
        assert words in found["reasons"][name]
    assert "NaN" not in json.dumps(found, allow_nan=False)


def test_no_rows_and_few_blocks_have_reasons() -> None:
    empty = np.zeros(0)
    none = LoggedRows(
        reward_n=empty, propensity_n=empty, target_n=empty, block_n=np.zeros(0, np.int64)
    )
    assert off_policy(none, OpeConfig())["reasons"]["ips"] == "no logged rows"
    found = off_policy(four_rows(), OpeConfig())
    assert (found["ips"]["low"], found["ips"]["value"]) == (None, 0.625)
    assert found["reasons"]["ips.low"] == "fewer than 10 blocks"
    alone = OnPolicyRows(reward_n=empty, block_n=np.zeros(0, np.int64))
    found = off_policy(four_rows(), OpeConfig(), alone)
    assert "no rows of its own" in found["reasons"]["on_policy"]
    assert "no rows of its own" in found["reasons"]["difference.ips"]


@pytest.mark.parametrize("bad", ({"clip": -1.0}, {"resamples": 0}, {"level": 1.0}))
def test_wrong_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OpeConfig(**bad)


@pytest.fixture(scope="module")
def simulated() -> dict[str, dict[str, np.ndarray]]:
    """Of each policy, value, low and high of each estimator in 200 logs, [simulation, 3].

    The model is the truth times 0.8: good, and biased.
    """
    found: dict[str, dict[str, list[Any]]] = {p: {n: [] for n in ESTIMATORS} for p in POLICIES}
    for seed in range(SIMULATIONS):
        log = WORLD.draw(users=300, seed=seed)
        for policy in POLICIES:
            rows = rows_of(log, policy, model=0.8 * log.true_nA)
            made = off_policy(rows, OpeConfig(resamples=200, seed=seed))
            for name in ESTIMATORS:
                found[policy][name].append([made[name][k] for k in ("value", "low", "high")])
    return {p: {n: np.array(v) for n, v in by.items()} for p, by in found.items()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ("ips", "snips", "dr"))
def test_intervals_cover_the_true_value(simulated: Any, policy: str, name: str) -> None:
    """About 95 % of them; 200 simulations have a standard error of 1.5 %."""
    truth = WORLD.values[policy]
    _, low, high = simulated[policy][name].T
    assert 0.90 <= ((low <= truth) & (truth <= high)).mean() <= 0.99


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ("ips", "dr"))
def test_ips_and_dr_are_unbiased_and_a_biased_model_is_not(
    simulated: Any, policy: str, name: str
) -> None:
    values, truth = simulated[policy][name][:, 0], WORLD.values[policy]
    assert abs(values.mean() - truth) < 3 * values.std() / np.sqrt(SIMULATIONS)
    modelled = simulated[policy]["dm"][:, 0]
    assert abs(modelled.mean() - truth) > 10 * modelled.std() / np.sqrt(SIMULATIONS)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_good_model_makes_dr_less_variable_than_ips(simulated: Any, policy: str) -> None:
    by = simulated[policy]
    assert by["dr"][:, 0].std() < by["ips"][:, 0].std()
    width = {n: (by[n][:, 2] - by[n][:, 1]).mean() for n in ("dr", "ips")}
    assert width["dr"] < width["ips"]


def test_clipping_biases_downward_and_narrows() -> None:
    truth, values = WORLD.values["greedy"], {0.0: [], 2.0: [], 8.0: []}
    for seed in range(60):
        rows = rows_of(WORLD.draw(users=400, seed=seed), "greedy")
        for clip, found in values.items():
            made = off_policy(rows, OpeConfig(resamples=1, clip=clip))
            found.append(made["ips"]["value"])
    mean = {clip: np.mean(found) for clip, found in values.items()}
    assert mean[2.0] < mean[8.0] < mean[0.0]
    assert mean[2.0] < truth - 3 * np.std(values[2.0]) / np.sqrt(60)
    assert np.std(values[2.0]) < np.std(values[8.0]) < np.std(values[0.0])


def test_the_logging_policy_judged_by_itself_is_its_own_mean() -> None:
    log = WORLD.draw(users=300, seed=5)
    found = off_policy(rows_of(log, "logging"), OpeConfig())
    assert found["ips"] == found["logged"]
    assert found["snips"] == found["logged"]
    assert found["weights"]["ess_share"] == pytest.approx(1)


def test_a_mean_weight_off_1_is_warned_of() -> None:
    log = WORLD.draw(users=300, seed=5)
    rows = rows_of(log, "softmax")
    assert off_policy(rows, OpeConfig())["warnings"] == []
    doubled = LoggedRows(
        reward_n=rows.reward_n, propensity_n=rows.propensity_n, target_n=rows.target_n / 2,
        block_n=rows.block_n,
    )  # fmt: skip
    found = off_policy(doubled, OpeConfig())
    assert found["mean_weight"]["high"] < 1
    assert "the mean weight is not 1" in found["warnings"][0]
    assert off_policy(doubled, OpeConfig(clip=100.0))["warnings"] == []


def test_an_on_policy_mean_is_resampled_with_the_estimates() -> None:
    log, own = WORLD.draw(users=500, seed=1), WORLD.draw(users=500, seed=2, logging="softmax")
    on_policy = OnPolicyRows(reward_n=own.reward_n, block_n=own.user_n + 10_000)
    found = off_policy(rows_of(log, "softmax"), OpeConfig(), on_policy)
    assert found["on_policy"]["value"] == pytest.approx(own.reward_n.mean())
    gap = found["difference"]["ips"]
    assert gap["value"] == pytest.approx(found["ips"]["value"] - found["on_policy"]["value"])
    assert gap["low"] < 0 < gap["high"]
    assert gap["high"] - gap["low"] > found["ips"]["high"] - found["ips"]["low"]
    worst = off_policy(rows_of(log, "worst"), OpeConfig(), on_policy)["difference"]["ips"]
    assert worst["high"] < 0


def test_intervals_by_user_are_wider_than_by_row_where_users_repeat() -> None:
    log = WORLD.draw(users=300, seed=9, rows_per_user=20)
    rows = rows_of(log, "softmax")
    by_row = LoggedRows(
        reward_n=rows.reward_n, propensity_n=rows.propensity_n, target_n=rows.target_n,
        block_n=np.arange(len(rows)),
    )  # fmt: skip
    width = [made["high"] - made["low"] for made in (
        off_policy(rows, OpeConfig())["ips"], off_policy(by_row, OpeConfig())["ips"])]  # fmt: skip
    assert width[0] > 1.2 * width[1]


def test_many_blocks_are_joined_and_the_interval_stays() -> None:
    rng = np.random.default_rng(0)
    n = 60_000
    rows = LoggedRows(
        reward_n=(rng.random(n) < 0.3).astype(float), propensity_n=np.full(n, 0.5),
        target_n=np.where(rng.random(n) < 0.5, 1.0, 0.0), block_n=np.arange(n),
    )  # fmt: skip
    found = off_policy(rows, OpeConfig(resamples=200))
    weighted = rows.target_n / rows.propensity_n * rows.reward_n
    expected = 2 * 1.96 * weighted.std() / np.sqrt(n)
    assert found["blocks"] == n
    assert found["ips"]["high"] - found["ips"]["low"] == pytest.approx(expected, rel=0.2)


def test_policies_from_counts() -> None:
    cell, action = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 2, 1, 1])
    policy = empirical_policy(cell, action, cells=3, actions=3)
    assert policy.share_CA.tolist() == [[2 / 3, 0, 1 / 3], [0, 1, 0], [0, 0, 0]]
    assert policy.known().tolist() == [True, True, False]
    even = uniform_policy(cell, action, cells=3, actions=3)
    assert even.share_CA.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]


def test_rates_never_see_their_own_block() -> None:
    rng = np.random.default_rng(4)
    n = 4_000
    cell, action, block = rng.integers(0, 3, n), rng.integers(0, 4, n), rng.integers(0, 200, n)
    truth_CA = rng.uniform(0.1, 0.9, (3, 4))
    reward = (rng.random(n) < truth_CA[cell, action]).astype(float)
    target = uniform_policy(cell, action, cells=3, actions=4)
    logged, expected = cross_fitted_rates(cell, action, reward, block, target, prior_weight=1.0)
    assert np.abs(logged - truth_CA[cell, action]).mean() < 0.05
    assert np.abs(expected - truth_CA.mean(1)[cell]).max() < 0.05
    changed = np.where(block == 7, 1 - reward, reward)
    again, _ = cross_fitted_rates(cell, action, changed, block, target, prior_weight=1.0)
    assert (again[block == 7] == logged[block == 7]).all()
    assert (again != logged).any()


def test_dr_with_cross_fitted_rates_is_unbiased_where_the_policy_depends_on_the_cell() -> None:
    """Cells are the types of users: what both policies depend on."""
    values, truth = [], WORLD.values["softmax"]
    for seed in range(60):
        log = WORLD.draw(users=400, seed=seed)
        _, cell = np.unique(log.context_nD[:, 0], return_inverse=True)
        types, actions = int(cell.max()) + 1, log.true_nA.shape[1]
        share_CA = np.zeros((types, actions))
        share_CA[cell] = log.policies_nA["softmax"]
        target = empirical_policy(cell, log.action_n, cells=types, actions=actions)
        target = type(target)(share_CA=share_CA)
        logged, expected = cross_fitted_rates(cell, log.action_n, log.reward_n, log.user_n, target)
        rows = rows_of(log, "softmax")
        rows = LoggedRows(
            reward_n=rows.reward_n, propensity_n=rows.propensity_n, target_n=rows.target_n,
            block_n=rows.block_n, model_logged_n=logged, model_target_n=expected,
        )  # fmt: skip
        values.append(off_policy(rows, OpeConfig(resamples=1))["dr"]["value"])
    assert abs(np.mean(values) - truth) < 3 * np.std(values) / np.sqrt(60)
