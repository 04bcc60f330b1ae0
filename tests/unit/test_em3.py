"""EM3: the Q-Former and the contrast in numbers, the memory, what reaches the ranker."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from learners import catalog
from learners.batch import ContentRows
from learners.feature_spec import ContentBlock
from learners.modules.em3 import Correction, Em3Config
from learners.modules.em3_cold import ContentToId
from learners.modules.em3_contrast import (
    ContentIdContrast,
    contrast,
    counted,
    draw_negatives,
    id_scale,
    loss_at_start,
    scaled_gradient,
)
from learners.modules.em3_former import FormerConfig, FqFormer
from learners.modules.em3_memory import ContentMemory
from tests.conformance.learner_checks import EVERY_LEARNER, assert_same_state, state_of
from tests.support.batches import START_MS, BatchMaker, small_spec
from tests.support.close import assert_close
from tests.support.planted import DIM, PlantedContent, last_losses

OPTIONS = {"device": "cpu", "content_projection": 0, "adam": {"averaged_rows": 0}}
SMALL = {"on": True, "dim": 16, "heads": 2, "rank": 2, "memory_rows": 4_096}


class FewItems(PlantedContent):
    """The planted stream with histories of 200 items that are shown as well, by their content."""

    def __init__(self, seed):
        super().__init__(seed)
        rng = np.random.default_rng(5)
        self._group = rng.integers(0, 4, 200)
        self._table = self._group_GC[self._group] + rng.normal(0, 0.2, (200, DIM))
        # A new key for each sighting of a target, one key for good in histories.
        self._key = rng.integers(1, 2**62, 200)

    def batch(self, rows, *, ts_ms=None):
        plain = super().batch(rows, ts_ms=ts_ms)
        rng = self._rng
        own, shown = rng.integers(0, 4, rows), rng.integers(0, 200, rows)
        of = [np.flatnonzero(self._group == g) for g in range(4)]
        history = np.stack([rng.choice(of[g], 7) for g in own])
        click = rng.random(rows) < np.where(self._group[shown] == own, 0.85, 0.15)
        table = np.vstack([self._table, np.zeros((1, DIM))]).astype(np.float32)
        content = ContentRows(
            table_VC=torch.from_numpy(table),
            target_B=torch.from_numpy(shown),
            missing_B=torch.zeros(rows, dtype=torch.bool),
            bags_BL=(torch.from_numpy(history),),
            bag_inv_len_B=(torch.full((rows,), 1 / 7),),
            encoder="synthetic",
        )
        return dataclasses.replace(
            plain,
            content=content,
            bags_BL=(torch.from_numpy(self._key[history]), plain.bags_BL[1]),
            labels_BK=torch.from_numpy(np.stack([click, click], 1)).float(),
        )


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(spec=None, content_projection=0, **em3):
    options = {**OPTIONS, "content_projection": content_projection}
    spec = spec or small_spec(content_dim=DIM)
    return catalog.build("id_content", spec, {**options, **({"em3": em3} if em3 else {})})


def em3_of(learner):
    return learner.net.methods["em3"]


def former(queries=1, layers=1, heads=4, widths=(20, 30), dim=64, seed=0):
    torch.manual_seed(seed)
    config = FormerConfig(dim=dim, queries=queries, layers=layers, heads=heads)
    net = FqFormer(widths, config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def tokens(visual=2, text=3, rows=5, seed=1):
    torch.manual_seed(seed)
    values = [torch.randn(rows, visual, 20), torch.randn(rows, text, 30)]
    return values, [torch.ones(v.shape[:2], dtype=torch.bool) for v in values]


@pytest.mark.parametrize("queries", (1, 2, 5))
@pytest.mark.parametrize(("visual", "text"), ((1, 0), (1, 1), (4, 8)))
def test_a_vector_of_fixed_length_for_any_tokens(queries, visual, text):
    """Check 1."""
    values, kept = tokens(visual, text)
    assert former(queries)(values, kept).shape == (5, 64)


def test_tokens_of_one_kind_may_be_exchanged():
    """Check 2."""
    net = former(2, 2)
    values, kept = tokens(4, 3)
    turned = [values[0][:, [2, 0, 3, 1]], values[1].flip(1)]
    assert_close(net(values, kept), net(turned, kept))
    swapped = [values[0], values[1] + 1]
    assert not torch.allclose(net(values, kept), net(swapped, kept))


def test_what_is_masked_does_not_matter():
    """Check 3: and with all masked the queries alone are left."""
    net = former(2, 2)
    values, kept = tokens()
    kept[1][:] = False
    other = [values[0], torch.full_like(values[1], 77.0)]
    assert torch.equal(net(values, kept), net(other, kept))
    kept[0][:] = False
    out = net(values, kept)
    assert torch.equal(out, out[:1].expand_as(out))


def test_number_of_parameters():
    """Check 4, and the figures of section 3 at D = 64."""
    for queries, layers in ((1, 1), (2, 3)):
        d = 64
        expected = layers * (4 * (d * d + d) + 2 * d) + queries * d + queries * d * d + d
        inputs = 20 * d + d + 30 * d + d
        net = former(queries, layers)
        assert sum(p.numel() for p in net.parameters()) == expected + inputs
    assert sum(p.numel() for p in former().layers[0].parameters()) == 16_768


@pytest.mark.parametrize(("queries", "layers", "heads"), ((1, 1, 4), (2, 2, 8), (5, 1, 4)))
def test_same_as_attention_and_norm_of_torch(queries, layers, heads):
    """Check 5, against another implementation of the same equations, a modality masked in part."""
    net = former(queries, layers, heads)
    values, kept = tokens()
    kept[1][2:] = False
    x = torch.cat(
        [
            net.queries.expand(5, queries, 64),
            *(project(v) for project, v in zip(net.inputs, values, strict=True)),
        ],
        1,
    )
    hidden = ~torch.cat([torch.ones(5, queries, dtype=torch.bool), *kept], 1)
    for layer in net.layers:
        attention = nn.MultiheadAttention(64, heads, batch_first=True).eval()
        norm = nn.LayerNorm(64)
        with torch.no_grad():
            maps = (layer.query, layer.key, layer.value)
            attention.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
            attention.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
            attention.out_proj.weight.copy_(layer.out.weight)
            attention.out_proj.bias.copy_(layer.out.bias)
            norm.weight.copy_(layer.scale)
            norm.bias.copy_(layer.shift)
        x = norm(x + attention(x, x, x, key_padding_mask=hidden, need_weights=False)[0])
    expected = net.project(x[:, :queries].flatten(1))
    assert_close(net(values, kept), expected, atol=1e-5, rtol=1e-5)


def test_the_click_loss_reaches_every_weight():
    """Check 6: after one step, for before it all goes through zeros; vectors get no gradient.

    Without the contrast: it is the click loss that gets there.
    """
    learner, stream = build(**{**SMALL, "contrast": 0.0, "queries": 2}), FewItems(9)
    before = {n: p.detach().clone() for n, p in learner.net.named_parameters()}
    for _ in range(4):
        learner.learn_many(stream.batch(64))
    for name, parameter in learner.net.methods.named_parameters():
        assert not torch.equal(parameter, before[f"methods.{name}"]), name
    batch = stream.batch(8)
    assert not batch.content.table_VC.requires_grad


def test_a_former_that_is_not_trained_stays_as_it_began():
    """Check 16's control."""
    learner, stream = build(**SMALL, contrast=0.0, train_former=False), PlantedContent(9)
    net = em3_of(learner).former
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for _ in range(5):
        learner.learn_many(stream.batch(64))
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_contrast_has_the_golden_values():
    """Check 7: ln 17 with equal logits; 7.3e-4 with aligned orthogonal pairs at tau = .1."""
    draws = torch.from_numpy(counted(draw_negatives(40, (1, 2))))
    assert float(contrast(torch.zeros(40, 40), draws)) == pytest.approx(math.log(17), abs=1e-6)
    assert loss_at_start() == pytest.approx(2.833, abs=1e-3)
    aligned = float(contrast(torch.eye(40) / 0.1, draws))
    assert aligned == pytest.approx(math.log1p(16 * math.exp(-10)), rel=1e-3)
    assert aligned == pytest.approx(7.3e-4, rel=0.01)


