"""Pairs of items that one user took: against a plain loop, and each limit."""

import random

import numpy as np
import pytest

from embeddings.pretrain.pairs import Interactions, PairConfig, in_order, mine_pairs, pair_blocks


def interactions(rows):
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return Interactions(*columns.T)


def as_set(pairs):
    columns = (pairs.user_P, pairs.left_P, pairs.right_P, pairs.ts_ms_P)
    found = list(zip(*(c.tolist() for c in columns), strict=True))
    assert len(found) == len(set(found))
    return set(found)


def brute_force(rows, config):
    first = {}
    for user, item, ts in rows:
        first[user, item] = min(ts, first.get((user, item), ts))
    found = set()
    for user in {u for u, _ in first}:
        items = sorted(((ts, i) for (u, i), ts in first.items() if u == user))
        for a, (earlier_ms, left) in enumerate(items):
            for later_ms, right in items[a + 1 : a + 1 + config.window_items]:
                if not config.window_ms or later_ms - earlier_ms <= config.window_ms:
                    found.add((user, left, right, later_ms))
    return found


@pytest.mark.parametrize("window_ms", (0, 40))
@pytest.mark.parametrize("window_items", (1, 3, 50))
def test_pairs_are_those_of_a_plain_loop(window_ms, window_items):
    rng = random.Random(window_ms + window_items)
    times = rng.sample(range(1_000), 200)  # no ties, whose order would be the log's
    rows = [(rng.randrange(9), rng.randrange(30), ts) for ts in times]
    config = PairConfig(window_ms=window_ms, window_items=window_items)
    found = mine_pairs(interactions(rows), config)
    assert len(found) > 20
    assert as_set(found) == brute_force(rows, config)
    assert np.all(np.diff(found.ts_ms_P) >= 0)


def test_an_item_counts_once_a_user_at_its_first_time():
    rows = in_order(interactions([(1, 7, 30), (1, 8, 20), (1, 7, 10), (2, 7, 5)]))
    assert rows.item_n.tolist() == [7, 8, 7]
    assert rows.ts_ms_n.tolist() == [10, 20, 5]


def test_ties_in_time_keep_the_order_of_the_log():
    rows = in_order(interactions([(1, 9, 10), (1, 3, 10), (1, 5, 10)]))
    assert rows.item_n.tolist() == [9, 3, 5]


def test_of_a_user_with_too_many_pairs_the_nearest_and_latest_count():
    rows = [(1, item, item) for item in range(5)] + [(2, 1, 0), (2, 2, 1)]
    found = as_set(mine_pairs(interactions(rows), PairConfig(user_pairs_max=5)))
    assert found == {
        (1, 0, 1, 1),
        (1, 1, 2, 2),
        (1, 2, 3, 3),
        (1, 3, 4, 4),
        (1, 2, 4, 4),
        (2, 1, 2, 1),
    }


def test_of_an_item_with_too_many_pairs_as_many_as_allowed_count():
    rows = [row for user in range(40) for row in ((user, 0, 0), (user, 100 + user, 1))]
    found = mine_pairs(interactions(rows), PairConfig(item_pairs_max=7, seed=3))
    again = mine_pairs(interactions(rows), PairConfig(item_pairs_max=7, seed=3))
    other = mine_pairs(interactions(rows), PairConfig(item_pairs_max=7, seed=4))
    assert len(found) == 7
    assert as_set(found) == as_set(again) != as_set(other)


def test_nothing_gives_no_pairs():
    assert len(mine_pairs(interactions([]), PairConfig())) == 0
    assert list(pair_blocks(interactions([(1, 1, 1), (2, 2, 2)]), PairConfig())) == []


@pytest.mark.parametrize("setting", ("window_items", "user_pairs_max"))
def test_a_limit_of_zero_is_refused(setting):
    with pytest.raises(ValueError, match="at least 1"):
        PairConfig(**{setting: 0})
