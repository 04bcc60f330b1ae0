"""FLIP on live batches: golden values of its losses, what each side sees, its gate, its noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from embeddings.pretrain.flip_losses import (
    contrast_loss,
    distinct_items,
    draw_masks,
    masked_count,
    nce_loss,
    nce_score,
)
from learners import catalog
from learners.batch import MiniBatch
from learners.dense_optim import AdamConfig, FlatAdam
from learners.modules.flip import Flip, FlipConfig
from learners.modules.flip_vocabulary import Vocabulary
from learners.net_inputs import NetInputs
from learners.net_learner import NetLearner
from learners.step_inputs import step_inputs
from tests.support.batches import BatchMaker, keys_of, small_spec

OPTIONS = {"on": True, "fields": ["item", "tab"], "noise_rows": 128}


def ranker(**options: object) -> NetLearner:
    """A small ranker with the module."""
    learner = catalog.build(
        "id_content", small_spec(), {"device": "cpu", "flip": {**OPTIONS, **options}}
    )
    assert isinstance(learner, NetLearner)
    return learner


def module_of(learner: NetLearner) -> Flip:
    """Its module, the one that learns."""
    module = dict(learner.net.modules_on)["flip"]
    assert isinstance(module, Flip)
    return module


def inputs_of(learner: NetLearner, batch: MiniBatch) -> NetInputs:
    """What the net reads of a batch, its rows as leaves."""
    x = step_inputs(batch, learner.spec, learner.device)
    lookups = [table.predict(x.ids_BF, x.bags_BL) for table in learner.tables]
    for lookup in lookups:
        lookup.embedded_BFD.requires_grad_()
    return learner._inputs(x, lookups)


@pytest.mark.parametrize(("fields", "expected"), ((4, 1), (8, 1), (15, 2), (20, 3)))
def test_masked_fields_of_a_row(fields, expected):
    """floor(.15 F), one at least, and every field as often as the others."""
    assert masked_count(fields, 0.15) == expected
    masks = draw_masks(np.random.default_rng(0), 100_000, fields, 0.15)
    assert set(masks.sum(1)) == {expected}
    assert stats.chisquare(masks.sum(0)).pvalue > 1e-3


def test_nce_starts_at_4_239_whatever_the_vocabulary():
    expected = math.log(26) + 25 * math.log(1 + 1 / 25)
    assert expected == pytest.approx(4.239, abs=5e-4)
    loss = nce_loss(torch.zeros(7), torch.zeros(7, 25))
    assert torch.allclose(loss, torch.full((7,), expected))
    # The module's first loss: all output rows are zero, of whatever ids.
    for items in (10, 4000):
        learner, stream = ranker(), BatchMaker(small_spec(), items=items)
        learner.learn_many(stream.batch(64))
        module, x = module_of(learner), inputs_of(learner, stream.batch(64))
        fresh = Vocabulary(("item", "tab"), 33, rows_max=99, size=64, lr=0.1, seed=1)
        fresh.learned(x.step.ids_BF[:, [1, 2]], clock_ms=0, ok=True)
        module.vocabulary = fresh
        rows = [x.embedded_BFD[t][:, i] for t, i in module.places]
        keys = np.ascontiguousarray(x.step.ids_BF[:, [1, 2]])
        assert module.tabular_loss(rows, x.target_BC, keys).item() == pytest.approx(expected)


def test_nce_finds_the_conditional_probabilities():
    """score - ln V, here g . o + d + ln Q, is ln p(v | c) within .05: in expectation over noise."""
    rng, k = np.random.default_rng(0), 25
    p_CV = torch.from_numpy(rng.dirichlet(np.full(50, 2.0), 4)).float().clamp(min=1e-3)
    p_CV /= p_CV.sum(1, keepdim=True)
    q_V = p_CV.mean(0)
    context, rows = torch.randn(4, 8), torch.zeros(50, 9)
    parameters = [nn.Parameter(context), nn.Parameter(rows)]
    context, rows = parameters
    adam = FlatAdam(parameters, AdamConfig(lr=0.03, beta1=0.9, averaged_rows=0))
    for _ in range(600):
        score_CV = nce_score(context, rows)
        positive = functional.softplus(math.log(k) - score_CV)
        noise = functional.softplus(score_CV - math.log(k))
        loss = (p_CV * positive + k * q_V * noise).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step(torch.tensor(data=True))
    found = (nce_score(context, rows) + q_V.log()).detach()
    assert float((found - p_CV.log()).abs().max()) < 0.05
    # One target and K noise ids cost what the function says.
    drawn = torch.randint(50, (k,))
    row = score_CV[0].detach()
    expected = functional.softplus(math.log(k) - row[3])
    expected += functional.softplus(row[drawn] - math.log(k)).sum()
    assert nce_loss(row[3:4], row[drawn].unsqueeze(0))[0] == pytest.approx(float(expected))


def test_contrast_of_nothing_known_is_ln_n():
    torch.manual_seed(0)
    zeros = torch.zeros(17, 8)
    assert float(contrast_loss(zeros, zeros, 0.1)) == pytest.approx(math.log(17))
    a, b = torch.randn(256, 128), torch.randn(256, 128)
    assert float(contrast_loss(a, b, 0.7)) == pytest.approx(math.log(256), rel=0.05)
    order = torch.randperm(256)
    whole = float(contrast_loss(a, b, 0.1))
    assert float(contrast_loss(a[order], b[order], 0.1)) == pytest.approx(whole, rel=1e-5)
    assert float(contrast_loss(b, a, 0.1)) == pytest.approx(whole, rel=1e-5)
    assert float(contrast_loss(a, a, 0.1)) < 0.1


def test_rows_of_one_item_are_never_each_others_negatives():
    keys = np.array([5, 7, 5, 9, 7, 5])
    usable = np.array([False, True, True, False, True, True])
    assert distinct_items(keys, usable).tolist() == [1, 2]
    learner, stream = ranker(tabular_weight=0.0), BatchMaker(small_spec())
    batch = stream.batch(16)
    batch.ids_BF[:] = batch.ids_BF[3]
    # All rows are one item: no pair is left to contrast.
    assert module_of(learner)(inputs_of(learner, batch), learning=True).loss is None
    batch.ids_BF[:] = stream.batch(16).ids_BF
    assert module_of(learner)(inputs_of(learner, batch), learning=True).loss is not None


def test_each_side_is_seen_through_the_other():
    """The loss reaches rows of fields that are not hidden and the vector, and no hidden row."""
    learner, stream = ranker(), BatchMaker(small_spec())
    for _ in range(3):
        learner.learn_many(stream.batch(40))
    module, x = module_of(learner), inputs_of(learner, stream.batch(40))
    keys = np.ascontiguousarray(x.step.ids_BF[:, [1, 2]])
    rows = [x.embedded_BFD[t][:, i].detach().clone().requires_grad_() for t, i in module.places]
    text = x.target_BC.clone().requires_grad_()
    module.tabular_loss(rows, text, keys).backward()
    hidden = torch.from_numpy(draw_masks(module.vocabulary.rng(0), 40, 2, 0.15))
    assert 5 < int(hidden[:, 0].sum()) < 35
    for i in (0, 1):
        gradient = rows[i].grad
        assert gradient is not None
        moved = gradient.abs().sum(1) > 0
        assert not bool((moved & hidden[:, i]).any())
        assert bool(moved[~hidden[:, i]].any())
    assert text.grad is not None
    assert float(text.grad.abs().sum()) > 0
    for mask in module.masks:
        assert mask.grad is not None
        assert float(mask.grad.abs().sum()) > 0


@pytest.mark.slow
def test_the_vector_tells_the_hidden_id():
    """An item's vector is a function of its id: with it the hidden id is nearly known."""
    spec = small_spec()
    learner = ranker(tabular_weight=1.0, contrast_weight=0.0)
    stream = BatchMaker(spec, items=20)
    for _ in range(100):
        learner.learn_many(stream.batch(64))
    module, x = module_of(learner), inputs_of(learner, stream.batch(512))
    has = (x.present_B1[:, 0] > 0).nonzero()[:, 0]
    keys = np.ascontiguousarray(x.step.ids_BF[has.numpy()][:, [1, 2]])
    rows = [x.embedded_BFD[t][has, i] for t, i in module.places]
    text = functional.layer_norm(x.target_BC[has], (6,))
    with torch.no_grad():
        seen = float(module.tabular_loss(rows, text, keys))
        blind = float(module.tabular_loss(rows, torch.zeros_like(text), keys))
        other = float(module.tabular_loss(rows, text.roll(7, 0), keys))
    assert seen < min(blind, other) - 0.5


