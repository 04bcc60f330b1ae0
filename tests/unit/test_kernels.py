"""The tables and the heap under the join, against dictionaries and heapq."""

import heapq
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream import kernels as k
from stream.counters import CounterTable
from stream.user_state import grown_table, table_of, table_rows

ROOT = Path(__file__).parents[2]


def test_a_table_under_insertions_and_deletions_is_a_dictionary():
    rng = random.Random(1)
    table, truth = np.zeros((64, 2), np.int64), {}
    for _ in range(4_000):
        # Few low bits, so that runs are long and wrap around the end.
        key = rng.choice((1, 62, 63, 127, -1, -65)) + 64 * rng.randrange(5)
        if key in truth and rng.random() < 0.6:
            k.delete(table, k.find(table, key))
            del truth[key]
        elif key and key not in truth and len(truth) < 30:
            value = rng.randrange(1, 1 << 40)
            k.insert(table, key, value)
            truth[key] = value
        assert len(table_rows(table)) == len(truth)
        for one in (*truth, key):
            place = k.find(table, one)
            assert (place >= 0) == (one in truth)
            if place >= 0:
                assert table[place, 1] == truth[one]


def test_growing_and_packing_keep_every_entry():
    table = np.zeros((16, 2), np.int64)
    for key in range(1, 8):
        k.insert(table, key * 16, key)
    grown = grown_table(table, 100)
    assert len(grown) >= 200
    packed = table_of(table_rows(grown))
    for made in (grown, packed):
        assert [int(made[k.find(made, key * 16), 1]) for key in range(1, 8)] == list(range(1, 8))
        assert k.find(made, 999) == -1


def test_the_heap_gives_settle_times_in_order_and_ties_by_number():
    rng = random.Random(2)
    heap, truth = np.zeros((500, 3), np.int64), []
    for number in range(500):
        if truth and rng.random() < 0.4:
            assert tuple(heap[0]) == heapq.heappop(truth)
            k.pop_heap(heap, len(truth) + 1)
        settle = rng.randrange(20)
        k.push_heap(heap, len(truth), settle, number, number * 7)
        heapq.heappush(truth, (settle, number, number * 7))
    while truth:
        assert tuple(heap[0]) == heapq.heappop(truth)
        k.pop_heap(heap, len(truth) + 1)


def test_counters_stop_at_their_limit_and_say_so():
    table = CounterTable("test", 1, 1_000)
    table.reserve(0, 10)
    scalars = np.zeros(k.SCALARS, np.int64)
    rows = [
        k.counter_row(table.records, key, scalars, k.N_USER_COUNTERS, 3, -1) for key in (5, 6, 7, 8)
    ]
    assert rows[3] == -1
    assert len(set(rows[:3])) == 3
    assert scalars[k.OVERFLOW_COUNTERS] == 1
    again = k.counter_row(table.records, 6, scalars, k.N_USER_COUNTERS, 3, -1)
    assert again == rows[1]
    assert scalars[k.N_USER_COUNTERS] == 3


def test_growing_counters_moves_their_rows():
    table = CounterTable("test", 1, 1_000_000)
    table.reserve(0, 4)
    scalars = np.zeros(k.SCALARS, np.int64)
    keys = range(1, 5)
    rows = [k.counter_row(table.records, key, scalars, k.N_USER_COUNTERS, 100, -1) for key in keys]
    for row, key in zip(rows, keys, strict=True):
        table.records[row]["n"] = key * 10
    moved = table.reserve(4, 50_000)
    assert moved is not None
    assert [int(table.records[moved[row]]["n"]) for row in rows] == [10, 20, 30, 40]


@pytest.mark.slow
def test_the_kernels_run_as_plain_python_too():
    """Without numba the same samples come out: what is compiled is what is written."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.property.test_join_properties import fingerprint, random_log\n"
        "from tests.support.streams import run, small_config\n"
        "import hashlib\n"
        "print(hashlib.sha256(repr(fingerprint(run(small_config(), random_log(3, 40)[0])))"
        ".encode()).hexdigest())\n"
    )

    def output(jit):
        environment = {"NUMBA_DISABLE_JIT": jit, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True,
            text=True, check=False, timeout=170,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert output("1") == output("0")
