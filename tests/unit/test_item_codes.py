"""Codes as attributes of items: on arrival, as features, by version, and permuted by a placebo."""

import json

import numpy as np
import pytest

from embeddings.codebook_file import read_codebook, write_codebook
from embeddings.codes.codebook import attributes_of
from embeddings.codes.fit import FitConfig, fit
from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.item_content import ItemContent
from embeddings.vector_cache import VectorCacheConfig
from embeddings.vector_codec import decode_item_vector
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import MemoryVectorStore, StoreMismatch
from infra.errors import InputError
from stream.cli import run
from stream.codec_spec import IdSource, MultiSource
from stream.composition import compose, embedder_of
from stream.item_pending import ItemUpdate
from stream.items import ItemTable, ItemTableConfig
from stream.keys import key_of, keys_of_ints, salt_of, salted
from stream.placebo import PermutedContent
from tests.support.logs import write_log
from tests.support.replays import RANKED, ranked_config, replay, write_config
from tests.support.streams import T0

CODED = [
    {"name": "rq1", "path": "item.attributes.codes.rq1", "dim": 4},
    {"name": "path", "path": "item.attributes.codes.prefix2", "dim": 4},
    {"name": "vq", "path": "item.attributes.codes.vq", "kind": "multi-id", "dim": 4, "length": 3},
]


def item(number, **more):
    return ItemContent(
        item_id=number, ts_ms=T0, attributes={"a": number % 20, "b": number % 9} | more
    )


ITEMS = [item(i) for i in range(60)]
ENCODER = AttributeEncoder(AttributeEncoderConfig(dim=16, fields=("a", "b")))
SMALL = FitConfig(levels=2, size=6, anchors=12, anchors_of_vector=3)
BOOK = fit(ENCODER.encode_many(ITEMS)[0], ENCODER.version, SMALL)


def embedder(**settings):
    return Embedder(ENCODER, EmbedderConfig(**settings), BOOK)


def attributes(rows):
    return [decode_item_vector(row.value).attributes for row in rows]


@pytest.mark.parametrize("dtype", ("float16", "int8"))
def test_an_item_gets_the_codes_of_its_vector_as_it_is_stored(dtype):
    rows = embedder(dtype=dtype).embed(ITEMS).rows
    for row in rows:
        stored = decode_item_vector(row.value)
        codes = BOOK.encode_many(stored.vector()[None], np.array([True]))
        assert {k: v for k, v in stored.attributes.items() if k.startswith("codes.")} == (
            attributes_of(codes, 0)
        )
    assert list(attributes(rows)[0]) == ["a", "b", *BOOK.names]
    one_by_one = embedder(dtype=dtype)
    assert [r.value for i in ITEMS for r in one_by_one.embed([i]).rows] == [r.value for r in rows]


def test_codes_are_of_the_vector_that_is_used_and_none_without_one():
    supplied = ENCODER.encode_many([ITEMS[1]])[0][0]
    maker = Embedder(
        ENCODER, EmbedderConfig(supplied="v"),
        fit(ENCODER.encode_many(ITEMS)[0], f"{ENCODER.version}+v", SMALL),
    )  # fmt: skip
    with_vector = ItemContent(
        item_id=100, ts_ms=T0, attributes={"a": 0}, vectors={"v": supplied.tolist()}
    )
    nothing = ItemContent(item_id=101, ts_ms=T0, attributes={"codes.rq1": 77, "c": 1})
    bad = ItemContent(item_id=102, ts_ms=T0, vectors={"v": [1.0]})
    gone = ItemContent(item_id=103, ts_ms=T0, deleted=True)
    made = maker.embed([ITEMS[1], with_vector, nothing, bad, gone])
    twin, other, plain, deleted = attributes(made.rows)
    assert {k: other[k] for k in BOOK.names} == {k: twin[k] for k in BOOK.names}
    assert plain == {"c": 1}  # the names of codes are not the sender's
    assert deleted == {}
    assert [index for index, _ in made.rejected] == [3]


def test_versions_do_not_mix(tmp_path):
    version = embedder().version
    assert version == f"{ENCODER.version}+codes-{BOOK.version}"
    config = RocksVectorStoreConfig(path=tmp_path)
    RocksVectorStore(config, version).close()
    other = fit(ENCODER.encode_many(ITEMS)[0], ENCODER.version, FitConfig(levels=2, size=5))
    with pytest.raises(StoreMismatch, match="holds vectors of encoder"):
        RocksVectorStore(config, Embedder(ENCODER, EmbedderConfig(), other).version)
    with pytest.raises(InputError, match="is for vectors of encoder"):
        Embedder(AttributeEncoder(AttributeEncoderConfig(dim=16)), EmbedderConfig(), BOOK)