def test_alpha_is_the_papers_mixture():
    learner, stream = ranker(), BatchMaker(small_spec())
    for _ in range(3):
        learner.learn_many(stream.batch(40))
    module, x = module_of(learner), inputs_of(learner, stream.batch(40))
    ids, text = torch.randn(40, 64), torch.randn(40, module.text.stop - module.text.start)
    has = x.present_B1[:, 0] > 0
    torch.nn.init.normal_(module.id_head.weight)
    torch.nn.init.normal_(module.text_head.weight)
    z_id, z_text = module.id_head(ids).detach(), module.text_head(text).detach()

    def mixed_at(alpha: float) -> torch.Tensor:
        with torch.no_grad():
            module.gate.fill_(alpha)
        return module.mixed(x, ids, text)

    assert torch.equal(mixed_at(0.0)[has], z_text[has])
    assert torch.equal(mixed_at(1.0)[has], z_id[has])
    assert torch.equal(mixed_at(0.0)[~has], z_id[~has])
    module.gate.grad = None
    mixed_at(0.3)[has].sum().backward()
    assert module.gate.grad is not None
    expected = float((z_id - z_text)[has].sum())
    assert float(module.gate.grad) == pytest.approx(expected, rel=1e-4)
    assert module_of(ranker()).gate.item() == 0.0