def test_contrast_is_symmetric_and_like_a_loop():
    """Check 8, and the equations of section 4, negative by negative."""
    torch.manual_seed(0)
    head = ContentIdContrast(16, 8, temperature=0.5)
    c, e = torch.randn(12, 16), torch.randn(12, 8)
    drawn = draw_negatives(12, (3, 4))
    draws = torch.from_numpy(counted(drawn))
    with torch.no_grad():
        c_, e_ = head.projected(c, e)
        loss = float(head(c, e, drawn))
        similarity = c_ @ e_.t() / 0.5
        assert float(contrast(similarity.t(), draws)) == pytest.approx(loss, rel=1e-6)
    total = 0.0
    for i in range(12):
        others = [j for j in range(12) for _ in range(int(draws[i, j]))]
        assert len(others) == 16
        assert i not in others
        for s in (similarity[i], similarity[:, i]):
            logits = [float(s[i]), *(float(s[j]) for j in others)]
            total += 0.5 * (math.log(sum(map(math.exp, logits))) - logits[0])
    assert loss == pytest.approx(total / 12, rel=1e-5)


def test_negatives_are_never_the_positive():
    """Check 9: with the draw of the paper, 3.1 % of the rows at n = 512 would have it."""
    drawn = draw_negatives(512, (5, 6))
    assert drawn.shape == (512, 16)
    assert not (drawn == np.arange(512)[:, None]).any()
    assert drawn.min() == 0
    assert drawn.max() == 511
    np.testing.assert_array_equal(drawn, draw_negatives(512, (5, 6)))
    assert (drawn != draw_negatives(512, (5, 7))).any()
    draws = torch.from_numpy(counted(drawn))
    assert (draws.sum(1) == 16).all()
    assert float(contrast(40 * torch.eye(512), draws)) < 1e-6  # no floor


