"""Blocks of item vectors: the spec, what the base reads, and encoders that keep modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from embeddings.blocks import BlockEncoder, Once
from embeddings.codebook_file import write_codebook
from embeddings.codes.fit import FitConfig, fit
from embeddings.fusion import FusionConfig, fused
from embeddings.item_content import ItemContent
from embeddings.vector_codec import decode_item_vector
from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig
from embeddings.vectors import NO_KEYS
from infra.errors import InputError
from learners import catalog
from learners.feature_spec import ContentBlock
from learners.rankers.id_content import IdContent, IdContentConfig
from stream.catalogue import read_catalogue
from stream.composition import embedder_of, encoder_of, load_config
from stream.feature_plan import plan
from tests.support.batches import BatchMaker, small_spec

BLOCKS = (ContentBlock(name="", start=0, dim=6), ContentBlock(name="text", start=6, dim=4))


def widened(batch, rng):
    """The batch with four more columns in each vector, and zeros where there is no vector."""
    table = batch.content.table_VC
    more = torch.from_numpy(rng.normal(size=(len(table), 4)).astype(np.float32))
    more[-1] = 0
    return replace(batch, content=replace(batch.content, table_VC=torch.cat([table, more], 1)))


def test_a_spec_without_blocks_has_one_over_all_columns():
    assert small_spec().block() == ContentBlock(name="", start=0, dim=6)
    assert small_spec(content_dim=0).blocks == ()


def test_blocks_are_found_by_name_and_an_unknown_one_is_named():
    spec = replace(small_spec(), content_dim=10, content_blocks=BLOCKS)
    assert spec.block("text").columns == slice(6, 10)
    with pytest.raises(ValueError, match=r"no block 'image', expected one of '', 'text'"):
        spec.block("image")


def test_blocks_with_a_gap_are_our_mistake():
    with pytest.raises(AssertionError):
        replace(small_spec(), content_dim=11, content_blocks=BLOCKS)


def test_the_base_reads_its_own_block_alone():
    """Other blocks beside it change no bit of a score, however wide they are."""
    stream, rng = BatchMaker(small_spec()), np.random.default_rng(3)
    wide_spec = replace(small_spec(), content_dim=10, content_blocks=BLOCKS)
    plain = IdContent(small_spec(), IdContentConfig(device="cpu"))
    wide = IdContent(wide_spec, IdContentConfig(device="cpu"))
    for _ in range(5):
        batch = stream.batch(40)
        a, b = plain.learn_many(batch), wide.learn_many(widened(batch, rng))
        assert torch.equal(a.logits_B, b.logits_B)
    assert a.logits_B.abs().max() > 0


def test_a_module_reads_the_block_that_it_is_told():
    wide_spec = replace(small_spec(), content_dim=10, content_blocks=BLOCKS)
    options = {"linear_content": {"on": True, "block": "text"}}
    ranker = catalog.build("id_content", wide_spec, {"device": "cpu", **options})
    assert isinstance(ranker, IdContent)
    assert dict(ranker.net.named_parameters())["methods.linear_content.head.weight"].shape == (1, 4)
    with pytest.raises(ValueError, match="no block 'image'"):
        catalog.build(
            "id_content", wide_spec,
            {"device": "cpu", "linear_content": {"on": True, "block": "image"}},
        )  # fmt: skip


ITEMS = [
    ItemContent(item_id=1, ts_ms=0, text="a red bicycle", attributes={"brand": "x"}),
    ItemContent(item_id=2, ts_ms=0, text=None, attributes={"brand": "y"}),
    ItemContent(item_id=3, ts_ms=0, text="a red bicycle", attributes={}),
    ItemContent(item_id=4, ts_ms=0),
]
KEEP = ("items.dim=16", 'items.encoders=["attributes", "text"]', "items.keep={text=12}")


def test_kept_modalities_are_unit_vectors_beside_the_fused_one():
    encoder = encoder_of(load_config(None, KEEP).items)
    plain = encoder_of(load_config(None, KEEP[:2]).items)
    vectors, present = encoder.encode_many(ITEMS)
    assert vectors.shape == (4, 28)
    assert present.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(vectors[:, :16], plain.encode_many(ITEMS)[0])
    text = vectors[:, 16:]
    assert np.linalg.norm(text, axis=1) == pytest.approx([1, 0, 1, 0], abs=1e-6)
    assert float(text[0] @ text[2]) == pytest.approx(1, abs=1e-6)  # the same text
    assert not text[1].any()  # lacks it: a mask, not a vector


def test_a_kept_vector_does_not_depend_on_its_batch():
    encoder = encoder_of(load_config(None, KEEP).items)
    together = encoder.encode_many(ITEMS)[0]
    alone = np.concatenate([encoder.encode_many([item])[0] for item in ITEMS])
    np.testing.assert_array_equal(together, alone)


def test_what_is_kept_is_part_of_the_version():
    versions = {
        encoder_of(load_config(None, (*KEEP[:2], *more)).items).version
        for more in ((), ("items.keep={text=12}",), ("items.keep={text=16}",),
                     ("items.keep={attributes=12}",))
    }  # fmt: skip
    assert len(versions) == 4


def test_an_encoder_that_two_blocks_read_runs_once():
    class Counting:
        version, dim, calls = "counting", 3, 0

        def encode_many(self, items):
            self.calls += 1
            return np.ones((len(items), 3), np.float32), np.ones(len(items), np.bool_)

    counting = Counting()
    shared = Once(counting)
    both = BlockEncoder(fused({"c": shared}, FusionConfig(dim=8)), {"c": shared}, {"c": 3})
    for batch in (ITEMS[:2], ITEMS[2:]):
        assert both.encode_many(batch)[0].shape == (2, 11)
    assert counting.calls == 2


def test_the_plan_has_the_blocks_of_the_configuration():
    config = load_config("kuairand", KEEP)
    assert plan(config).spec.blocks == (
        ContentBlock(name="", start=0, dim=16), ContentBlock(name="text", start=16, dim=12),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    (
        ("items.keep={image=12}", "not in encoders"),
        ("items.keep={text=0}", "1 to 65536"),
        ("items.supplied=own", "needs items.dim above 0, and no items.supplied"),
        ("items.dim=0", "needs items.dim above 0"),
    ),
)
def test_settings_that_do_not_fit_are_named(override, message):
    with pytest.raises(InputError, match=message):
        load_config(None, (*KEEP, override))


def test_the_base_sees_presence_of_its_own_block():
    """An item with a kept vector and no fused one has no content for the base."""
    stream = BatchMaker(small_spec())
    wide = IdContent(
        replace(small_spec(), content_dim=10, content_blocks=BLOCKS), IdContentConfig(device="cpu")
    )
    for _ in range(8):
        wide.learn_many(widened(stream.batch(40), np.random.default_rng(3)))
    batch = widened(stream.batch(40), np.random.default_rng(3))
    table = batch.content.table_VC.clone()
    table[:, :6] = 0
    only_text = replace(batch, content=replace(batch.content, table_VC=table))
    nothing = replace(batch, content=replace(batch.content, table_VC=torch.zeros_like(table)))
    nothing = replace(
        nothing, content=replace(nothing.content, missing_B=torch.ones(40, dtype=torch.bool))
    )
    assert torch.equal(wide.predict_many(only_text), wide.predict_many(nothing))
    assert not torch.equal(wide.predict_many(only_text), wide.predict_many(batch))


def kept_store(path):
    """A store of vectors with two blocks, of items with and without text."""
    config = load_config(None, KEEP)
    embedder = embedder_of(config)
    store = RocksVectorStore(RocksVectorStoreConfig(path=path), embedder.version)
    items = [replace(item, ts_ms=1_700_000_000_000) for item in ITEMS]
    rows = embedder.embed(items).rows
    store.put_many(
        np.array([row.item_id for row in rows], np.int64), [row.value for row in rows], NO_KEYS, {}
    )
    store.close()
    return config


def test_a_catalogue_compares_inside_the_first_block(tmp_path):
    config = kept_store(tmp_path / "store")
    catalogue = read_catalogue(tmp_path / "store", config)
    plain = encoder_of(load_config(None, KEEP[:2]).items)
    assert catalogue.encoder_version == plain.version
    order = np.argsort(catalogue.item_ids)
    np.testing.assert_allclose(
        catalogue.vectors_ND[order], plain.encode_many(ITEMS)[0], atol=1e-3
    )  # stored as float16
    assert catalogue.present_N[order].tolist() == [True, True, True, False]


def test_a_catalogue_of_blocks_needs_their_configuration(tmp_path):
    kept_store(tmp_path / "store")
    for config in (None, load_config(None, KEEP[:2])):
        with pytest.raises(InputError, match=r"several blocks \(28 numbers in all\)"):
            read_catalogue(tmp_path / "store", config)


def test_codes_are_those_of_the_first_block(tmp_path):
    """A book that was fitted to the fused vectors serves where modalities are kept as well."""
    plain = load_config(None, KEEP[:2])
    vectors, present = encoder_of(plain.items).encode_many(ITEMS)
    small = FitConfig(levels=1, size=2, anchors=2, anchors_of_vector=1)
    book = fit(vectors[present], encoder_of(plain.items).version, small)
    write_codebook(tmp_path / "book.safetensors", book)
    coded = {}
    for name, overrides in (("plain", KEEP[:2]), ("kept", KEEP)):
        config = load_config(None, (*overrides, f"items.codebook={tmp_path / 'book.safetensors'}"))
        rows = (
            embedder_of(config)
            .embed([replace(item, ts_ms=1_700_000_000_000) for item in ITEMS])
            .rows
        )
        coded[name] = [decode_item_vector(row.value).attributes for row in rows]
    assert coded["plain"] == coded["kept"]
    assert any("codes.rq1" in attributes for attributes in coded["kept"])
