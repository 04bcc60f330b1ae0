"""Compiled keys against `stream.keys`."""

import numpy as np

from stream import key_kernels as kk
from stream.keys import combined, salted


def words(array):
    return np.asarray(array, np.int64).view(np.uint64)


def numbers(rng, *shape):
    return rng.integers(-(2**63), 2**63 - 1, shape)


def test_identities_are_those_of_the_columns():
    rng = np.random.default_rng(1)
    request, item, user, ts = (numbers(rng, 40) for _ in range(4))
    kind = np.arange(40, dtype=np.uint8) % 5
    click_kind = np.where(np.isin(kind, (1, 2)), np.arange(40) % 3 - 1, -1).astype(np.int16)
    impression, click, organic = numbers(rng, 1), numbers(rng, 3), numbers(rng, 3)
    key, own = np.zeros(40, np.int64), np.zeros(40, np.int64)
    salts = kk.Salts(*map(words, (impression, click, organic)))
    kk.identities(
        kind, *map(words, (request, item, user, ts)), click_kind, salts, words(key), words(own)
    )
    for i in range(40):
        pair = combined([request[i : i + 1], item[i : i + 1]], impression[0])
        which = click_kind[i]  # -1 is the last: a kind that nobody configured
        expected = {
            0: pair, 1: salted(pair, click[which]),
            2: combined([c[i : i + 1] for c in (user, item, ts)], organic[which]),
        }.get(int(kind[i]), [0])  # fmt: skip
        assert key[i] == expected[0]
        assert own[i] == (pair[0] if kind[i] < 2 else 0)


def test_click_keys_are_salted_keys_of_their_impressions():
    rng = np.random.default_rng(3)
    kind = np.array([1, 0, 3, 0, 0, 2], np.uint8)
    row = np.array([-1, 2, -1, 0, 3, -1], np.int32)
    key, salts = numbers(rng, 6), numbers(rng, 3)
    out = np.full((5, 2), 9, np.int64)
    kk.click_keys(kind, row, words(key), words(salts), words(out))
    for i in np.flatnonzero(kind == 0):
        assert out[row[i]].tolist() == [salted(key[i : i + 1], salt)[0] for salt in salts[:2]]
    assert (out[[1, 4]] == 9).all()


def test_counter_keys_are_those_of_their_columns():
    rng = np.random.default_rng(2)
    rows = np.array([4, 1, 2])
    user, item, attribute_ids, attribute_multi = (
        numbers(rng, 3), numbers(rng, 3), numbers(rng, 3, 2), numbers(rng, 3, 4)
    )  # fmt: skip
    ids, multi, salts = numbers(rng, 6, 2), numbers(rng, 6, 3), numbers(rng, 5)
    counters = [
        [(kk.USER, 0)],
        [(kk.ITEM, 0), (kk.EVENT, 1)],
        [(kk.ATTRIBUTE, 1), (kk.MULTI_ATTRIBUTE, 3), (kk.USER, 0)],
        [(kk.MULTI_EVENT, 2)],
    ]
    flat = [column for counter in counters for column in counter]
    columns = kk.CounterColumns(
        first=np.cumsum([0, 0, *map(len, counters)]),
        where=np.array([w for w, _ in flat]), place=np.array([p for _, p in flat]),
        salt=words(salts),
    )  # fmt: skip
    arrays = (user, item, ids, multi, attribute_ids, attribute_multi)
    out = np.full((6, 5), 9, np.int64)
    kk.counter_keys(rows, kk.Sources(*map(words, arrays)), columns, words(out))
    taken = {
        kk.USER: lambda _: user, kk.ITEM: lambda _: item, kk.EVENT: lambda p: ids[rows, p],
        kk.MULTI_EVENT: lambda p: multi[rows, p], kk.ATTRIBUTE: lambda p: attribute_ids[:, p],
        kk.MULTI_ATTRIBUTE: lambda p: attribute_multi[:, p],
    }  # fmt: skip
    for j, counter in enumerate(counters, start=1):
        expected = combined([taken[where](place) for where, place in counter], salts[j])
        np.testing.assert_array_equal(out[rows, j], expected)
    assert (out[[0, 3, 5]] == 9).all()
    assert (out[:, 0] == 9).all()
