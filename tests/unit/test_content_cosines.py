"""Cosines of targets with histories against plain loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from learners.batch import ContentRows
from learners.content_cosines import ContentCosines, Cosines
from learners.feature_spec import ContentBlock
from learners.step_inputs import step_inputs
from tests.conformance.learner_checks import take
from tests.support.batches import BatchMaker, small_spec


def content(table_VC, target_B, bags_BL, dtype=np.float32):
    """A batch's content; the table's last row is made zeros."""
    table = np.vstack([table_VC, np.zeros(table_VC.shape[1])]).astype(dtype)
    return ContentRows(
        table_VC=torch.from_numpy(table),
        target_B=torch.from_numpy(target_B),
        missing_B=torch.from_numpy(target_B == len(table_VC)),
        bags_BL=tuple(torch.from_numpy(bag) for bag in bags_BL),
        bag_inv_len_B=tuple(torch.ones(len(target_B)) for _ in bags_BL),
        encoder="test",
    )


def cosines(rows: ContentRows, block=None) -> list[Cosines]:
    """Of histories whose places with a row of the table, or with none, are all filled."""
    keys = [np.ones(tuple(bag.shape), np.int64) for bag in rows.bags_BL]
    block = block or ContentBlock(name="", start=0, dim=rows.table_VC.shape[1])
    return list(ContentCosines(rows, keys).histories(block))


def loop(rows: ContentRows, bag: int, block: ContentBlock) -> tuple[np.ndarray, np.ndarray]:
    """Cosines pair by pair in float64, and where there are any."""
    table = rows.table_VC.numpy().astype(np.float64)[:, block.columns]
    places = rows.bags_BL[bag].numpy()
    r, known = np.zeros(places.shape), np.zeros(places.shape, bool)
    for (b, place), row in np.ndenumerate(places):
        t, x = table[rows.target_B[b]], table[row]
        if t.any() and x.any():
            r[b, place] = t @ x / np.sqrt((t @ t) * (x @ x))
            known[b, place] = True
    return r, known


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
@pytest.mark.parametrize("dim", (1, 7, 64, 128))
def test_batch_equals_the_loop_over_pairs(dtype, dim):
    rng = np.random.default_rng(dim)
    bags = [rng.integers(0, 41, (30, 9)), rng.integers(0, 41, (30, 4))]
    rows = content(rng.normal(size=(40, dim)), rng.integers(0, 41, 30), bags, dtype)
    block = ContentBlock(name="", start=0, dim=dim)
    for place, found in enumerate(cosines(rows)):
        r, known = loop(rows, place, block)
        np.testing.assert_array_equal(found.known_BL.astype(bool), known)
        np.testing.assert_allclose(found.r_BL, r, atol=3e-7)
        assert not known.all()


def test_blocks_are_compared_inside_themselves():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(20, 12))
    table[5, 4:10] = 0  # this item lacks the second modality
    rows = content(table, rng.integers(0, 20, 25), [rng.integers(0, 20, (25, 6))])
    for block in (ContentBlock(name="", start=0, dim=4), ContentBlock(name="b", start=4, dim=6)):
        (found,) = cosines(rows, block)
        r, known = loop(rows, 0, block)
        np.testing.assert_array_equal(found.known_BL.astype(bool), known)
        np.testing.assert_allclose(found.r_BL, r, atol=3e-7)
        assert known.all() == (block.name == "")


def test_cosine_of_a_vector_with_itself_never_exceeds_1():
    table = np.random.default_rng(2).normal(size=(10_000, 128))
    places = np.arange(10_000)
    (found,) = cosines(content(table, places, [places[:, None]]))
    assert found.r_BL.max() <= 1
    assert found.r_BL.min() > 1 - 1e-6


def test_random_vectors_are_nearly_orthogonal():
    rng = np.random.default_rng(3)
    places = rng.integers(0, 2_000, (500, 40))
    (found,) = cosines(content(rng.normal(size=(4_000, 128)), 2_000 + np.arange(500), [places]))
    assert (np.abs(found.r_BL) < 0.2).mean() >= 0.97


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
def test_positive_scaling_changes_no_cosine(dtype):
    rng = np.random.default_rng(4)
    table, places = rng.normal(size=(50, 32)), rng.integers(0, 50, (60, 5))
    target = rng.integers(0, 50, 60)
    (a,) = cosines(content(table, target, [places], dtype))
    (b,) = cosines(content(table * 2.0 ** rng.integers(-3, 4, (50, 1)), target, [places], dtype))
    np.testing.assert_allclose(a.r_BL, b.r_BL, atol=1e-6)


@pytest.mark.parametrize("dtype", (np.float32, np.float16))
@pytest.mark.parametrize("bad", (np.inf, -np.inf, np.nan))
def test_vectors_that_are_not_finite_count_as_missing(dtype, bad):
    table = np.ones((3, 8))
    table[1, 3] = bad
    rows = content(table, np.array([0, 1, 2]), [np.array([[0, 1], [0, 1], [1, 2]])], dtype)
    (found,) = cosines(rows)
    assert found.known_BL.tolist() == [[1, 0], [0, 0], [0, 1]]
    np.testing.assert_allclose(found.r_BL, [[1, 0], [0, 0], [0, 1]], rtol=1e-6)


def test_float16_numbers_are_read_exactly():
    """Every finite float16, the subnormal ones too."""
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    table = np.stack([every, every[::-1]], 1)
    places = np.arange(1, 0x7C00)
    one = np.full(len(places), len(table) - 1)
    rows = content(table, one, [places[:, None]], np.float16)
    (found,) = cosines(rows)
    r, known = loop(rows, 0, ContentBlock(name="", start=0, dim=2))
    np.testing.assert_array_equal(found.known_BL.astype(bool), known)
    np.testing.assert_allclose(found.r_BL, r, atol=3e-7)


def test_int8_rows_seldom_change_the_tier():
    """Symmetric int8 with one scale a row, as the wire has it, at d = 128 and tier width .1."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=(400, 128))
    table = base + rng.normal(size=(1, 128))  # a common direction spreads the cosines
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    scale = np.abs(table).max(1, keepdims=True) / 127
    rounded = np.rint(table / scale) * scale
    target, places = rng.integers(0, 400, 300), rng.integers(0, 400, (300, 30))
    (a,) = cosines(content(table, target, [places]))
    (b,) = cosines(content(rounded, target, [places]))
    assert np.abs(a.r_BL - b.r_BL).mean() < 0.005
    assert (np.floor(a.r_BL * 10) != np.floor(b.r_BL * 10)).mean() < 0.05


