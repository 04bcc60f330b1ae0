"""The logged bandit: what it says of itself is true of its draws."""

import numpy as np
import pytest

from tests.support.synthetic_bandit import bandit_world

WORLD = bandit_world(seed=3)


def test_policies_are_distributions_and_the_logging_policy_has_a_floor():
    for p_TA in WORLD.policies_TA.values():
        assert np.allclose(p_TA.sum(axis=1), 1.0)
        assert p_TA.min() >= 0.0
    assert WORLD.policies_TA["logging"].min() >= 0.02


def test_the_best_policy_is_the_best_and_the_worst_the_worst():
    values = WORLD.values
    assert values["worst"] < values["uniform"] < values["softmax"] < values["greedy"]
    assert values["logging"] < values["greedy"]


def test_rows_agree_with_one_another():
    log = WORLD.draw(users=200, seed=1)
    row_n = np.arange(len(log.action_n))
    assert np.array_equal(log.propensity_n, log.logging_nA[row_n, log.action_n])
    for user in np.unique(log.user_n)[:20]:
        assert len(np.unique(log.context_nD[log.user_n == user], axis=0)) == 1
    assert set(np.unique(log.reward_n)) == {0.0, 1.0}
    again = WORLD.draw(users=200, seed=1)
    assert np.array_equal(log.reward_n, again.reward_n)


@pytest.mark.parametrize("name", ("logging", "uniform", "greedy"))
def test_the_mean_reward_of_a_policys_own_log_is_its_value(name):
    log = WORLD.draw(users=20_000, seed=2, logging=name)
    sums = np.bincount(log.user_n, log.reward_n - WORLD.values[name])
    error = np.sqrt((sums**2).sum()) / len(log.reward_n)
    assert abs(log.reward_n.mean() - WORLD.values[name]) < 4 * error
    assert error < 0.003


def test_actions_are_drawn_with_the_logged_propensities():
    log = WORLD.draw(users=20_000, seed=4)
    expected_A = log.logging_nA.mean(axis=0)
    shown_A = np.bincount(log.action_n, minlength=8) / len(log.action_n)
    assert np.abs(shown_A - expected_A).max() < 0.005
    # One over the propensity adds up to the number of actions.
    assert (1 / log.propensity_n).mean() == pytest.approx(8, rel=0.02)
