"""Codes: the identities of residual k-means, purity, meaning, growth, refresh and the file."""

import subprocess
import sys

import numpy as np
import pytest
import xxhash
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from embeddings.codebook_file import CodebookUnusable, read_codebook, write_codebook
from embeddings.codes.codebook import Codebook, attributes_of, normalised
from embeddings.codes.fit import FitConfig, churn, fit, grow, refresh
from embeddings.codes.kmeans import lloyd, nearest_many, seeds
from infra.errors import InputError
from tests.support.vectors import grouped_vectors

SMALL = FitConfig(levels=4, size=16, anchors=64, anchors_of_vector=8)
VECTORS, GROUPS, _ = grouped_vectors(n=700)
BOOK = fit(VECTORS, "e1", SMALL)


def codes_of(book, vectors=VECTORS):
    return book.encode_many(vectors, np.ones(len(vectors), bool))


CODES = codes_of(BOOK)


def test_residual_energy_falls_by_what_the_centroids_explain():
    left, energy = normalised(VECTORS, "unit"), [float(len(VECTORS))]
    for level, centroids in enumerate(BOOK.levels):
        place = CODES.rq_BL[:, level] - 1
        members = np.bincount(place, minlength=len(centroids))
        explained = float(members @ (centroids**2).sum(axis=1))
        left = left - centroids[place]
        energy.append(float((left**2).sum()))
        assert energy[-1] <= energy[-2]
        assert energy[-2] - energy[-1] == pytest.approx(explained, rel=1e-4)
    assert energy[-1] < 0.5 * energy[1]
    np.testing.assert_allclose(CODES.residual_BL.sum(axis=0), energy[1:])


def test_a_vector_is_its_centroids_and_what_is_left():
    points = normalised(VECTORS, "unit")
    left = points - BOOK.reconstruct(CODES.rq_BL)
    np.testing.assert_allclose((left**2).sum(axis=1), CODES.residual_BL[:, -1], atol=1e-12)


@pytest.mark.parametrize("batch", (1, 7, 500))
def test_codes_do_not_depend_on_the_batch(batch):
    parts = [codes_of(BOOK, VECTORS[i : i + batch]) for i in range(0, len(VECTORS), batch)]
    assert np.array_equal(np.concatenate([p.rq_BL for p in parts]), CODES.rq_BL)
    assert np.array_equal(np.concatenate([p.vq_BT for p in parts]), CODES.vq_BT)
    assert np.array_equal(np.concatenate([p.residual_BL for p in parts]), CODES.residual_BL)


@pytest.mark.slow
def test_another_process_gives_the_same_book_and_codes():
    program = (
        "from embeddings.codes.fit import *; import xxhash;"
        "from tests.support.vectors import grouped_vectors;"
        "V = grouped_vectors(n=700)[0];"
        "B = fit(V, 'e1', FitConfig(levels=4, size=16, anchors=64, anchors_of_vector=8));"
        "C = B.encode_many(V, np.ones(len(V), bool));"
        "print(B.version, xxhash.xxh3_64_hexdigest(C.rq_BL.tobytes()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": "."},
    ).stdout.split()  # fmt: skip
    assert told == [BOOK.version, xxhash.xxh3_64_hexdigest(CODES.rq_BL.tobytes())]


@pytest.mark.parametrize("t", (1, 5, 25, 64))
def test_nearest_ones_are_those_of_brute_force_also_among_ties(t):
    rng = np.random.default_rng(1)
    points = rng.integers(-2, 3, size=(300, 4)).astype(float)  # many are equally far
    centroids = rng.integers(-2, 3, size=(64, 4)).astype(float)
    squared = ((points[:, None] - centroids) ** 2).sum(axis=2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :t]
    places, distances = nearest_many(points, centroids, t)
    assert np.array_equal(places, expected)
    assert np.array_equal(distances, np.take_along_axis(squared, expected, axis=1))


def test_no_cluster_is_empty_and_level_1_is_used_evenly():
    for level, centroids in enumerate(BOOK.levels):
        counts = np.bincount(CODES.rq_BL[:, level] - 1, minlength=len(centroids))
        assert counts.min() > 0
        if level == 0:
            share = counts / counts.sum()
            assert np.exp(-(share * np.log(share)).sum()) > 0.5 * len(centroids)


