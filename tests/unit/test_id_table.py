"""Admission, expiry, plan and state of the id table against a plain dictionary."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from infra.state import Part
from learners.feature_spec import IdField
from learners.id_kernels import LEARN, LEARN_AND_COUNT, READ
from learners.id_table import IdTable, KeyBlock, noise_of_keys


def table(*, admit_after=0, rows_max=1000, expire_ms=0, waiting_max=64):
    fields = (
        IdField(name="user", admit_after=admit_after, rows_max=rows_max, expire_ms=expire_ms),
        IdField(name="item"),
    )
    return IdTable(fields, waiting_max=waiting_max)


def block(keys, field=0, *, admit=True):
    keys = np.asarray(keys, np.int64).reshape(-1, 1)
    return KeyBlock(
        keys_BN=keys, field_N=np.array([field]), source=np.array([0, 1, 1]), admit=admit
    )


def learn(ids, keys, *, flag=LEARN_AND_COUNT, clock_ms=0, step=1, admit=True):
    b = block(keys, admit=admit)
    (read, _), *_ = (reads := ids.learn([b], np.full(len(keys), flag, np.uint8),
                                        clock_ms=clock_ms, step=step))[0]  # fmt: skip
    return read[:, 0].tolist(), reads[1]


def rows_of(ids, keys):
    return ids.predict(block(keys))[0][:, 0].tolist()


def test_ids_get_rows_of_their_own_in_order_of_sight():
    ids = table()
    read, plan = learn(ids, [7, 9, 7])
    assert read == [0, 0, 0]  # read from the shared row once more
    assert rows_of(ids, [7, 9, 8, 0]) == [3, 4, 0, 2]  # 8 is unseen, 0 is padding
    assert plan.new_n.tolist() == [3, 4]
    assert learn(ids, [9, 7])[0] == [4, 3]


def test_prediction_changes_nothing():
    ids = table()
    learn(ids, [1, 2, 3])
    before = ids.n.copy(), ids.key_R.copy()
    rows_of(ids, range(1, 50))
    np.testing.assert_array_equal(ids.n, before[0])
    np.testing.assert_array_equal(ids.key_R, before[1])


def test_plan_lists_each_row_once_with_its_occurrences_in_order():
    ids = table()
    learn(ids, [5, 6])
    _, plan = learn(ids, [6, 5, 0, 6, 5, 6])
    found = {
        int(row): plan.sources_O[a:b].tolist()
        for row, a, b in zip(
            plan.rows_U, plan.offsets_U, [*plan.offsets_U[1:], len(plan.sources_O)], strict=True
        )
    }
    assert found == {3: [1, 4], 4: [0, 3, 5]}


def test_sources_of_several_blocks_point_into_one_gradient_matrix():
    ids = table()
    columns = KeyBlock(
        keys_BN=np.array([[11, 21], [12, 22]]),
        field_N=np.array([0, 1]),
        source=np.array([0, 2, 1]),
        admit=True,
    )
    bag = KeyBlock(
        keys_BN=np.array([[21, 22, 0], [0, 0, 0]]),
        field_N=np.array([1, 1, 1]),
        source=np.array([4, 1, 0]),
        admit=True,
    )
    reads, plan = ids.learn([columns, bag], np.full(2, LEARN_AND_COUNT, np.uint8),
                            clock_ms=0, step=1)  # fmt: skip
    assert reads[1][1].tolist() == [0.5, 0.0]
    assert reads[1][0].tolist() == [[1, 1, 2], [2, 2, 2]]
    assert sorted(plan.sources_O.tolist()) == [0, 1, 2, 3, 4, 4]
    assert plan.rows_U.tolist() == [3, 4, 5, 6]


def test_admission_after_sightings_and_per_field_shared_rows():
    ids = table(admit_after=2)
    assert learn(ids, [7])[1].rows_U.tolist() == [0]
    assert learn(ids, [7])[1].rows_U.tolist() == [0]
    assert rows_of(ids, [7]) == [0]
    assert learn(ids, [7])[1].rows_U.tolist() == [3]
    assert rows_of(ids, [7]) == [3]
    _, plan = learn(ids, [8, 8, 8, 8])  # two for the shared row, two for its own
    assert plan.rows_U.tolist() == [0, 4]
    assert plan.offsets_U.tolist() == [0, 2]


@pytest.mark.parametrize("flag", (READ, LEARN))
def test_what_is_no_sample_does_not_count(flag):
    ids = table(admit_after=1)
    for _ in range(3):
        learn(ids, [7], flag=flag)
    assert rows_of(ids, [7]) == [0]
    assert learn(ids, [7])[1].rows_U.tolist() == [0]  # the first sighting
    learn(ids, [7])
    assert rows_of(ids, [7]) == [3]
    assert len(learn(ids, [7], flag=flag)[1].rows_U) == (0 if flag == READ else 1)


def test_bags_may_be_kept_from_admitting():
    ids = table()
    learn(ids, [7], admit=False)
    assert rows_of(ids, [7]) == [0]


def test_full_field_shares_and_counts():
    ids = table(rows_max=2)
    learn(ids, [1, 2, 3, 4, 3])
    assert rows_of(ids, [1, 2, 3, 4]) == [3, 4, 0, 0]
    assert ids.counts()["overflow"] == 3
    assert ids.counts()["rows"] == 2


def test_waiting_ids_are_bounded_and_the_oldest_gives_way():
    ids = table(admit_after=1, waiting_max=4)
    learn(ids, [1, 2, 3, 4, 5])
    assert ids.counts()["waiting_dropped"] == 1
    learn(ids, [5, 2])
    assert rows_of(ids, [1, 2, 5]) == [0, 4, 3]
    learn(ids, [1])  # forgotten: its second sighting is the first again
    assert rows_of(ids, [1]) == [0]


def test_rows_expire_by_last_update_and_start_anew():
    ids = table(expire_ms=100_000)
    learn(ids, [1, 2, 3], clock_ms=0)
    learn(ids, [2], clock_ms=80_000)
    ids.expire(10, clock_ms=100_000, step=2)
    assert ids.counts()["expired"] == 0
    ids.expire(10, clock_ms=100_001, step=2)
    assert rows_of(ids, [1, 2, 3]) == [0, 4, 0]
    assert ids.touched_rows(1).tolist() == [3, 5]
    learn(ids, [9, 8], clock_ms=102_000)  # last freed, first reused
    assert rows_of(ids, [9, 8]) == [5, 3]
    assert ids.counts()["rows"] == 3


def test_expiry_looks_at_a_bounded_slice():
    ids = table(expire_ms=1)
    learn(ids, range(1, 101))
    for step in range(10):
        ids.expire(10, clock_ms=10_000, step=step)
        assert ids.counts()["expired"] == 10 * (step + 1)


def test_table_agrees_with_a_dictionary_over_random_streams():
    rng = np.random.default_rng(0)
    ids = table(expire_ms=30_000, rows_max=5000)
    last = {}
    for step in range(1, 200):
        keys = rng.integers(1, 400, 20) * 2**33  # equal low words: probing runs
        learn(ids, keys, clock_ms=1000 * step, step=step)
        last |= dict.fromkeys(keys.tolist(), step)
        ids.expire(5000, clock_ms=1000 * step, step=step)
        last = {k: t for k, t in last.items() if step - t <= 30}
    every = np.arange(1, 400) * 2**33
    rows = np.array(rows_of(ids, every))
    assert {k for k, row in zip(every.tolist(), rows, strict=True) if row} == last.keys()
    own = rows[rows > 0]
    assert len(set(own.tolist())) == len(last) == ids.counts()["rows"]


def snapshot(ids, mark=None):
    rows = np.arange(ids.high) if mark is None else ids.touched_rows(mark)
    delta = mark is not None
    meta = {"high": ids.high}
    return (
        Part(name="a", part_class="serve", arrays=ids.serve_arrays(rows), meta=meta, delta=delta),
        Part(name="b", part_class="train", arrays=ids.train_arrays(rows), delta=delta),
    )


def test_restored_table_continues_alike_also_by_deltas():
    rng = np.random.default_rng(1)
    a, b = (table(admit_after=1, expire_ms=40_000, rows_max=90, waiting_max=32) for _ in range(2))
    for step in range(1, 120):
        keys = rng.integers(1, 200, 15)
        learn(a, keys, clock_ms=1000 * step, step=step)
        a.expire(7, clock_ms=1000 * step, step=step)
        mark = {30: None, 60: 30, 119: 60}.get(step, -1)
        if mark != -1:
            serve, train = snapshot(a, mark)
            b.apply_serve(serve)
            b.apply_train(train)
            assert rows_of(a, range(1, 200)) == rows_of(b, range(1, 200))
    for step in range(120, 300):
        keys = rng.integers(1, 200, 15)
        (read_a, plan_a), (read_b, plan_b) = (
            learn(x, keys, clock_ms=1000 * step, step=step) for x in (a, b)
        )
        assert read_a == read_b
        np.testing.assert_array_equal(plan_a.rows_U, plan_b.rows_U)
        np.testing.assert_array_equal(plan_a.new_n, plan_b.new_n)
        a.expire(7, clock_ms=1000 * step, step=step)
        b.expire(7, clock_ms=1000 * step, step=step)
    assert a.counts() == b.counts()
    assert a.counts()["expired"] > 50
    assert a.counts()["overflow"] > 0


def test_part_that_does_not_fit_is_refused():
    small, big = table(rows_max=10), table(rows_max=10_000)
    big.learn([block(np.arange(1, 1_500_000, 2))], np.full(750_000, 2, np.uint8),
              clock_ms=0, step=1)  # fmt: skip
    assert big.counts()["overflow"] > 0
    small.rows_limit = 100
    with pytest.raises(ValueError, match="raise rows_max"):
        small.apply_serve(snapshot(big)[0])


def test_noise_depends_on_key_and_seed_alone():
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, 20_000)
    noise = noise_of_keys(keys, 6, sigma=0.02, seed=1)
    np.testing.assert_array_equal(
        noise[::-1], noise_of_keys(keys[::-1].copy(), 6, sigma=0.02, seed=1)
    )
    assert abs(noise.mean()) < 3e-4
    assert noise.std() == pytest.approx(0.02, rel=0.02)
    assert abs(np.corrcoef(noise.T) - np.eye(6)).max() < 0.03
    assert not np.array_equal(noise, noise_of_keys(keys, 6, sigma=0.02, seed=2))


SCRIPT = """
import hashlib, numpy as np
from learners.feature_spec import IdField
from learners.id_table import IdTable, KeyBlock, noise_of_keys
rng, digest = np.random.default_rng(0), hashlib.sha256()
ids = IdTable([IdField(name="a", admit_after=1, expire_ms=20_000, rows_max=60)], waiting_max=16)
for step in range(1, 60):
    keys = rng.integers(-90, 90, (6, 4)) * (2**57 + 12345)
    block = KeyBlock(keys_BN=keys, field_N=np.zeros(4, np.int64), source=np.array([0, 4, 1]),
                     admit=True)
    flags = rng.integers(0, 3, 6).astype(np.uint8)
    reads, plan = ids.learn([block], flags, clock_ms=1000 * step, step=step)
    ids.expire(3, clock_ms=1000 * step, step=step)
    for array in (*reads[0], plan.rows_U, plan.offsets_U, plan.sources_O, plan.new_n):
        digest.update(array.tobytes())
digest.update(noise_of_keys(keys.ravel(), 7, sigma=0.1, seed=3).tobytes())
print(digest.hexdigest(), ids.counts())
"""


@pytest.mark.slow
def test_uncompiled_loops_give_the_same_bits():
    runs = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        runs.append(
            subprocess.run(
                [sys.executable, "-W", "error", "-c", SCRIPT],
                env=environment, capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
    assert runs[0] == runs[1]
    assert "'expired': 0" not in runs[0]
