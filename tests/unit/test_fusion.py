"""Fusion of modalities, and the encoders of a configuration."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from embeddings.encoders import catalog
from embeddings.encoders.attributes import AttributeEncoder, AttributeEncoderConfig
from embeddings.encoders.hashed_text import HashedTextConfig, HashedTextEncoder
from embeddings.encoders.protocol import EncoderUnavailable
from embeddings.encoders.supplied import SuppliedConfig, SuppliedEncoder
from embeddings.fusion import (
    FusedEncoder,
    FusionConfig,
    centred,
    fit_means,
    fused,
    read_means,
    write_means,
)
from embeddings.item_content import ItemContent
from infra.errors import InputError
from stream.composition import embedder_of, load_config

ATTRIBUTES = AttributeEncoderConfig(dim=64)


def items(count=40, seed=0, *, shift=0.0):
    """Items with attributes, a text and a vector; each third lacks the one, the other or none."""
    rng = np.random.default_rng(seed)
    made = [
        ItemContent(
            item_id=i,
            ts_ms=0,
            text=None if i % 6 == 2 else " ".join(rng.choice(list("abcdefgh"), 9)),
            attributes={} if i % 6 == 4 else {"author": int(rng.integers(9)), "k": i % 5},
            vectors={} if i % 3 == 1 else {"own": (rng.normal(size=6) + shift).tolist()},
        )
        for i in range(count)
    ]
    return [*made, ItemContent(item_id="empty", ts_ms=0)]


def encoders():
    return {
        "attributes": AttributeEncoder(ATTRIBUTES),
        "text": HashedTextEncoder(HashedTextConfig(dim=64)),
        "vector:own": SuppliedEncoder("own", SuppliedConfig(dim=6)),
    }


def fuse(dim=134, means=None, **options):
    return FusedEncoder(encoders(), FusionConfig(dim=dim, **options), means)


def without(item, name):
    kept = {"text": item.text, "attributes": item.attributes, "vectors": item.vectors}
    empty = {"text": None, "attributes": {}, "vectors": {}}
    return ItemContent(item_id=item.item_id, ts_ms=0, **(kept | {name: empty[name]}))


@pytest.mark.parametrize("dim", (134, 48))
def test_fused_vectors_are_unit_and_missing_only_where_all_is(dim):
    vectors, present = fuse(dim).encode_many(items())
    assert vectors.shape == (41, dim)
    assert present.tolist() == [True] * 40 + [False]
    assert np.linalg.norm(vectors[:40], axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    assert not vectors[40].any()


def test_a_missing_modality_leaves_the_direction_of_the_others_as_it_is():
    whole = items()[0]
    full, part = fuse().encode_many([whole, without(whole, "vectors")])[0]
    assert not part[128:].any()
    kept = full[:128] / np.linalg.norm(full[:128])
    assert part[:128] == pytest.approx(kept, abs=1e-6)
    alone = without(without(whole, "vectors"), "attributes")
    own = encoders()["text"].encode_many([whole])[0][0]
    assert fuse().encode_many([alone])[0][0, 64:128] == pytest.approx(own, abs=1e-6)


def test_a_missing_modality_is_not_a_vector_of_zeros():
    """Zeros less the mean would point away from it, alike for all items that lack something."""
    some = items(shift=2.0)
    means = fit_means(encoders(), some)
    vectors, _ = fuse(means=means).encode_many(some)
    lacks = [i for i in range(40) if not some[i].vectors]
    assert not vectors[lacks, 128:].any()


def test_the_cosine_is_the_weighted_mean_of_the_modalities_cosines():
    pair = [i for i in items() if i.text and i.attributes and i.vectors][:2]
    weights = {"attributes": 2.0, "vector:own": 0.5}
    fusion = fuse(weights=weights)
    vectors, _ = fusion.encode_many(pair)
    parts = fusion.encode_each(pair)
    squares = {"attributes": 4.0, "text": 1.0, "vector:own": 0.25}
    expected = sum(
        squares[name] * float(part.vectors_BD[0] @ part.vectors_BD[1])
        for name, part in parts.items()
    ) / sum(squares.values())
    assert vectors[0] @ vectors[1] == pytest.approx(expected, abs=1e-6)


def test_a_projection_keeps_cosines():
    some = items(200)
    exact, present = fuse(134).encode_many(some)
    projected, _ = fuse(2048).encode_many(some)
    gap = (exact @ exact.T - projected @ projected.T)[np.ix_(present, present)]
    assert np.abs(gap).max() < 6 / np.sqrt(2048)
    assert np.sqrt((gap**2).mean()) < 1.2 / np.sqrt(2048)


@pytest.mark.parametrize("dim", (134, 48))
def test_a_vector_is_bit_identical_whatever_its_batch(dim):
    some = items()
    means = fit_means(encoders(), some)
    together, _ = fuse(dim, means).encode_many(some)
    alone = np.concatenate([fuse(dim, means).encode_many([item])[0] for item in some])
    backwards = fuse(dim, means).encode_many(some[::-1])[0][::-1]
    assert together.tobytes() == alone.tobytes() == backwards.tobytes()


def test_centring_takes_the_common_direction_off():
    some = items(60, shift=2.0)
    raw = fuse().encode_each(some)["vector:own"]
    cut = fuse(means=fit_means(encoders(), some)).encode_each(some)["vector:own"]
    assert cut.present_B.tolist() == raw.present_B.tolist()

    def mean_cosine(part):
        vectors = part.vectors_BD[part.present_B]
        cosines = vectors @ vectors.T
        return cosines[~np.eye(len(cosines), dtype=bool)].mean()

    assert mean_cosine(raw) > 0.6
    assert abs(mean_cosine(cut)) < 0.05


def test_a_vector_that_is_the_mean_has_no_direction():
    part = centred(np.eye(2, dtype=np.float32), np.ones(2, bool), np.array([1, 0], np.float32))
    assert part.present_B.tolist() == [False, True]
    assert not part.vectors_BD[0].any()


def test_means_are_of_unit_vectors_that_are_there(monkeypatch):
    some = items(30, shift=1.0)
    given = np.array([i.vectors["own"] for i in some if i.vectors])
    expected = (given / np.linalg.norm(given, axis=1, keepdims=True)).mean(axis=0)
    whole = fit_means(encoders(), some)
    assert whole.means["vector:own"] == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr("embeddings.fusion._ITEMS_PER_CALL", 4)
    told = []
    blocks = fit_means(encoders(), some, lambda done, total: told.append((done, total)))
    assert blocks.means["text"] == pytest.approx(whole.means["text"], abs=1e-6)
    assert told[-1] == (31, 31)
    assert fit_means(encoders(), some[-1:]).means == {}


def test_means_come_back_from_their_file_and_are_part_of_the_version(tmp_path):
    means = fit_means(encoders(), items())
    write_means(tmp_path / "means.safetensors", means)
    again = read_means(tmp_path / "means.safetensors")
    assert again.version == means.version
    some = items(10)
    assert fuse(means=again).encode_many(some)[0].tobytes() == (
        fuse(means=means).encode_many(some)[0].tobytes()
    )
    versions = {
        fuse().version,
        fuse(means=means).version,
        fuse(means=fit_means(encoders(), items(seed=1))).version,
        fuse(dim=48).version,
        fuse(dim=48, seed=1).version,
        fuse(weights={"text": 2.0}).version,
    }
    assert len(versions) == 6


def test_means_of_another_encoder_and_broken_files_are_refused(tmp_path):
    means = fit_means(encoders(), items())
    other = {"text": HashedTextEncoder(HashedTextConfig(dim=64, seed=9))}
    with pytest.raises(EncoderUnavailable, match="mean of 'text'"):
        FusedEncoder(other, FusionConfig(dim=64), means)
    (tmp_path / "bad").write_bytes(b"no safetensors")
    for name in ("bad", "absent"):
        with pytest.raises(EncoderUnavailable, match="mean_file"):
            read_means(tmp_path / name)


def test_weights_must_be_of_encoders_and_positive():
    with pytest.raises(ValueError, match="weights of"):
        fuse(weights={"image": 1.0})
    with pytest.raises(ValueError, match="above 0"):
        FusionConfig(weights={"text": 0.0})


def test_supplied_vectors_of_any_form_and_bad_ones():
    given = np.array([3, 4], np.float32)
    bad = [[1.0], [0.0, 0.0], [np.nan, 1.0], ["x", "y"], b"abc", [np.inf, 1.0]]
    encoder = SuppliedEncoder("v", SuppliedConfig(dim=2))
    rows = [{"v": given.tobytes()}, {"v": [3, 4]}, {}, *({"v": vector} for vector in bad)]
    vectors, present = encoder.encode_many(
        [ItemContent(item_id=i, ts_ms=0, vectors=row) for i, row in enumerate(rows)]
    )
    assert present.tolist() == [True, True] + [False] * 7
    assert vectors[:2] == pytest.approx(np.array([[0.6, 0.8]] * 2))
    assert encoder.refused == len(bad)


def test_a_single_encoder_of_the_wanted_length_stays_what_it_is():
    one = {"text": HashedTextEncoder(HashedTextConfig(dim=64))}
    assert fused(one, FusionConfig(dim=64)) is one["text"]
    assert fused(one, FusionConfig(dim=32)).dim == 32


# The default must never move: every stored vector and running model depends on it.
def test_the_default_configuration_gives_the_vectors_it_always_gave():
    config = load_config(None, ())
    embedder = embedder_of(config)
    assert embedder.version == AttributeEncoder(config.items.encoder()).version
    assert AttributeEncoder(AttributeEncoderConfig()).version == "attributes-1-128-0f0c51a31a4381cd"


def test_encoders_of_a_configuration(tmp_path):
    overrides = (
        'items.encoders=["attributes", "text", "vector:own"]',
        'items.encoder_options={text={dim=64}, "vector:own"={dim=6}}',
        "items.weights={text=2.0}",
    )
    plain = embedder_of(load_config(None, overrides))
    assert plain.version.startswith("fused-")
    assert plain.dim == load_config(None, ()).items.dim
    config = load_config(None, overrides)
    attributes = config.items.encoder()
    built = catalog.build_all(config.items.encoders, config.items.encoder_options, attributes)
    path = tmp_path / "means.safetensors"
    write_means(path, fit_means(built, items()))
    centred_one = embedder_of(load_config(None, (*overrides, f"items.mean_file={path}")))
    assert centred_one.version not in (plain.version, "")


@pytest.mark.parametrize(
    ("override", "words"),
    (
        ("items.encoders=[]", "one or more"),
        ('items.encoders=["text", "text"]', "each once"),
        ('items.encoders=["nothing"]', "no encoder 'nothing'"),
        ("items.encoder_options={text={dim=3}}", "not in encoders"),
        ('items.encoders=["vector:x"]', "dim"),
        ('items.mean_file="/nowhere"', "mean_file"),
        ("items.weights={attributes=-1.0}", "weights must be"),
    ),
)
def test_a_bad_configuration_is_one_clear_line(override, words):
    with pytest.raises(InputError, match=words) as caught:
        embedder_of(load_config(None, (override,)))
    assert "\n" not in str(caught.value)


PLUG_IN = """
import numpy as np

