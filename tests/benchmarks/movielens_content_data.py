"""Steps of MovieLens with real content vectors, and what the study hides of them. Scores nothing.

Everything made of the data stays under build/movielens: nothing of it may be shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings.encoders import catalog
from embeddings.encoders.attributes import AttributeEncoderConfig
from embeddings.encoders.protocol import Encoder
from embeddings.encoders.table import TableEncoder
from embeddings.fusion import FusedEncoder, FusionConfig, fit_means
from embeddings.pretrain.head import ProjectionHead
from embeddings.vector_file import (
    VectorFile,
    content_version,
    read_vector_file,
    write_vector_file,
)
from infra.config import preset_path
from learners.batch import MiniBatch
from stream.composition import load_config
from stream.importers.movielens import MovieLensImportConfig, import_movielens
from stream.pretraining import encode_items, read_items
from tests.support.bench import ROOT
from tests.support.imported import SHARED
from tests.support.recorded import Recording, Step, record

RATINGS = SHARED / "data" / "ml100k-multimodal-dev"
CATALOGUE = SHARED / "data" / "ml-items"
BUILD = ROOT / "build" / "movielens"
ENCODERS = ("minilm", "image")
BATCH = 256
CACHE_ROWS = 4_096
"""Room for every film: steps that are joined, or permuted, read one table."""
FILM = "film"
METADATA = ("year", "genres", "film.*", "year.*", "genres.*", "user_genres.*",
            "occupation_genres.*")  # fmt: skip
"""What a ranker of ids alone does not read: it still knows the user's own rate."""
I64 = NDArray[np.int64]


def absent() -> str:
    """Why the study cannot run here; empty where it can."""
    for folder in (RATINGS, CATALOGUE):
        if not folder.is_dir():
            return f"{folder} is absent; MILLRACE_SHARED names the folder above data/"
    return ""


def film_log() -> Path:
    """The record log with texts and pictures, made once."""
    path = BUILD / "log.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = MovieLensImportConfig(
            envelope=100, texts=CATALOGUE / "items.parquet", posters=CATALOGUE / "posters.parquet"
        )
        import_movielens(RATINGS, path, config)
    return path


def raw_vectors(name: str) -> TableEncoder:
    """Vectors of one encoder of all films that have what it reads, made once: minutes."""
    path = BUILD / f"raw-{name}.parquet"
    if not path.exists():
        contents = read_items([film_log()], "items")
        encoder = catalog.build(name, {}, AttributeEncoderConfig())
        say = partial(_say, name)
        encoded = encode_items(encoder, contents, say)
        ids = [contents[key].item_id for key in encoded.items_N.tolist()]
        write_vector_file(
            path, VectorFile(item_ids=ids, vectors_ND=encoded.vectors_ND, version=encoder.version)
        )
    return TableEncoder(read_vector_file(path))


def _say(name: str, done: int, total: int) -> None:
    print(f"{name}: {done} of {total} films encoded", flush=True)


def fused_vectors(dim: int) -> Path:
    """Text and picture centred by frozen means and fused, cut to the first `dim` principal axes.

    Cutting at axes keeps cosines, to which a random projection adds an error of 1 / sqrt(dim) as
    large as their spread. Means and axes are of the catalogue; no rating takes part. 0: not cut.
    """
    path = BUILD / f"fused-{dim}.parquet"
    if path.exists():
        return path
    encoders: dict[str, Encoder] = {name: raw_vectors(name) for name in ENCODERS}
    contents = read_items([film_log()], "items")
    items = [contents[key] for key in sorted(contents)]
    total = sum(encoder.dim for encoder in encoders.values())
    means = fit_means(encoders, items)
    vectors_BD, present_B = FusedEncoder(encoders, FusionConfig(dim=total), means).encode_many(
        items
    )
    vectors_BD = vectors_BD[present_B]
    if dim:
        with torch.no_grad():
            whole = torch.from_numpy(vectors_BD)
            vectors_BD = ProjectionHead(whole, dim, 0, 0)(whole).numpy()
    ids = [item.item_id for item, present in zip(items, present_B, strict=True) if present]
    version = content_version("films", ids, vectors_BD)
    write_vector_file(path, VectorFile(item_ids=ids, vectors_ND=vectors_BD, version=version))
    return path


def film_steps(vectors: Path, *overrides: str) -> tuple[Recording, dict[str, Any]]:
    """The learn steps of the preset with the vectors of a file, and its ranker options."""
    width = read_vector_file(vectors).dim
    config = load_config(
        "movielens",
        (
            f"items.vectors_file={vectors}", f"items.dim={width}", f"stream.batch_size={BATCH}",
            f"items.cache_rows={CACHE_ROWS}", *overrides,
        ),
    )  # fmt: skip
    return record(config, film_log()), dict(config.ranker.options)