def test_the_compiled_contrast_and_its_gradients_are_those_of_torch():
    """Few items, so that some are drawn several times."""
    torch.manual_seed(1)
    head, drawn = ContentIdContrast(16, 8, temperature=0.2), draw_negatives(6, (1, 1))
    found = []
    for compiled in (True, False):
        head.zero_grad()
        c = torch.randn(6, 16, generator=torch.manual_seed(2)).requires_grad_()
        e = torch.randn(6, 8, generator=torch.manual_seed(3)).requires_grad_()
        if compiled:
            loss = head(c, e, drawn)
        else:
            c_, e_ = head.projected(c, e)
            loss = contrast(c_ @ e_.t() / 0.2, torch.from_numpy(counted(drawn)))
        (loss * 3).backward()
        found.append([loss.detach(), c.grad, e.grad, *(p.grad.clone() for p in head.parameters())])
    for own, expected in zip(*found, strict=True):
        assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_the_id_side_is_scaled_by_exposure():
    seen = np.array([0, 1, 25, 50, 200])
    assert id_scale(seen, "cold", 50).tolist() == pytest.approx([1, 1, 1, 1, 0.25])
    assert id_scale(seen, "mature", 50).tolist() == pytest.approx([0, 0.02, 0.5, 1, 1])
    assert id_scale(seen, "plain", 50).tolist() == [1] * 5
    x = torch.randn(5, 3, requires_grad=True)
    y = scaled_gradient(x, torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0]))
    assert_close(y, x)
    y.sum().backward()
    assert_close(x.grad[:, 0], torch.tensor([0.0, 0.5, 1.0, 0.25, 0.0]))


def test_correction_starts_as_nothing_and_has_the_rank():
    """Check 10."""
    torch.manual_seed(0)
    correction = Correction(16, 3)
    x, q = torch.randn(9, 16), torch.randn(9, 16)
    assert torch.equal(correction(x), x)
    assert torch.equal(correction.transposed(q), q)
    nn.init.normal_(correction.up.weight)
    whole = correction(torch.eye(16)) - torch.eye(16)
    assert int(torch.linalg.matrix_rank(whole)) == 3
    assert_close(
        (q * correction(x)).sum(1), (correction.transposed(q) * x).sum(1), atol=1e-4, rtol=1e-4
    )