def test_rows_do_not_depend_on_their_batch():
    spec = small_spec()
    batch = BatchMaker(spec).batch(50)
    block = spec.block()

    def of(part):
        return step_inputs(part, spec, torch.device("cpu")).cosines.histories(block)[0]

    whole = of(batch)
    for rows in (slice(0, 1), slice(7, 20), slice(31, 50)):
        for a, b in zip(of(take(batch, rows)), whole, strict=True):
            np.testing.assert_array_equal(a, b[rows])


def test_lengths_count_entries_with_and_without_vectors():
    spec = small_spec()
    batch = BatchMaker(spec).batch(40)
    x = step_inputs(batch, spec, torch.device("cpu"))
    (found,) = x.cosines.histories(spec.block())
    length_B = (batch.bags_BL[0].numpy() != 0).sum(1)
    np.testing.assert_array_equal(found.length_B, length_B)
    assert (found.known_BL.sum(1) < length_B).any()
    assert x.cosines.histories(spec.block())[0] is found


def test_batch_without_content_has_no_cosine():
    spec = small_spec()
    batch = dataclasses.replace(BatchMaker(spec).batch(10), content=None)
    x = step_inputs(batch, spec, torch.device("cpu"))
    (found,) = x.cosines.histories(spec.block())
    assert not found.known_BL.any()
    assert not found.r_BL.any()
    np.testing.assert_array_equal(found.length_B, (batch.bags_BL[0].numpy() != 0).sum(1))
    assert x.cosines.encoder == ""