def test_gate_by_exposure_lets_new_items_lean_on_their_vector():
    learner, stream = ranker(exposure="duration"), BatchMaker(small_spec())
    module, x = module_of(learner), inputs_of(learner, stream.batch(8))
    seen = torch.log1p(torch.tensor([0.0, 1, 6, 20, 100, 1000, 10_000, 1e9]))
    raw = x.raw_BD.clone()
    raw[:, module.exposure] = seen
    alpha = module.alpha(dataclasses.replace(x, raw_BD=raw))[:, 0].detach()
    assert bool((alpha.diff() > 0).all())
    assert float(alpha[0]) < 0.15
    assert float(alpha[4]) > 0.9


def test_without_weights_and_head_it_is_the_ranker_bit_for_bit():
    plain = catalog.build("id_content", small_spec(), {"device": "cpu"})
    silent = ranker(joins=False, tabular_weight=0.0, contrast_weight=0.0)
    a, b = BatchMaker(small_spec()), BatchMaker(small_spec())
    for _ in range(8):
        one, other = plain.learn_many(a.batch(40)), silent.learn_many(b.batch(40))
        assert torch.equal(one.logits_B, other.logits_B)
    batch = a.batch(30)
    assert torch.equal(plain.predict_many(batch), silent.predict_many(batch))


def test_the_head_reads_how_much_is_known():
    """Ids of which nothing is known add little: r is read at its own length, not at unit length."""
    learner, stream = ranker(), BatchMaker(small_spec())
    for _ in range(3):
        learner.learn_many(stream.batch(40))
    module, x = module_of(learner), inputs_of(learner, stream.batch(40))
    torch.nn.init.normal_(module.id_head.weight)
    with torch.no_grad():
        module.gate.fill_(1.0)
        r = torch.rand(40, module.config.width)
        whole, faint = (module.mixed(x, scale * r, x.target_BC[:, module.text])
                        for scale in (1.0, 0.01))  # fmt: skip
    assert torch.allclose(faint, 0.01 * whole, atol=1e-4)


def test_without_contrast_there_is_nothing_for_it():
    names = {name for name, _ in module_of(ranker(contrast_weight=0.0)).named_parameters()}
    assert names
    assert not any(name.startswith(("of_ids", "of_text")) for name in names)