def test_memory_gives_back_what_was_written_and_forgets_the_oldest():
    memory = ContentMemory(4, 2, max_age_ms=100)
    keys = np.array([11, -12, 13, 14], np.int64)
    ones = np.ones(4, np.int64)
    memory.write(keys, np.arange(8, dtype=np.float32).reshape(4, 2), ones, clock_ms=1_000, step=1)
    rows = memory.rows(np.array([[13, 0], [99, -12]]))
    assert (rows == memory.none).tolist() == [[False, True], [True, False]]
    assert memory.vector_MD[rows[0, 0]].tolist() == [4, 5]
    assert not memory.vector_MD[memory.none].any()
    memory.write(keys[:1], np.ones((1, 2), np.float32), ones[:1], clock_ms=1_050, step=2)
    assert memory.seen(np.array([11, 14, 99])).tolist() == [2, 1, 0]
    memory.write(np.array([77]), np.ones((1, 2), np.float32), ones[:1], clock_ms=1_060, step=3)
    assert (memory.rows(np.array([11, 77])) == memory.none).tolist() == [True, False]
    assert memory.counts()["memory_rows"] == 4
    memory.write(np.array([78]), np.ones((1, 2), np.float32), ones[:1], clock_ms=1_101, step=4)
    assert (memory.rows(keys) == memory.none).all()  # two gave way, two are too old
    assert (memory.rows(np.array([77, 78])) != memory.none).all()
    other = ContentMemory(4, 2, max_age_ms=100)
    other.apply(memory.parts("m", None)[0])
    assert_same_parts(memory, other)
    mark = 4
    memory.write(np.array([13]), np.ones((1, 2), np.float32), ones[:1], clock_ms=1_102, step=5)
    delta = memory.parts("m", mark)[0]
    assert len(delta.arrays["rows"]) == 1
    other.apply(delta)
    assert_same_parts(memory, other)
    with pytest.raises(ValueError, match="memory_rows"):
        ContentMemory(5, 2, max_age_ms=100).apply(memory.parts("m", None)[0])


def assert_same_parts(a, b):
    (x,), (y,) = a.parts("m", None), b.parts("m", None)
    assert_same_state({"m": x}, {"m": y})
    probe = np.arange(-20, 120).reshape(7, 20)
    np.testing.assert_array_equal(a.rows(probe), b.rows(probe))


def test_memory_agrees_with_a_dictionary():
    rng, memory, known = np.random.default_rng(4), ContentMemory(50, 3, 0), {}
    for step in range(200):
        keys = rng.choice(np.arange(1, 120), 8, replace=False)
        vectors = rng.normal(size=(8, 3)).astype(np.float32)
        for key, vector in zip(keys.tolist(), vectors, strict=True):
            if key not in known and len(known) == 50:
                del known[next(iter(known))]
            known[key] = vector
        memory.write(keys, vectors, np.ones(8, np.int64), clock_ms=step, step=step)
        rows = memory.rows(np.arange(1, 120))
        for key in range(1, 120):
            if key in known:
                np.testing.assert_array_equal(memory.vector_MD[rows[key - 1]], known[key])
            else:
                assert rows[key - 1] == memory.none


def test_targets_and_histories_are_written_back_with_the_weights_after_the_step():
    learner, stream = build(small_spec(), **SMALL), BatchMaker(small_spec())
    batch = stream.batch(64)
    learner.learn_many(batch)
    module, none = em3_of(learner), len(batch.content.table_VC) - 1
    memory, table = module.memory, batch.content.table_VC
    keys = torch.cat([batch.ids_BF[:, 1:2], batch.bags_BL[0]], 1)
    places = torch.cat([batch.content.target_B.unsqueeze(1), batch.content.bags_BL[0]], 1)
    rows = memory.rows(keys.numpy())
    with_vector = (keys != 0) & (places != none)
    np.testing.assert_array_equal(rows != memory.none, with_vector.numpy())
    expected = module._made(table[places[with_vector]]).detach().numpy()
    np.testing.assert_allclose(memory.vector_MD[rows[with_vector.numpy()]], expected, atol=1e-5)
    target, count = np.unique(batch.ids_BF[:, 1][with_vector[:, 0]].numpy(), return_counts=True)
    np.testing.assert_array_equal(memory.seen(target), count)


def test_what_scoring_reads_is_what_the_former_makes():
    """Check 13: a copy restored from parts reads the same vectors; rewriting is told by age."""
    learner, stream = build(small_spec(), **SMALL), BatchMaker(small_spec())
    for _ in range(3):
        learner.learn_many(stream.batch(64))
    copy = build(small_spec(), **SMALL)
    copy.apply(state_of(learner))
    batch = stream.batch(32)
    assert torch.equal(copy.predict_many(batch), learner.predict_many(batch))
    counts = learner.counts()
    assert counts["em3_memory_rewritten_hour"] > 0
    assert 0 < counts["em3_memory_cosine_hour"] <= 1_000