class Lengths:
    version = "lengths-1"
    dim = 2

    def __init__(self, options):
        self.scale = options.get("scale", 1.0)

    def encode_many(self, items):
        lengths = np.array([len(item.title or "") for item in items], np.float32)
        vectors = np.stack([lengths * self.scale, np.ones_like(lengths)], axis=1)
        present = lengths > 0
        return np.where(present[:, None], vectors, 0).astype(np.float32), present

def broken(options):
    raise OSError("no weights here")
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    (tmp_path / "plug_in_of_a_test.py").write_text(PLUG_IN)
    facts = tmp_path / "plug_in_of_a_test-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in-of-a-test\nVersion: 1.0")
    points = ["lengths = plug_in_of_a_test:Lengths", "broken = plug_in_of_a_test:broken"]
    (facts / "entry_points.txt").write_text("\n".join(["[millrace.encoders]", *points]))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("plug_in_of_a_test", None)


@pytest.mark.usefixtures("plug_in")
def test_a_users_own_encoder_is_found_by_its_entry_point():
    encoder = catalog.build("lengths", {"scale": 2.0}, ATTRIBUTES)
    assert encoder.version == "lengths-1"
    both = {"lengths": encoder, "text": encoders()["text"]}
    titled = ItemContent(item_id=1, ts_ms=0, title="abc")
    vectors, present = FusedEncoder(both, FusionConfig(dim=66)).encode_many([titled])
    assert present.all()
    assert vectors[0, 0] / vectors[0, 1] == pytest.approx(6)
    with pytest.raises(EncoderUnavailable, match=r"broken.*no weights here"):
        catalog.build("broken", {}, ATTRIBUTES)