def made_of(vectors: Path) -> list[str]:
    """What the steps depend on: the vectors' version and the preset."""
    return [read_vector_file(vectors).version, preset_path("movielens").read_text()]


def permuted(recording: Recording, seed: int) -> Recording:
    """The steps as an item table with `PermutedContent` of the films with a vector gives them."""
    films, rows = vector_rows(recording)
    donors = np.random.default_rng(seed).permutation(films)
    given = rows[np.searchsorted(films, donors)]
    content = recording.steps[0][1].content
    assert content is not None
    table_VC = content.table_VC.clone()
    table_VC[torch.from_numpy(rows)] = content.table_VC[torch.from_numpy(given)]
    return with_table(recording, table_VC)


def with_table(recording: Recording, table_VC: torch.Tensor) -> Recording:
    """The steps with another table of the same items' vectors."""

    def other(batch: MiniBatch) -> MiniBatch:
        assert batch.content is not None
        return replace(batch, content=replace(batch.content, table_VC=table_VC))

    return replace(
        recording, steps=tuple((tuple(map(other, p)), other(b)) for p, b in recording.steps)
    )


def vector_rows(recording: Recording) -> tuple[I64, I64]:
    """Keys of the rated films that have a vector, sorted, and their rows in the content table."""
    keys = recording.id_n(FILM)
    target, missing = (
        np.concatenate([_content(b, name) for _, b in recording.steps])
        for name in ("target_B", "missing_B")
    )
    films, first = np.unique(keys[~missing], return_index=True)
    rows = target[~missing][first]
    return films, rows


def _content(batch: MiniBatch, name: str) -> NDArray[Any]:
    assert batch.content is not None
    array: NDArray[Any] = getattr(batch.content, name).numpy()
    return array


@dataclass(frozen=True, slots=True, kw_only=True)
class Hiding:
    """What a ranker is not told.

    `withheld`: sorted keys of films that are predicted and never learned from, that stand in no
    history of ids, and, with `no_rates`, whose own counters always read as before their first
    rating. `admit_after`: ratings learned from before a film has an id row of its own, or counts in
    a history of ids; content keeps all entries.
    """

    withheld: I64
    no_rates: bool = True
    admit_after: int = 0


def hidden(recording: Recording, hiding: Hiding) -> Recording:
    """The steps with that hidden."""
    films = np.unique(recording.id_n(FILM))
    apart = np.isin(films, hiding.withheld)
    spec = recording.spec
    ids = tuple(
        replace(f, admit_after=hiding.admit_after) if f.name == FILM else f for f in spec.ids
    )
    return Recording(
        spec=replace(spec, ids=ids), steps=tuple(_steps(recording, films, apart, hiding))
    )


def _steps(
    recording: Recording, films: I64, apart: NDArray[np.bool_], hiding: Hiding
) -> Iterator[Step]:
    spec = recording.spec
    at = [f.name for f in spec.ids].index(FILM)
    histories = [i for i, bag in enumerate(spec.bags) if bag.is_history]
    own = [i for i, d in enumerate(spec.dense) if d.counter.partition(".")[0] == FILM]
    learned = np.zeros(len(films), np.int64)

    def cut(batch: MiniBatch) -> MiniBatch:
        keys = batch.ids_BF[:, at].numpy()
        away = torch.from_numpy(apart[np.searchsorted(films, keys)])
        known = ~apart & (learned >= hiding.admit_after)
        bags = list(batch.bags_BL)
        for i in histories:
            bags[i] = torch.from_numpy(_only(bags[i].numpy(), films[known]))
        dense_BD, mask_BK = batch.dense_BD.clone(), batch.label_mask_BK.clone()
        if hiding.no_rates:
            for i in own:
                dense_BD[away, i] = 0.0
        mask_BK[away] = 0.0
        return replace(batch, bags_BL=tuple(bags), dense_BD=dense_BD, label_mask_BK=mask_BK)

    for shown, batch in recording.steps:
        yield tuple(map(cut, shown)), cut(batch)
        keys = batch.ids_BF[:, at].numpy()
        learned += np.bincount(np.searchsorted(films, keys), minlength=len(films))


def _only(bag_BL: I64, kept: I64) -> I64:
    """The bag's keys that are in `kept`, in order, with the empty places at the right."""
    keep_BL = np.isin(bag_BL, kept)
    order_BL = np.argsort(~keep_BL, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep_BL, bag_BL, 0), order_BL, axis=1)