def test_staleness_is_told_by_age():
    """Check 12: cosines of a vector and the one it replaces, by how old that was."""
    memory, hour = ContentMemory(8, 2, 0), 3_600_000
    one = np.ones(1, np.int64)
    x, y = np.array([[1.0, 0.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    at = 0
    for later, vector in ((0, x), (1, x), (hour, y), (30 * hour, x), (31 * hour, x)):
        at += later
        memory.write(one * 5, vector, one, clock_ms=at, step=1)
    counts = memory.counts()
    assert [counts[f"memory_rewritten_{age}"] for age in ("hour", "day", "more")] == [1, 1, 2]
    assert [counts[f"memory_cosine_{age}"] for age in ("hour", "day", "more")] == [1000, 600, 800]


def test_refreshes_are_bounded():
    learner, stream = build(**SMALL, refresh_rows=10), PlantedContent(9)
    learner.learn_many(stream.batch(64))
    assert learner.counts()["em3_memory_rows"] == 64 + 10


@pytest.mark.slow
def test_sees_a_signal_that_is_in_content_alone():
    """Items of few, known kinds, so that histories are in the memory when they are read."""
    without = last_losses(build(), FewItems(9), 150)
    with_it = last_losses(build(**SMALL), FewItems(9), 150)
    assert without > 0.6
    assert with_it < without - 0.08


@pytest.mark.slow
def test_contrast_brings_ids_and_content_together():
    """Check 11: of matched pairs more than of others, and found again above chance."""
    spec = small_spec()
    learner = build(spec, **{**SMALL, "contrast": 1.0, "id_gradient": "plain"})
    stream = BatchMaker(spec)

    def margin_and_rank():
        module = em3_of(learner)
        batch = stream.batch(400)
        none = len(batch.content.table_VC) - 1
        own, at = np.unique(batch.ids_BF[:, 1].numpy(), return_index=True)
        at = at[batch.content.target_B.numpy()[at] != none]
        table = learner.tables[1]
        rows = table.predict(batch.ids_BF.numpy(), [b.numpy() for b in batch.bags_BL])
        with torch.no_grad():
            c = module._made(batch.content.table_VC[batch.content.target_B[at]])
            e = rows.embedded_BFD[at, module.item.place]
            c_, e_ = module.contrast.projected(c, e)
            similarity = c_ @ e_.t()
        n = len(at)
        matched = float(similarity.diagonal().mean())
        others = float((similarity.sum() - similarity.diagonal().sum()) / (n * n - n))
        better = (similarity >= similarity.diagonal().unsqueeze(1)).sum(1)
        assert len(own) > 20
        return matched - others, float((1 / better).mean()), n

    learner.learn_many(stream.batch(64))
    first, _, _ = margin_and_rank()
    for _ in range(80):
        learner.learn_many(stream.batch(64))
    last, mrr, n = margin_and_rank()
    chance = sum(1 / k for k in range(1, n + 1)) / n
    assert last > first + 0.2
    assert mrr > 2 * chance


def test_hot_rows_are_left_in_peace():
    """With `cold`, the contrast alone moves the ids of young items more than those of old ones."""
    spec, moved = small_spec(), {}
    for kind in ("plain", "cold"):
        learner = build(spec, **{**SMALL, "contrast": 1.0, "id_gradient": kind, "mature_rows": 1})
        stream = BatchMaker(spec)
        for _ in range(5):
            learner.learn_many(stream.batch(64))
        x = {}
        module = em3_of(learner)
        forward = module.forward

        def seen(inputs, *, learning, forward=forward, x=x):
            x["ids"] = inputs.embedded_BFD
            return dataclasses.replace(forward(inputs, learning=learning), hidden_BH=None)

        module.forward = seen
        learner.learn_many(stream.batch(64))
        moved[kind] = float(x["ids"][module.item.table].grad[:, module.item.place].abs().sum())
    assert moved["cold"] < 0.8 * moved["plain"]


def test_a_token_a_block_and_a_missing_block_is_masked():
    spec = small_spec(content_dim=12)
    blocks = (("", 4), ("text", 3), ("image", 5))
    at, made = 0, []
    for name, dim in blocks:
        made.append(ContentBlock(name=name, start=at, dim=dim))
        at += dim
    spec = dataclasses.replace(spec, content_blocks=tuple(made))
    module = em3_of(build(spec, **SMALL))
    assert [block.name for block in module.blocks] == ["text", "image"]
    assert [layer.in_features for layer in module.former.inputs] == [3, 5]
    x = torch.randn(6, 12)
    fused = x.clone()
    fused[:, :4] += 1
    assert torch.equal(module._made(x), module._made(fused))
    half = x.clone()
    half[:, 7:] = 0
    expected = module.former(
        [torch.nn.functional.layer_norm(x[:, 4:7], (3,)).unsqueeze(1), torch.ones(6, 1, 5)],
        [torch.ones(6, 1, dtype=torch.bool), torch.zeros(6, 1, dtype=torch.bool)],
    )
    assert_close(module._made(half), expected)
    assert not torch.allclose(module._made(half), module._made(x))


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"dim": 20}, "multiple of 16"),
        ({"heads": 5}, "heads divide"),
        ({"rank": -1}, "must not be negative"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"id_gradient": "warm"}, "expected plain"),
        ({"queries": 0}, "queries and layers"),
    ),
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Em3Config(on=True, **changes)


