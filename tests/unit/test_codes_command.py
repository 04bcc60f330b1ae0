"""`millrace codes fit`: from a log, a file of vectors and a store; refresh, growth, refusals."""

import json

import numpy as np
import pytest

from embeddings.codebook_file import read_codebook
from embeddings.vector_codec import encode_item_vector
from embeddings.vector_file import VectorFile, content_version, write_vector_file
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from stream.cli import run
from tests.support.logs import write_log
from tests.support.streams import T0
from tests.support.vectors import grouped_vectors

SMALL = ("--size", "8", "--anchors", "16", "--anchors-of-item", "4", "--json")


def vector_file(path, vectors, until_ms=T0):
    ids = list(range(len(vectors)))
    version = content_version("test", ids, vectors)
    write_vector_file(
        path,
        VectorFile(item_ids=ids, vectors_ND=vectors, version=version, facts={"until_ms": until_ms}),
    )
    return path


def figures(capsys, *arguments):
    assert run(["codes", "fit", *map(str, arguments), *SMALL]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_book_of_a_logs_items_says_what_it_was_fitted_to(tmp_path, capsys):
    log, out = write_log(tmp_path / "log.parquet", samples=10), tmp_path / "book.safetensors"
    told = figures(capsys, log, "--out", out, "--set", "items.dim=64")
    assert read_codebook(out).version == told["book"]["version"]
    assert told["book"]["encoder_version"].startswith("attributes-")
    assert told["book"]["sizes"][0] == 7  # the items differ in 7 tags alone
    assert told["book"]["facts"]["items"] == 40
    assert told["book"]["facts"]["until_ms"] == T0 - 10_000
    assert told["figures"]["energy_left"][0] == pytest.approx(0, abs=1e-6)


def test_items_from_later_on_are_left_out(tmp_path, capsys):
    log, out = write_log(tmp_path / "log.parquet", samples=10), tmp_path / "book.safetensors"
    assert run(["codes", "fit", str(log), "--out", str(out), "--until", str(T0 - 10_000)]) == 2
    assert "no item has a vector" in capsys.readouterr().err
    file = vector_file(tmp_path / "v.parquet", grouped_vectors(n=50)[0])
    assert run(["codes", "fit", str(file), "--out", str(out), "--until", str(T0 - 1)]) == 2
    assert "may know of what happened after" in capsys.readouterr().err
    assert not out.exists()


def test_a_store_and_a_file_of_the_same_vectors_give_the_same_codes(tmp_path, capsys):
    vectors = grouped_vectors(n=60)[0].astype(np.float16).astype(np.float32)
    file = vector_file(tmp_path / "v.parquet", vectors)
    version = figures(capsys, file, "--out", tmp_path / "a")["book"]["encoder_version"]
    store = RocksVectorStore(RocksVectorStoreConfig(path=tmp_path / "store"), version)
    values = [
        encode_item_vector(item_id=i, ts_ms=T0, encoder=version, vector=v)
        for i, v in enumerate(vectors)
    ]
    store.put_many(np.arange(60), values, NO_KEYS, {"items/0": b"position"})
    told = figures(capsys, tmp_path / "store", "--out", tmp_path / "b")  # its writer has it open
    store.close()
    assert told["figures"]["items"] == 60
    assert read_codebook(tmp_path / "a").version == read_codebook(tmp_path / "b").version


def test_refresh_and_growth_tell_their_churn(tmp_path, capsys):
    vectors = grouped_vectors(n=300)[0]
    file = vector_file(tmp_path / "v.parquet", vectors)
    first = figures(capsys, file, "--out", tmp_path / "a")
    same = figures(capsys, file, "--out", tmp_path / "b", "--refresh", tmp_path / "a",
                   "--iterations", "0")  # fmt: skip
    assert same["book"]["version"] == first["book"]["version"]
    assert same["figures"]["churn"] == [0, 0, 0]
    cold = figures(capsys, file, "--out", tmp_path / "c", "--refresh", tmp_path / "a",
                   "--cold", "--seed", "4")  # fmt: skip
    assert 0 < cold["figures"]["churn"][0] < 1
    grown = figures(capsys, file, "--out", tmp_path / "d", "--grow", tmp_path / "a")
    assert grown["figures"]["churn"] == [0, 0, 0]  # nothing is far: the same book


def test_a_book_of_another_encoder_is_not_refreshed(tmp_path, capsys):
    figures(capsys, vector_file(tmp_path / "v", grouped_vectors(n=50)[0]), "--out", tmp_path / "a")
    other = vector_file(tmp_path / "w", grouped_vectors(n=50, seed=1)[0])
    out = tmp_path / "b"
    arguments = ["codes", "fit", str(other), "--out", str(out)]
    assert run([*arguments, "--refresh", str(tmp_path / "a")]) == 2
    assert "is for vectors of encoder" in capsys.readouterr().err
    assert run([*arguments, "--refresh", "x", "--grow", "y"]) == 2
    assert run(["codes", "fit", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err


def test_figures_for_people(tmp_path, capsys):
    file = vector_file(tmp_path / "v.parquet", grouped_vectors(n=50)[0])
    assert run(["codes", "fit", str(file), "--out", str(tmp_path / "a"), "--size", "8"]) == 0
    out = capsys.readouterr().out
    assert "8 x 8 x 8 codes for 50 items" in out
    assert "energy left after each level" in out
