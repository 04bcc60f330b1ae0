"""The hashed text encoder."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from embeddings.encoders.hashed_text import (
    HashedTextConfig,
    HashedTextEncoder,
    _NGrams,
    plain_words,
)
from embeddings.encoders.text import TEXT_CHARACTERS_MAX, text_of
from embeddings.item_content import ItemContent


def item(text=None, title=None, item_id=1):
    return ItemContent(item_id=item_id, ts_ms=0, title=title, text=text)


def encoder(**options):
    return HashedTextEncoder(HashedTextConfig(**options))


def sentences(count):
    rng = np.random.default_rng(5)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 9))) for _ in range(300)]
    return [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(count)]


def test_the_hashes_of_a_block_tell_apart_exactly_what_naive_n_grams_do():
    texts = [plain_words(text) for text in [*sentences(20), "a", "ab ab", "日本語 テキスト"]]
    ngrams = _NGrams(texts, seed=3)
    for n in (1, 2, 3):
        naive = [
            (i, tuple(words[k : k + n]))
            for i, words in enumerate(text.split(" ") for text in texts)
            for k in range(len(words) - n + 1)
        ]
        assert_same_classes(ngrams.words(n), naive)
    for n in (2, 3, 4, 5):
        naive = [
            (i, f" {word} "[k : k + n])
            for i, text in enumerate(texts)
            for word in text.split(" ")
            for k in range(len(word) + 2 - n + 1)
        ]
        assert_same_classes(ngrams.pieces(n), naive)


def assert_same_classes(found, naive):
    """Equal n-grams have equal hashes, different ones different ones, in the naive order."""
    of, hashes = found[0].tolist(), found[1].tolist()
    assert of == [i for i, _ in naive]
    by_gram = {}
    for (_, gram), value in zip(naive, hashes, strict=True):
        assert by_gram.setdefault(gram, value) == value
    assert len(set(by_gram.values())) == len(by_gram)


def test_the_cosine_is_that_of_weighted_n_gram_counts():
    left, right = "red shoes red hat", "red shoes and a blue scarf"
    got = encoder(dim=4096, words=2, pieces_weight=0.0).encode_many([item(left), item(right)])[0]

    def counts(text):
        words = text.split()
        return Counter(words) + Counter(pairwise(words))

    def weigh(count):
        return {gram: 1 + np.log(n) for gram, n in count.items()}

    a, b = weigh(counts(left)), weigh(counts(right))
    dot = sum(a[gram] * b[gram] for gram in a.keys() & b.keys())
    norm = np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    assert got[0] @ got[1] == pytest.approx(dot / norm, abs=0.05)


def test_a_vector_is_bit_identical_whatever_its_batch():
    items = [item(text, item_id=i) for i, text in enumerate(sentences(400))]
    together, present = encoder().encode_many(items)
    assert present.all()
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(400), abs=1e-6)
    for i in (0, 7, 399):
        assert encoder().encode_many([items[i]])[0][0].tobytes() == together[i].tobytes()


def test_texts_beyond_one_block_keep_their_places(monkeypatch):
    items = [item(text) if i % 3 else item() for i, text in enumerate(sentences(60))]
    whole, present = encoder().encode_many(items)
    monkeypatch.setattr("embeddings.encoders.hashed_text._CHARACTERS_PER_BLOCK", 300)
    blocks, again = encoder().encode_many(items)
    assert blocks.tobytes() == whole.tobytes()
    assert present.tolist() == again.tolist() == [i % 3 > 0 for i in range(60)]


def test_spelling_case_and_form_unite_what_is_alike():
    words = ["Running Shoes", "running shoe", "RUNNING, shoes!", "quantum physics", "ﬁne", "fine"]
    vectors, _ = encoder(dim=1024).encode_many([item(word) for word in words])
    cosines = vectors @ vectors.T
    assert cosines[0, 2] == pytest.approx(1)
    assert cosines[4, 5] == pytest.approx(1)
    assert cosines[0, 1] > 0.4
    assert abs(cosines[0, 3]) < 0.2


def test_an_item_without_words_is_missing():
    vectors, present = encoder().encode_many([item(), item(""), item(" ?! _ "), item("x")])
    assert present.tolist() == [False, False, False, True]
    assert not vectors[:3].any()
    assert encoder().encode_many([])[0].shape == (0, 256)


def test_the_version_names_all_that_changes_vectors():
    versions = {
        encoder(**options).version
        for options in ({}, {"dim": 64}, {"seed": 1}, {"words": 1}, {"pieces_weight": 0.0})
    }
    assert len(versions) == 5
    one, other = (encoder(seed=s).encode_many([item("some words")])[0] for s in (0, 1))
    assert abs((one @ other.T).item()) < 0.5


@pytest.mark.parametrize(
    "options", ({"dim": 0}, {"words": 0}, {"pieces_min": 6}, {"pieces_max": 9}, {"words": 6})
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="text encoder"):
        encoder(**options)


def test_the_text_of_an_item():
    assert text_of(item("body", "Title")) == "Title. body"
    assert text_of(item("body", "Why?")) == "Why? body"
    assert text_of(item("body")) == "body"
    assert text_of(item(None, " T ")) == "T"
    assert text_of(item()) == ""
    assert len(text_of(item("x" * 50_000))) == TEXT_CHARACTERS_MAX