def test_a_cluster_that_lost_its_members_is_put_elsewhere_and_counted():
    points = np.array([[0.0, 0], [0, 1], [10, 0], [10, 1]])
    start = np.array([[0.0, 0.5], [10.0, 0.5], [500.0, 0.0]])
    found = lloyd(points, start, 10, reseed=True)
    assert found.reseeded == 1
    assert np.bincount(found.nearest_N, minlength=3).min() > 0
    kept = lloyd(points, start, 10, reseed=False)
    assert kept.reseeded == 0
    assert kept.centroids_KD[2].tolist() == [500.0, 0.0]


def test_fewer_places_than_centroids_give_fewer_centroids():
    assert len(seeds(np.array([[0.0], [1.0], [0.0]]), 8, np.random.default_rng(0))) == 2


def test_longer_prefixes_tell_more_items_apart():
    unique, book = [], fit(VECTORS, "e1", FitConfig(levels=3, size=64))
    for length in range(1, 4):
        _, counts = np.unique(codes_of(book).rq_BL[:, :length], axis=0, return_counts=True)
        unique.append(float((counts == 1).sum() / len(VECTORS)))
    assert unique == sorted(unique)
    assert unique[-1] >= 0.7


def test_an_anchor_is_its_own_first_code_and_codes_are_distinct():
    own = BOOK.encode_many(BOOK.anchors_PD, np.ones(len(BOOK.anchors_PD), bool)).vq_BT
    assert own[:, 0].tolist() == list(range(1, len(BOOK.anchors_PD) + 1))
    assert all(len(set(row)) == SMALL.anchors_of_vector for row in CODES.vq_BT.tolist())


def test_shared_anchors_go_with_the_cosine():
    rng = np.random.default_rng(2)
    left, right = rng.integers(len(VECTORS), size=(2, 2_000))
    cosine = (VECTORS[left] * VECTORS[right]).sum(axis=1)
    shared = [
        len(set(a) & set(b))
        for a, b in zip(CODES.vq_BT[left].tolist(), CODES.vq_BT[right].tolist(), strict=True)
    ]
    assert spearmanr(cosine, shared).statistic > 0.5


def test_items_that_share_more_of_their_path_are_more_alike():
    cosine = VECTORS @ VECTORS.T
    others = ~np.eye(len(VECTORS), dtype=bool)
    means = [cosine[others].mean()]
    for length in (1, 2):
        path = CODES.rq_BL[:, :length]
        same = (path[:, None] == path[None]).all(axis=2) & others
        means.append(cosine[same].mean())
    assert means[1] > means[0] + 0.4
    assert means[2] > means[1] + 0.05


def test_a_new_item_gets_the_codes_of_its_twin_and_one_without_vector_gets_none():
    present = np.array([True, False])
    codes = BOOK.encode_many(np.stack([VECTORS[5] * 3, np.zeros(32, np.float32)]), present)
    known = attributes_of(CODES, 5)
    assert attributes_of(codes, 0) == known
    assert list(known) == [
        *("codes.rq1", "codes.rq2", "codes.rq3", "codes.rq4"),
        *("codes.prefix2", "codes.prefix3", "codes.prefix4", "codes.vq"),
    ]
    assert known["codes.prefix2"] == f"{known['codes.rq1']}-{known['codes.rq2']}"
    assert 1 <= known["codes.rq1"] <= 16
    assert attributes_of(codes, 1) == {}
    assert codes.rq_BL[1].tolist() == [0] * 4


def test_a_refresh_without_iterations_changes_nothing():
    same = refresh(BOOK, VECTORS, FitConfig(iterations=0))
    assert same.book.version == BOOK.version
    assert np.array_equal(codes_of(same.book).rq_BL, CODES.rq_BL)
    assert all(not len(ids) for ids in same.replaced)


def drifted():
    """The old items, and new ones in groups that were not there."""
    fresh, _, _ = grouped_vectors(n=250, groups=4, seed=9)
    return np.concatenate([VECTORS, fresh]), fresh


def inertia(book, vectors):
    return codes_of(book, vectors).residual_BL[:, 0].sum()


