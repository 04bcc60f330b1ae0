"""`millrace pretrain mean`: from a record log to the means that a configuration names."""

import json

import numpy as np
import pytest

from embeddings.fusion import read_means
from stream.cli import run
from stream.codec_write import encode_event, encode_key, item_body
from stream.composition import embedder_of, load_config
from stream.pretraining import read_items
from stream.record_log import RecordLogWriter
from tests.support.streams import T0

ITEMS = 60
ENCODERS = (
    "--set", 'items.encoders=["text", "vector:own"]',
    "--set", 'items.encoder_options={"vector:own"={dim=8}}',
)  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Items whose own vectors share a direction; the later half a different one."""
    path = tmp_path_factory.mktemp("mean") / "log.parquet"
    rng = np.random.default_rng(0)
    with RecordLogWriter(path, {"items": 1}, ordered=True) as writer:
        for item in range(ITEMS):
            vector = rng.normal(size=8)
            vector[int(item >= ITEMS // 2)] += 12
            words = " ".join(rng.choice(["red", "blue", "shoe", "hat", "wool"], 3))
            body = item_body(
                item_id=item, ts_ms=T0 + item, title=words, vectors={"own": vector.tolist()}
            )
            writer.write("items", 0, item, T0 + item, encode_key(item), encode_event("item", body))
    return path


def test_means_of_a_log_centre_its_vectors(log, tmp_path, capsys):
    out = tmp_path / "means.safetensors"
    assert run(["pretrain", "mean", str(log), "--out", str(out), "--json", *ENCODERS]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["items"] == ITEMS
    assert facts["version"] == read_means(out).version

    def mean_cosine(*more):
        chosen = tuple(word for word in ENCODERS if word != "--set")
        embedder = embedder_of(load_config(None, (*chosen, "items.weights={text=0.1}", *more)))
        contents = list(read_items([log], "items").values())
        vectors, present = embedder._encoder.encode_many(contents)
        assert present.all()
        cosines = vectors @ vectors.T
        return cosines[~np.eye(ITEMS, dtype=bool)].mean()

    assert mean_cosine() > 0.3
    assert abs(mean_cosine(f"items.mean_file={out}")) < 0.05


def test_only_items_before_the_end_are_read(log, tmp_path, capsys):
    out, options = tmp_path / "early", ["--until", str(T0 + ITEMS // 2), "--items-max", "20"]
    assert run(["pretrain", "mean", str(log), "--out", str(out), *options, *ENCODERS]) == 0
    assert "20 items" in capsys.readouterr().out
    own = read_means(out).means["vector:own"]
    assert own[0] > 0.7
    assert abs(own[1]) < 0.3


def test_a_log_without_what_is_read_is_refused(log, tmp_path, capsys):
    out = tmp_path / "none"
    assert run(["pretrain", "mean", str(log), "--out", str(out)]) == 2
    assert "none of 60 items" in capsys.readouterr().err
    assert not out.exists()
