"""The attribute encoder and the embedder."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.encoders.hashed_text import HashedTextConfig, HashedTextEncoder
from embeddings.encoders.image import ImageConfig, ImageEncoder
from embeddings.encoders.minilm import MiniLMConfig, MiniLMEncoder
from embeddings.encoders.protocol import read_of
from embeddings.encoders.supplied import SuppliedConfig, SuppliedEncoder
from embeddings.fusion import FusedEncoder, FusionConfig
from embeddings.item_content import ItemContent, usable_attributes
from embeddings.row_memory import Place, RecentRows, Remembered
from embeddings.vector_codec import ItemVector, decode_item_vector

TS_MS = 1_650_000_000_000


def item(item_id=1, *, deleted=False, vectors=None, ts_ms=TS_MS, **attributes):
    return ItemContent(
        item_id=item_id,
        ts_ms=ts_ms,
        attributes=attributes,
        vectors=vectors or {},
        deleted=deleted,
    )


def encoder(**options):
    return AttributeEncoder(AttributeEncoderConfig(**options))


def test_vectors_have_unit_length_and_are_missing_without_tokens():
    vectors, present = encoder().encode_many([item(tag=["a", "b"]), item(), item(x=None, y="")])
    assert present.tolist() == [True, False, False]
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6)
    assert not vectors[1:].any()


def test_a_vector_is_bit_identical_whatever_its_batch():
    items = [
        item(i, author=i % 7, tag=[f"t{i % 5}", f"t{i % 3}"], big=1.5 * i) for i in range(2100)
    ]
    together, _ = encoder().encode_many(items)
    for i in (0, 1, 1023, 1024, 2099):
        alone, _ = encoder().encode_many([items[i]])
        assert alone[0].tobytes() == together[i].tobytes()


def test_the_cosine_is_the_share_of_common_tokens():
    wide = encoder(dim=4096)
    vectors, _ = wide.encode_many([item(tag=list("abcd")), item(tag=list("cdef")), item(tag=["z"])])
    assert vectors[0] @ vectors[1] == pytest.approx(0.5, abs=0.06)
    assert vectors[0] @ vectors[2] == pytest.approx(0, abs=0.06)


def test_order_and_repetition_in_a_list_do_not_matter_but_field_and_type_do():
    def tokens(**attributes):
        return encoder().tokens(item(**attributes))

    assert tokens(tag=["a", "b", "a"]) == tokens(tag=["b", "a"])
    assert tokens(tag="a") == tokens(tag=["a"])
    different = [tokens(a="5"), tokens(b="5"), tokens(a=5), tokens(a=True), tokens(a=5.5)]
    assert len({tuple(t) for t in different}) == len(different)


def test_quantities_share_a_token_within_an_order_of_magnitude():
    def token(value):
        return encoder(numeric=("seconds",)).tokens(item(seconds=value))

    assert token(1000) == token(1023) == token(600.5)
    assert token(1000) != token(1024)
    assert token(1000) != token(-1000)
    assert token(0) != token(1)
    assert encoder().tokens(item(seconds=1000)) != encoder().tokens(item(seconds=1023))


def test_fields_and_ignore_choose_attributes():
    both = item(author=3, tag="x")
    assert encoder(fields=("tag",)).tokens(both) == encoder().tokens(item(tag="x"))
    assert encoder(ignore=("tag",)).tokens(both) == encoder().tokens(item(author=3))
    with pytest.raises(ValueError, match="both 'fields' and 'ignore'"):
        AttributeEncoderConfig(fields=("tag",), ignore=("tag",))
    with pytest.raises(ValueError, match="dim must be 1 to 4096, got 0"):
        AttributeEncoderConfig(dim=0)


def test_the_version_names_the_vector_space():
    assert encoder().version == encoder().version
    assert encoder(ignore=("a", "b")).version == encoder(ignore=("b", "a")).version
    versions = [
        encoder(),
        encoder(seed=1),
        encoder(dim=64),
        encoder(ignore=("a",)),
        encoder(numeric=("a",)),
    ]
    assert len({one.version for one in versions}) == len(versions)
    one, other = (encoder(seed=s).encode_many([item(a=1)])[0] for s in (0, 1))
    assert abs(float(one[0] @ other[0])) < 0.5


def test_vectors_of_this_algorithm_never_change():
    vectors, _ = encoder(dim=8, seed=7).encode_many([item(author=3, tag=["x", "y"], n=2.5)])
    sums = [2, 2, -2, -2, -4, 2, -2, 4]  # of the signs of four tokens
    assert (vectors[0] * np.sqrt(56)).tolist() == pytest.approx(sums)


def test_only_scalars_and_flat_lists_are_attributes():
    raw = {
        "a": 1,
        "b": {"c": 1},
        "d": b"x",
        "e": [1, [2], None, float("nan")],
        "f": float("inf"),
        "g": 1 << 63,
    }
    assert usable_attributes(raw) == {"a": 1, "e": [1, None]}


def embedder(**options):
    return Embedder(encoder(dim=16), EmbedderConfig(**options))


def decoded(row):
    found = decode_item_vector(row.value)
    assert isinstance(found, ItemVector)
    return found


def test_rows_carry_vector_attributes_and_time_of_their_item():
    maker = embedder(dtype="float32")
    (row,) = maker.embed([item("i7", tag=["a"], nested={"x": 1})]).rows
    found = decoded(row)
    assert (found.item_id, found.ts_ms, found.encoder) == ("i7", TS_MS, maker.version)
    assert found.attributes == {"tag": ["a"]}
    expected, _ = encoder(dim=16).encode_many([item(tag=["a"])])
    assert found.vector().tobytes() == expected[0].tobytes()


def test_unchanged_content_gives_no_row_until_it_is_forgotten():
    maker = embedder(remembered_bytes_max=1_300)  # two rows
    assert len(maker.embed([item(1, a=1), item(2, a=1), item(1, a=1, ts_ms=TS_MS + 1)]).rows) == 2
    again = maker.embed([item(1, a=1), item(1, a=2)])
    assert (again.unchanged, [row.index for row in again.rows]) == (1, [1])
    maker.embed([item(3, a=1)])  # forgets 2
    assert len(maker.embed([item(2, a=1)]).rows) == 1


class Counting:
    """An encoder of titles that counts what it is given."""

    version, dim = "counting-1", 4

    def __init__(self):
        self.encoded = []

    def read_of(self, item):
        return item.title

    def encode_many(self, items):
        self.encoded += [item.title for item in items]
        lengths = [len(item.title or "") for item in items]
        return np.array([[n, 1, 0, 0] for n in lengths], np.float32), np.array(lengths) > 0


def titled(item_id, title, ts_ms=TS_MS, **attributes):
    return ItemContent(item_id=item_id, ts_ms=ts_ms, title=title, attributes=attributes)


@pytest.mark.parametrize("dtype", ("float16", "float32", "int8"))
def test_a_new_price_keeps_the_vector_and_encodes_nothing(dtype):
    encoder = Counting()
    maker = Embedder(encoder, EmbedderConfig(dtype=dtype))
    (first,) = maker.embed([titled(1, "shoe", price=5)]).rows
    (second,) = maker.embed([titled(1, "shoe", TS_MS + 9, price=6)]).rows
    assert encoder.encoded == ["shoe"]
    assert (first.made, second.made) == ("encoded", "reused")
    old, new = decoded(first), decoded(second)
    assert (new.data, new.scale) == (old.data, old.scale)
    assert (new.attributes, new.ts_ms) == ({"price": 6}, TS_MS + 9)
    # The very bytes that an embedder without memory writes.
    fresh = Embedder(Counting(), EmbedderConfig(dtype=dtype))
    (alone,) = fresh.embed([titled(1, "shoe", TS_MS + 9, price=6)]).rows
    assert second.value == alone.value


def test_changes_within_one_batch_are_taken_one_after_the_other():
    encoder = Counting()
    batch = [
        titled(1, "a", n=1),
        titled(1, "a", n=2),
        titled(1, "b"),
        titled(1, "b"),
        titled(2, "a"),
    ]
    done = Embedder(encoder, EmbedderConfig()).embed(batch)
    assert [row.made for row in done.rows] == ["encoded", "reused", "encoded", "encoded"]
    assert (done.unchanged, encoder.encoded) == (1, ["a", "b", "a"])


def test_an_item_without_vector_keeps_having_none():
    encoder = Counting()
    maker = Embedder(encoder, EmbedderConfig())
    rows = maker.embed([titled(1, None, n=1)]).rows + maker.embed([titled(1, None, n=2)]).rows
    assert [decoded(row).dim for row in rows] == [0, 0]
    assert len(encoder.encoded) == 1


def test_events_that_are_written_already_are_passed_over():
    encoder = Counting()
    memory = RecentRows(1 << 20)
    events = [titled(1, "a"), titled(1, "b"), ItemContent(item_id=1, ts_ms=TS_MS, deleted=True)]
    places = [Place(7, offset, 0) for offset in range(3)]
    Embedder(encoder, EmbedderConfig(), memory=memory).embed(events, places)
    resumed = Embedder(encoder, EmbedderConfig(), memory=memory)
    again = resumed.embed(events, places)
    assert (again.rows, again.done) == ([], 3)
    # Another log, another version or form: the same places say nothing.
    assert len(resumed.embed(events, [Place(8, *p[1:]) for p in places]).rows) == 3
    assert encoder.encoded == ["a", "b"] * 2


def test_memory_of_another_version_or_form_is_not_used():
    memory, encoder = RecentRows(1 << 20), Counting()
    for dtype in ("float16", "float32"):
        maker = Embedder(encoder, EmbedderConfig(dtype=dtype), memory=memory)
        assert len(maker.embed([titled(1, "a")]).rows) == 1
    encoder.version = "counting-2"
    assert len(Embedder(encoder, EmbedderConfig(), memory=memory).embed([titled(1, "a")]).rows) == 1
    assert len(encoder.encoded) == 3


READERS = {
    "attributes": (lambda: encoder(fields=("tag",)), {"attributes": {"tag": 1}}),
    "text": (lambda: HashedTextEncoder(HashedTextConfig(dim=8)), {"title": "a"}),
    "minilm": (lambda: MiniLMEncoder(MiniLMConfig()), {"text": "a"}),
    "image": (lambda: ImageEncoder(ImageConfig()), {"image": b"1"}),
    "vector": (lambda: SuppliedEncoder("v", SuppliedConfig(dim=2)), {"vectors": {"v": [1, 2]}}),
    "everything": (lambda: object(), {"attributes": {"nested": {"x": b"1"}}}),
}


@pytest.mark.parametrize("name", READERS)
def test_each_encoder_says_what_it_reads(name):
    make, content = READERS[name]
    maker, base = make(), {"title": "t", "attributes": {"price": 1}}
    plain, read = ItemContent(item_id=1, ts_ms=1, **base), {**base, **content}
    reads = [read_of(maker, ItemContent(item_id=1, ts_ms=2, **c)) for c in (base, read)]
    assert reads[0] == read_of(maker, plain) != reads[1]
    cheaper = {**base, "attributes": {"price": 2}}
    price = read_of(maker, ItemContent(item_id=1, ts_ms=1, **cheaper))
    assert (price == reads[0]) == (name != "everything")


def test_a_fusion_reads_what_its_parts_read_and_tells_what_they_refuse():
    text, image = HashedTextEncoder(HashedTextConfig(dim=8)), ImageEncoder(ImageConfig())
    fusion = FusedEncoder({"text": text, "image": image}, FusionConfig(dim=8))
    assert read_of(fusion, titled(1, "a", n=1)) == read_of(fusion, titled(1, "a", n=2))
    assert read_of(fusion, titled(1, "a")) != read_of(fusion, titled(1, "b"))
    maker = Embedder(fusion, EmbedderConfig())
    maker.embed([ItemContent(item_id=1, ts_ms=TS_MS, title="a", image="http://x/y.png")])
    assert maker.refusals() == {"not_allowed": 1}


def test_the_memory_forgets_what_was_used_longest_ago():
    memory = RecentRows(3 * 460)
    rows = [Remembered(content=b"", row=b"", value=bytes([n]) * 10) for n in range(4)]
    memory.put_many([0, 1, 2], rows[:3])
    assert [r is not None for r in memory.get_many([0, 1, 2])] == [True] * 3
    memory.get_many([0])
    memory.put_many([3], rows[3:])
    assert [r is not None for r in memory.get_many([0, 1, 2, 3])] == [True, False, True, True]
    assert (len(memory), memory.nbytes) == (3, 3 * 460)


def test_a_deletion_passes_once_and_makes_the_same_content_news_again():
    maker = embedder()
    gone = item(1, deleted=True)
    done = maker.embed([item(1, a=1), gone, gone, item(1, a=1)])
    assert [row.deleted for row in done.rows] == [False, True, False]
    assert done.unchanged == 1
    assert decoded(done.rows[1]).deleted


def test_an_item_without_tokens_has_attributes_but_no_vector():
    (row,) = Embedder(encoder(fields=("tag",)), EmbedderConfig()).embed([item(1, author=3)]).rows
    assert (decoded(row).dim, decoded(row).attributes) == (0, {"author": 3})


def test_a_supplied_vector_wins_and_a_wrong_one_is_rejected():
    maker = embedder(supplied="clip", dtype="float32")
    good = np.arange(16, dtype=np.float32)
    done = maker.embed(
        [
            item(1, a=1, vectors={"clip": good.tolist()}),
            item(2, a=1, vectors={"clip": good.tobytes()}),
            item(3, a=1, vectors={"clip": [1.0]}),
            item(4, a=1, vectors={"clip": [float("nan")] * 16}),
            item(5, a=1, vectors={"other": [1.0]}),
        ]
    )
    assert [row.item_id for row in done.rows] == [1, 2, 5]
    assert decoded(done.rows[0]).vector().tolist() == good.tolist()
    assert decoded(done.rows[1]).vector().tolist() == good.tolist()
    assert [(i, bad.reason) for i, bad in done.rejected] == [(2, "bad_vector"), (3, "not_finite")]
    assert "expected [16], got [1]" in done.rejected[0][1].detail
    assert maker.version != embedder().version


def test_a_vector_beyond_float16_is_rejected_not_written():
    done = embedder(supplied="v").embed([item(1, vectors={"v": [1e6] * 16})])
    assert not done.rows
    assert done.rejected[0][1].reason == "bad_vector"