def test_ids_keep_their_meaning_when_the_catalogue_drifts():
    vectors, _ = drifted()
    config = FitConfig(size=16, iterations=5, seed=3)
    raw = fit(vectors, "e1", FitConfig(levels=4, size=16, seed=3))
    cold = refresh(BOOK, vectors, config, cold=True).book
    warm = refresh(BOOK, vectors, config).book
    changed = {
        name: churn(CODES, codes_of(book))
        for name, book in (("raw", raw), ("cold", cold), ("warm", warm))
    }
    assert changed["raw"][0] > 0.8
    assert changed["cold"][0] < changed["raw"][0] - 0.3
    assert changed["warm"][0] < 0.3
    assert inertia(warm, vectors) < inertia(BOOK, vectors)
    frozen = refresh(BOOK, vectors, config, frozen_levels=1).book
    assert churn(CODES, codes_of(frozen))[0] == 0


def test_growth_gives_new_groups_codes_and_leaves_the_old_ones():
    vectors, fresh = drifted()
    grown = grow(BOOK, vectors, SMALL)
    assert 16 < len(grown.levels[0]) <= grown.slots == 18
    assert grown.version != BOOK.version
    near = CODES.residual_BL[:, 0] <= BOOK.radius**2
    assert near.mean() > 0.99
    assert np.array_equal(codes_of(grown).rq_BL[near], CODES.rq_BL[near])
    new = codes_of(grown, fresh)
    assert (new.rq_BL[:, 0] > 16).mean() > 0.3
    assert new.residual_BL[:, 0].sum() < codes_of(BOOK, fresh).residual_BL[:, 0].sum()
    assert grow(grown, VECTORS, SMALL) is grown  # no slot or nothing far: the same book


def test_churn_counts_paths_and_is_unknown_without_items():
    other = codes_of(BOOK)
    other.rq_BL[:175, 1] += 1
    assert churn(CODES, other) == [0.0, 0.25, 0.25, 0.25]
    none = BOOK.encode_many(VECTORS, np.zeros(len(VECTORS), bool))
    assert churn(CODES, none) == [None] * 4


def test_outliers_in_length_do_not_make_codes_of_length():
    lengths = np.where(np.arange(len(VECTORS)) % 50 == 0, 100.0, 1.0)[:, None]
    long = fit(VECTORS * lengths, "e1", SMALL)
    assert np.array_equal(codes_of(long, VECTORS * lengths).rq_BL, codes_of(long).rq_BL)
    raw = fit(VECTORS * lengths, "e1", FitConfig(levels=1, size=16, normalisation="none"))
    short = codes_of(raw, VECTORS * lengths).rq_BL[lengths[:, 0] == 1, 0]
    assert len(set(short.tolist())) < 4


def test_a_release_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "book.safetensors"
    vectors, fresh = drifted()
    grown = grow(BOOK, vectors, SMALL)
    write_codebook(path, grown)
    read = read_codebook(path)
    assert read.version == grown.version
    assert read.facts["grown_from"] == BOOK.version
    assert np.array_equal(codes_of(read, fresh).rq_BL, codes_of(grown, fresh).rq_BL)
    assert [p.name for p in tmp_path.iterdir()] == ["book.safetensors"]


def test_files_that_hold_no_book_are_refused(tmp_path):
    path = tmp_path / "book.safetensors"
    for content in (b"", b"no codebook at all"):
        path.write_bytes(content)
        with pytest.raises(CodebookUnusable, match="millrace codes fit"):
            read_codebook(path)
    save_file({"level1": np.zeros((2, 2))}, path)
    with pytest.raises(CodebookUnusable, match="codebook"):
        read_codebook(path)
    write_codebook(path, BOOK)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CodebookUnusable, match="changed or damaged"):
        read_codebook(path)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="no item has a vector"):
        fit(np.zeros((0, 8), np.float32), "e1", SMALL)
    with pytest.raises(ValueError, match="anchors"):
        FitConfig(anchors=4, anchors_of_vector=5)
    with pytest.raises(ValueError, match="1 to 3"):
        nearest_many(np.zeros((1, 2)), np.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match="NaN"):
        Codebook(
            encoder_version="e", normalisation="unit", levels=(np.full((1, 2), np.nan),),
            anchors_PD=np.zeros((0, 2)), anchors_of_vector=0, born_K=np.zeros(1, np.int64),
            radius=1.0, slots=1,
        )  # fmt: skip
