"""Blocks of item vectors: the spec, what the base reads, and encoders that keep modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners import catalog
from learners.feature_spec import ContentBlock
from learners.rankers.id_content import IdContent, IdContentConfig
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