def test_losses_alone_move_the_ids():
    plain = catalog.build("id_content", small_spec(), {"device": "cpu"})
    for name in ("tabular_weight", "contrast_weight"):
        weights = {"tabular_weight": 0.0, "contrast_weight": 0.0, name: 0.5}
        aided = ranker(joins=False, **weights)
        a, b = BatchMaker(small_spec()), BatchMaker(small_spec())
        for _ in range(4):
            plain.learn_many(a.batch(40))
            aided.learn_many(b.batch(40))
        batch = a.batch(30)
        assert not torch.equal(plain.predict_many(batch), aided.predict_many(batch)), name


def test_noise_follows_the_stream_with_decay():
    vocabulary = Vocabulary(("item",), 9, rows_max=1000, size=500, lr=0.1, seed=3)
    old, new = keys_of(1, np.array([1])), keys_of(1, np.array([2]))
    for _ in range(25):
        vocabulary.learned(np.tile(old, (20, 1)), clock_ms=0, ok=True)
    assert vocabulary.filled == 500
    for _ in range(25):
        vocabulary.learned(np.tile(new, (20, 1)), clock_ms=0, ok=True)
    share = float((vocabulary.sample_SF == old[0]).mean())
    assert share == pytest.approx((1 - 1 / 500) ** 500, abs=0.06)
    drawn = vocabulary.noise(vocabulary.rng(0), 20_000)
    assert float((drawn == old[0]).mean()) == pytest.approx(share, abs=0.02)


def test_a_step_that_was_not_taken_leaves_the_vocabulary():
    vocabulary = Vocabulary(("item",), 9, rows_max=1000, size=50, lr=0.1, seed=3)
    keys = keys_of(1, np.arange(10)).reshape(-1, 1)
    vocabulary.rows(keys).sum().backward()
    vocabulary.learned(keys, clock_ms=0, ok=False)
    assert vocabulary.filled == 0
    assert vocabulary.table.ids.counts()["rows"] == 0
    vocabulary.rows(keys).sum().backward()
    vocabulary.learned(keys, clock_ms=0, ok=True)
    assert vocabulary.table.ids.counts()["rows"] == 10
    assert float(vocabulary.rows(keys).detach().abs().min()) > 0


def test_threads_do_not_matter():
    def weights(threads: int) -> torch.Tensor:
        options = {"device": "cpu", "threads": threads, "flip": OPTIONS}
        learner = catalog.build("id_content", small_spec(), options)
        assert isinstance(learner, NetLearner)
        stream = BatchMaker(small_spec())
        for _ in range(3):
            learner.learn_many(stream.batch(400))
        return learner.adam.w

    try:
        one, two = weights(1), weights(2)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


@pytest.mark.slow
def test_content_of_new_items_is_seen():
    """Every item is new in every batch and its click depends on its vector alone."""

    def last_loss(options: dict) -> float:
        spec = small_spec()
        learner = catalog.build(
            "id_content", spec, {"device": "cpu", "content_projection": 0, **options}
        )
        stream, rng = BatchMaker(spec), np.random.default_rng(1)
        losses = []
        for _ in range(80):
            batch = stream.batch(64)
            assert batch.content is not None
            text = batch.content.table_VC[batch.content.target_B]
            keys = rng.integers(1, 2**62, 64)
            batch.ids_BF[:, 1] = torch.from_numpy(keys)
            batch.dense_BD[:, 1:3] = 0
            click = (text[:, 0] > 0).float()
            batch.labels_BK[:, 1] = click
            losses.append(float(learner.learn_many(batch).loss))
        return float(np.mean(losses[-20:]))

    assert last_loss({"flip": OPTIONS}) < last_loss({}) - 0.2


@pytest.mark.parametrize(
    ("options", "match"),
    (
        ({"fields": ("item",)}, "two or more"),
        ({"fields": ("item", "tab"), "tabular_weight": -1.0}, "at least 0"),
        ({"fields": ("item", "tab"), "mask_share": 1.0}, "mask_share"),
        ({"fields": ("item", "tab"), "noise": 0}, "at least 1"),
    ),
)
def test_settings_that_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        FlipConfig(on=True, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    (
        ({"fields": ["item", "nothing"]}, "no id feature is named 'nothing'"),
        ({"exposure": "nothing"}, "no dense input is named 'nothing'"),
        ({"states": 4}, "do not share"),
        ({"block": "nothing"}, "no block"),
    ),
)
def test_misfits_with_the_spec_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ranker(**options)
