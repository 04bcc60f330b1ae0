"""The film study's parts: permuted and hidden steps, and intervals of AUC and GAUC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.vector_file import VectorFile, write_vector_file
from learners import metrics as m
from stream.composition import Variation, load_config
from stream.config import Config
from stream.importers.movielens import MovieLensImportConfig, import_movielens
from tests.benchmarks.movielens_content_data import FILM, Hiding, hidden, permuted
from tests.benchmarks.movielens_content_scores import (
    Rows,
    auc_of_groups,
    auc_resampled,
    differences,
    drawn,
)
from tests.support.recorded import Recording, record

USERS, FILMS, DIM = 4, 12, 6
WITHOUT = 3  # films without a vector


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A log of every user's rating of every film, half of them low; most films have a vector."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(4)
    pairs = rng.permutation(USERS * FILMS)
    ratings = [
        {"user_id": int(p % USERS), "item_id": int(p // USERS), "rating": 3 + i % 2,
         "ts": 978_307_200 + 20 * i}
        for i, p in enumerate(pairs)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(ratings), folder / "ratings.parquet")
    items = [{"item_id": i, "title": f"{i}", "release_date": None} for i in range(FILMS)]
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    log = folder / "log"
    import_movielens(folder, log, MovieLensImportConfig(partitions=1))
    vectors = rng.normal(size=(FILMS - WITHOUT, DIM)).astype(np.float32)
    file = VectorFile(item_ids=list(range(WITHOUT, FILMS)), vectors_ND=vectors, version="v")
    write_vector_file(folder / "vectors.parquet", file)
    settings = ("stream.batch_size=8", f"items.dim={DIM}", "items.cache_rows=64")
    given = (f"items.vectors_file={folder / 'vectors.parquet'}", *settings)
    return load_config("movielens", given), log


@pytest.fixture(scope="module")
def steps(made: tuple[Config, Path]) -> Recording:
    return record(*made)


def vectors_of(recording: Recording) -> torch.Tensor:
    """The target's vector and the mean of each history, of all rows."""
    rows = []
    for _, batch in recording.steps:
        content = batch.content
        assert content is not None
        own = [content.table_VC[content.target_B]]
        rows.append(torch.cat([*own, *(content.table_VC[b].mean(1) for b in content.bags_BL)], 1))
    return torch.cat(rows).float()


def test_permuted_steps_are_those_of_permuted_content(
    made: tuple[Config, Path], steps: Recording
) -> None:
    missing = np.concatenate([b.content.missing_B.numpy() for _, b in steps.steps if b.content])
    films = np.unique(steps.id_n(FILM)[~missing])
    assert len(films) == FILMS - WITHOUT
    there = record(*made, Variation(arms={}, permuted=films, seed=3))
    ours = vectors_of(permuted(steps, 3))
    assert torch.equal(ours, vectors_of(there))
    assert not torch.equal(ours, vectors_of(steps))


def test_withheld_films_are_shown_and_never_learned_from(steps: Recording) -> None:
    films = np.unique(steps.id_n(FILM))
    apart = films[:4]
    result = hidden(steps, Hiding(withheld=apart))
    own = [i for i, d in enumerate(steps.spec.dense) if d.counter == FILM]
    others = [i for i in range(len(steps.spec.dense)) if i not in own]
    rated = 0.0
    for (shown, learned), (_, before) in zip(result.steps, steps.steps, strict=True):
        away = torch.from_numpy(np.isin(learned.ids_BF[:, 1].numpy(), apart))
        assert torch.equal(learned.label_mask_BK[:, 0] == 0, away)
        assert (learned.dense_BD[away][:, own] == 0).all()
        assert torch.equal(learned.dense_BD[:, others], before.dense_BD[:, others])
        assert torch.equal(learned.dense_BD[~away], before.dense_BD[~away])
        rated += float(before.dense_BD[away][:, own].abs().sum())
        for batch in (*shown, learned):
            for bag in batch.bags_BL[:2]:
                assert not np.isin(bag.numpy(), apart).any()
                assert ((bag[:, 1:] != 0) <= (bag[:, :-1] != 0)).all(), "gaps in a history"
    assert rated > 0
    assert steps.spec.ids[1].name == FILM


def test_late_ids_need_their_ratings(steps: Recording) -> None:
    nobody = np.zeros(0, np.int64)
    late = hidden(steps, Hiding(withheld=nobody, admit_after=2))
    assert {f.name: f.admit_after for f in late.spec.ids}[FILM] == 2
    seen: dict[int, int] = {}
    kept = 0
    for (_, learned), (_, before) in zip(late.steps, steps.steps, strict=True):
        for bag, whole in zip(learned.bags_BL[:2], before.bags_BL[:2], strict=True):
            for row, entries in zip(bag.tolist(), whole.tolist(), strict=True):
                expected = [key for key in entries if key and seen.get(key, 0) >= 2]
                assert [key for key in row if key] == expected
                kept += len(expected)
        for key in learned.ids_BF[:, 1].tolist():
            seen[key] = seen.get(key, 0) + 1
    assert kept > 0


def scored(n: int = 2_000, users: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    user = rng.integers(0, users, n)
    label = (rng.random(n) < 0.5).astype(np.int8)
    logit = np.round(rng.normal(size=n) + 0.5 * label, 1).astype(np.float32)
    return logit, label, user


def test_a_drawn_auc_is_that_of_the_rows_drawn() -> None:
    logit, label, user = scored()
    times = drawn(40)
    found = auc_resampled(logit, label, user, times)
    for draw in (0, 1, 7):
        rows = np.repeat(np.arange(len(label)), times[draw][user].astype(int))
        assert found[draw] == pytest.approx(m.auc_exact(logit[rows], label[rows]), abs=1e-12)
    assert times[1:].sum(1).tolist() == [40] * 1_000


def test_rows_of_group_aucs_average_to_the_gauc() -> None:
    logit, label, user = scored(300)
    rows = auc_of_groups(logit, label, user // 2 + 100)
    assert np.nanmean(rows) == pytest.approx(m.gauc(logit, label, user // 2).score, abs=1e-12)
    assert np.isnan(auc_of_groups(logit[:1], label[:1], user[:1])).all()


def test_an_interval_holds_the_difference_and_nothing_for_equal_arms() -> None:
    logit, label, user = scored()
    noise = np.random.default_rng(1).normal(size=len(label)).astype(np.float32)
    rows = Rows.of(label, user, np.arange(len(label)) * 3_600_000)
    every = np.ones(len(label), np.bool_)
    logits = {"good": [logit, logit], "same": [logit, logit], "bad": [noise, noise]}
    better, equal = differences(
        rows, every, logits, [(["good"], ["bad"]), (["good"], ["same", "good"])]
    )
    good, bad = (m.auc_exact(z, label) for z in (logit, noise))
    assert isinstance(good, float)
    assert isinstance(bad, float)
    gain = 100 * (good - bad)
    assert better["auc"]["mean"] == pytest.approx(gain)
    assert 0 < better["auc"]["low"] < gain < better["auc"]["high"]
    assert better["gauc_user_day"]["low"] > 0
    assert equal["auc"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