def table(make=ItemTable, items=ITEMS):
    coder = embedder()
    sources = (
        IdSource(name="rq1", path="item.attributes.codes.rq1", salt=salt_of("rq1")),
        IdSource(name="a", path="item.attributes.a", salt=salt_of("a")),
        MultiSource(name="vq", path="item.attributes.codes.vq", length=3, salt=salt_of("vq")),
    )
    made = make(
        MemoryVectorStore(coder.version), ItemTableConfig(),
        VectorCacheConfig(dim=16, rows_max=128), sources,
    )  # fmt: skip
    updates = [
        ItemUpdate(partition=0, offset=i, event_index=0, ts_ms=T0, item_key=key_of(row.item_id),
                   value=row.value) for i, row in enumerate(coder.embed(items).rows)
    ]  # fmt: skip
    assert made.offer("s", updates) == []
    made.apply_until(T0 + 1)
    return made


def test_a_cold_item_has_the_rows_of_its_twin_at_once():
    twin = ItemContent(item_id=1_000, ts_ms=T0, attributes=ITEMS[4].attributes)
    found = table(items=[*ITEMS, twin]).attribute_columns(keys_of_ints(np.array([4, 1_000, 5])))
    assert (found.ids_nA[0] == found.ids_nA[1]).all()
    assert (found.multi_nM[0][0] == found.multi_nM[0][1]).all()
    assert (found.multi_nM[0][0] != found.multi_nM[0][2]).any()
    code = BOOK.encode_many(ENCODER.encode_many([twin])[0], np.array([True])).rq_BL[0, 0]
    assert found.ids_nA[1, 0] == salted(keys_of_ints(np.array([code])), salt_of("rq1"))[0]


def test_a_placebo_takes_the_codes_with_the_vectors_and_no_other_attribute():
    keys = keys_of_ints(np.arange(60))
    permuted = table(lambda *a: PermutedContent(keys, 1, *a))
    real = table().attribute_columns(keys)
    donors = table().attribute_columns(permuted.donors(keys))
    found = permuted.attribute_columns(keys)
    assert (found.ids_nA[:, 0] == donors.ids_nA[:, 0]).all()
    assert (found.ids_nA[:, 0] != real.ids_nA[:, 0]).any()
    assert (found.ids_nA[:, 1] == real.ids_nA[:, 1]).all()
    assert (found.multi_nM[0] == donors.multi_nM[0]).all()


def coded_config(path, **items):
    return ranked_config(
        items={"dim": 16, "codebook": str(path)} | items, feature=[*RANKED["feature"], *CODED]
    )


def test_a_replay_learns_rows_of_codes(tmp_path, capsys):
    log, book = write_log(tmp_path / "log.parquet", samples=300), tmp_path / "book.safetensors"
    plain = write_config(tmp_path / "plain.toml", ranked_config())
    small = ("--levels", "2", "--size", "4", "--anchors", "5", "--anchors-of-item", "3")
    where = ("--out", str(book), "--config", str(plain))
    assert run(["codes", "fit", str(log), *where, *small]) == 0
    assert "items.codebook" in capsys.readouterr().out
    composition = replay(coded_config(book), (log,), tmp_path / "report").composition
    rows = {p.name: p for p in composition.pipeline.learner.export_full()}["ids.4"].arrays["keys"]
    for name, codes in (("rq1", 4), ("vq", 5)):
        expected = salted(keys_of_ints(np.arange(1, codes + 1)), salt_of(name))
        assert np.isin(expected, rows).all()
    path = salted(np.array([key_of(f"{a}-{b}") for a in range(1, 5) for b in range(1, 5)]),
                  salt_of("path"))  # fmt: skip
    assert np.isin(path, rows).sum() >= 4
    config = write_config(tmp_path / "coded.toml", coded_config(book))
    assert run(["check", "--config", str(config), "--log", str(log), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not [w for w in told.get("warnings", []) if "rq1" in w]


def test_codes_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"set items\.codebook"):
        ranked_config(feature=[*RANKED["feature"], *CODED])
    path = tmp_path / "book.safetensors"
    encoder = embedder_of(ranked_config())
    vectors = np.eye(16, dtype=np.float32)
    write_codebook(path, fit(vectors, encoder.version, FitConfig(levels=1, size=4, anchors=8,
                                                                 anchors_of_vector=2)))  # fmt: skip
    assert read_codebook(path).names == ["codes.rq1", "codes.vq"]
    with pytest.raises(InputError, match=r"has no 'codes\.prefix2'"):
        compose(coded_config(path), None)
    with pytest.raises(InputError, match="is for vectors of encoder"):
        compose(ranked_config(items={"dim": 16, "seed": 1, "codebook": str(path)}), None)