def test_needs_a_history_of_items_and_vectors():
    with pytest.raises(ValueError, match=r"em3: there are no item vectors; set items\.dim"):
        build(small_spec(content_dim=0), **SMALL)
    spec = small_spec()
    with pytest.raises(ValueError, match="no history"):
        build(dataclasses.replace(spec, bags=spec.bags[1:]), **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("check", EVERY_LEARNER, ids=lambda check: check.__name__)
def test_keeps_the_contract_when_items_give_way_and_age(check):
    em3 = {
        **SMALL,
        "memory_rows": 24,
        "memory_age_ms": 90_000,
        "refresh_rows": 4,
        "contrast": 0.1,
        "cold_rows": True,
        "mature_rows": 1,
    }
    check(lambda: catalog.build("id_content", small_spec(), {"device": "cpu", "em3": em3}))


@pytest.mark.slow
def test_learns_rows_by_heart():
    learner, stream = build(**SMALL, contrast=0.0), PlantedContent(3)
    batch = stream.batch(48, ts_ms=START_MS)
    losses = [float(learner.learn_many(batch).loss) for _ in range(120)]
    assert losses[0] > 0.6
    assert losses[-1] < 0.1


def test_the_regression_finds_a_linear_map():
    rng, cold = np.random.default_rng(0), ContentToId(6, 3)
    planted = rng.normal(size=(7, 3))
    vectors = rng.normal(size=(50, 6)).astype(np.float32)
    assert not cold.rows(vectors).any()
    for step in range(64):
        x = rng.normal(size=(30, 6)).astype(np.float32)
        e = np.concatenate([x, np.ones((30, 1))], 1) @ planted
        cold.observe(x, (e + rng.normal(0, 0.01, e.shape)).astype(np.float32))
        assert step < 31 or cold.map_DE.any()
    expected = np.concatenate([vectors, np.ones((50, 1))], 1) @ planted
    np.testing.assert_allclose(cold.rows(vectors), expected, atol=0.1)


@pytest.mark.slow
def test_rows_of_new_items_begin_at_what_their_content_says():
    """Beside a ranker without the option: the same but for the rows of items new in this step."""
    spec, learners = small_spec(), {}
    for cold in (False, True):
        learner = build(spec, **{**SMALL, "mature_rows": 3, "cold_rows": cold})
        stream = BatchMaker(spec)
        for _ in range(45):
            learner.learn_many(stream.batch(40))
        learners[cold] = learner
    plain, cold = state_of(learners[False]), state_of(learners[True])
    cold.pop("em3.cold")
    assert_same_state(plain, cold)  # no item is new after the first fit, and none before it was
    batch = stream.batch(40)
    batch.ids_BF[:4, 1] = torch.tensor([901, 902, 903, 904])
    for learner in learners.values():
        learner.learn_many(batch)
    module, table = em3_of(learners[True]), learners[True].tables[1]
    rows = {k: learners[k].tables[1].weight_RD for k in learners}
    moved = (rows[True] != rows[False]).any(1).nonzero().flatten().numpy()
    with_vector = ~batch.content.missing_B[:4].numpy()
    assert sorted(table.ids.keys_of(moved).tolist()) == (np.arange(901, 905)[with_vector]).tolist()
    at = module.memory.rows(table.ids.keys_of(moved))
    begun = module.cold.rows(module.memory.vector_MD[at])
    difference = (rows[True] - rows[False])[torch.from_numpy(moved)]
    np.testing.assert_allclose(difference.numpy(), begun, atol=1e-5)
    assert np.abs(begun).max() > 0.01
