"""The module `qarm`: what it reads, what it adds, which rows it moves, and what it can learn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from learners import catalog
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.modules.qarm import Qarm
from learners.modules.qarm_codes import NAME, QarmConfig, code_bags
from learners.rankers.id_content import IdContent, IdContentConfig
from tests.support.batches import BatchMaker, code_keys, keys_of, small_spec

CODES = QarmConfig(on=True, codes=("rq1", "rq2", "prefix2"), anchors=3, dim=6)
SPEC = small_spec(codes=CODES)


def ranker(codes: QarmConfig = CODES, **options: Any) -> IdContent:
    config = IdContentConfig(device="cpu", hidden=(16, 8), qarm=codes, **options)
    return IdContent(small_spec(codes=codes), config)


def trained(codes: QarmConfig = CODES, steps: int = 6, **options: Any) -> IdContent:
    learner, stream = ranker(codes, **options), BatchMaker(small_spec(codes=codes))
    for _ in range(steps):
        learner.learn_many(stream.batch(40))
    return learner


def module_of(learner: IdContent) -> Qarm:
    module = dict(learner.net.modules_on)[NAME]
    assert isinstance(module, Qarm)
    return module


def added(learner: IdContent, batch: MiniBatch) -> np.ndarray:
    """What the module adds to the first hidden layer, [B, H], of the weights that learn."""
    from learners.step_inputs import narrowed, step_inputs

    own = narrowed(batch, learner._whole, learner.spec)
    x = step_inputs(own, learner.spec, learner.device)
    lookups = [table.predict(x.ids_BF, x.bags_BL) for table in learner.tables]
    with torch.no_grad():
        found = module_of(learner)(learner._inputs(x, lookups), learning=False)
    assert found.hidden_BH is not None
    return found.hidden_BH[: len(batch)].numpy()


def bag_of(batch: MiniBatch, name: str) -> np.ndarray:
    places = {bag.name: i for i, bag in enumerate(SPEC.bags)}
    return batch.bags_BL[places[name]].numpy()


def with_bags(batch: MiniBatch, spec: FeatureSpec, **bags: np.ndarray) -> MiniBatch:
    """The batch with some bags replaced, `_` for `.` in their names."""
    names = {bag.name.replace(".", "_"): i for i, bag in enumerate(spec.bags)}
    new = list(batch.bags_BL)
    for name, keys in bags.items():
        new[names[name]] = torch.from_numpy(keys)
    return dataclasses.replace(batch, bags_BL=tuple(new))


def rows_of(learner: IdContent) -> Mapping[int, np.ndarray]:
    """Weights by key, of the table of codes."""
    table = next(t for t in learner.tables if t.dim == CODES.dim)
    keys = table.ids.key_R[: table.ids.high]
    weights = table.weight_RD.numpy()
    return {int(keys[r]): weights[r].copy() for r in np.flatnonzero(keys)}


def by_hand(learner: IdContent, batch: MiniBatch, b: int) -> np.ndarray:
    """One row's addition, entry by entry, as the docstring of the module says."""
    rows = rows_of(learner)
    module = module_of(learner)

    def row(key: int) -> np.ndarray:
        return rows[key] if key else np.zeros(CODES.dim, np.float32)

    def normalised(v: np.ndarray) -> np.ndarray:
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5)

    own = {code: int(bag_of(batch, f"qarm.{code}")[b, 0]) for code in CODES.codes}
    order = dict.fromkeys((*CODES.history_codes, *CODES.codes))
    parts = [normalised(row(own[code])) for code in order]
    anchors = [key for key in bag_of(batch, "qarm.vq")[b].tolist() if key]
    parts.append(normalised(np.mean([row(k) for k in anchors], 0) if anchors else row(0)))
    history = {c: bag_of(batch, f"qarm.{c}.history")[b].tolist() for c in CODES.history_codes}
    entries = [i for i, key in enumerate(history["rq1"]) if key]
    values = {i: np.concatenate([row(history[c][i]) for c in CODES.history_codes]) for i in entries}
    shares = {c: [i for i in entries if own[c] and history[c][i] == own[c]] for c in history}
    target, k = np.concatenate([row(own[c]) for c in history]), CODES.dim * len(history)
    pooled, bias = [np.zeros(k)], module.match[0].detach().numpy()[0]
    if own["rq1"] and entries:
        query = module.query[0].weight.detach().numpy() @ target
        scores = [
            query @ values[i] / math.sqrt(k)
            + sum(bias[n] for n, c in enumerate(history) if i in shares[c])
            for i in entries
        ]
        weights = np.exp(scores - np.max(scores))
        pooled = [sum(w * values[i] for w, i in zip(weights / weights.sum(), entries, strict=True))]
    blocks = [(part, s) for s, part in enumerate(pooled[0].reshape(-1, CODES.dim))]
    # Of the entries that share rq1 the paths differ; those that share a path share all.
    same = [rows[history["prefix2"][i]] for i in shares["rq1"]]
    blocks.append((np.mean(same, 0) if same else np.zeros(CODES.dim), 1))
    counts = np.log1p([len(shares[c]) for c in history])
    targets = target.reshape(-1, CODES.dim)
    pooled = [normalised(v) for v, _ in blocks]
    common = [normalised(v) * normalised(targets[s]) for v, s in blocks]
    x = np.concatenate([*parts, counts, *pooled, *common])
    return module.out.weight.detach().numpy() @ x


def test_the_addition_is_that_of_its_parts_one_by_one():
    learner = trained()
    batch = BatchMaker(SPEC, seed=3).batch(60)
    found = added(learner, batch)
    assert np.abs(found).max() > 0.01
    expected = np.array([by_hand(learner, batch, b) for b in range(60)])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    shared = bag_of(batch, "qarm.rq1.history") == bag_of(batch, "qarm.rq1")
    assert (shared.sum(1) > 1).any()
    assert (bag_of(batch, "qarm.rq1") == 0).any()


def matches(learner: IdContent, batch: MiniBatch) -> np.ndarray:
    """Counts of entries that share a code, read off the module by a map that picks them."""
    module = module_of(learner)
    item = CODES.dim * (len(CODES.codes) + 1)
    with torch.no_grad():
        module.out.weight.zero_()
        module.out.weight[0, item] = module.out.weight[1, item + 1] = 1.0
    return np.expm1(added(learner, batch)[:, :2])


def test_counts_of_shared_codes_equal_brute_force():
    batch = BatchMaker(SPEC, seed=4).batch(80)
    found = matches(trained(), batch)
    for column, code in enumerate(CODES.history_codes):
        own, history = bag_of(batch, f"qarm.{code}"), bag_of(batch, f"qarm.{code}.history")
        expected = [sum(k == o != 0 for k in h) for (o,), h in zip(own, history, strict=True)]
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)
    assert found.max() > 2


def test_what_has_no_code_adds_exactly_nothing():
    learner = trained()
    batch = BatchMaker(SPEC, seed=5).batch(40)
    none = {bag.name.replace(".", "_"): np.zeros((40, bag.length), np.int64)
            for bag in SPEC.bags if bag.reader == NAME}  # fmt: skip
    assert (added(learner, with_bags(batch, SPEC, **none)) == 0).all()
    # A coded target and a history without codes: the item's side alone.
    history = {name: keys for name, keys in none.items() if name.endswith("_history")}
    alone = added(learner, with_bags(batch, SPEC, **history))
    coded = bag_of(batch, "qarm.rq1")[:, 0] != 0
    assert coded.any()
    assert not coded.all()
    assert (np.abs(alone[coded]).max(1) > 0).all()
    assert (alone[~coded] == 0).all()


def test_an_empty_match_is_no_row():
    """A target whose code no entry has: pooled 0, count 0, whatever rows there are (not row 0)."""
    codes = dataclasses.replace(CODES, uses=("cross",))
    learner = trained(codes)
    spec = small_spec(codes=codes)
    batch = BatchMaker(spec, seed=6).batch(8)
    other = {
        f"qarm_{code}": np.full((8, 1), keys_of(9, np.array([n]))[0])
        for n, code in enumerate(codes.codes)
    }
    assert (added(learner, with_bags(batch, spec, **other)) == 0).all()


def test_entries_without_codes_have_no_weight():
    learner = trained()
    batch = BatchMaker(SPEC, seed=7).batch(30)
    moved = {}
    for code in CODES.history_codes:
        keys = bag_of(batch, f"qarm.{code}.history").copy()
        # The same entries with one that has no code between them.
        moved[f"qarm_{code}_history"] = np.concatenate(
            [keys[:, :3], 0 * keys[:, :1], keys[:, 3:6]], 1
        )
        batch = with_bags(batch, SPEC, **{f"qarm_{code}_history": np.concatenate(
            [keys[:, :6], 0 * keys[:, :1]], 1)})  # fmt: skip
    np.testing.assert_allclose(
        added(learner, with_bags(batch, SPEC, **moved)), added(learner, batch), atol=1e-6
    )


def test_a_cold_item_lives_on_the_rows_of_its_codes():
    """An item without a row of its own, and a seen one with the same codes: the same addition."""
    learner = trained()
    batch = BatchMaker(SPEC, seed=8).batch(16)
    ids_BF = batch.ids_BF.clone()
    ids_BF[:, 1] = torch.from_numpy(keys_of(1, np.arange(1_000, 1_016)))
    cold = dataclasses.replace(batch, ids_BF=ids_BF)
    assert (added(learner, cold) == added(learner, batch)).all()


def test_only_rows_of_the_batchs_codes_move():
    learner = trained()
    before = rows_of(learner)
    stream = BatchMaker(SPEC, seed=9)
    stream.batch(1)
    batch = stream.batch(3)
    learner.learn_many(batch)
    after = rows_of(learner)
    used = {int(k) for i, bag in enumerate(SPEC.bags) if bag.reader == NAME
            for k in batch.bags_BL[i].numpy().ravel()}  # fmt: skip
    moved = {key for key, weights in before.items() if (weights != after[key]).any()}
    assert moved
    assert moved <= used
    assert set(before) - used


def test_frozen_rows_stay_where_they_start():
    codes = dataclasses.replace(CODES, trained=False)
    learner, start = trained(codes, steps=12), trained(codes, steps=6)
    early, late = rows_of(start), rows_of(learner)
    assert all((late[key] == weights).all() for key, weights in early.items())
    assert np.abs(module_of(learner).out.weight.detach().numpy()).max() > 0
    own = {int(k): w for k, w in zip(learner.tables[-1].ids.key_R, learner.tables[-1].weight_RD,
                                     strict=True)}  # fmt: skip
    assert own


def test_codes_get_rows_where_bags_give_none():
    from learners.embedding_table import TableConfig

    learner = trained(embedding=TableConfig(admit_from_bags=False))
    fields = {bag.field for bag in SPEC.bags if bag.reader == NAME}
    numbers = {n for n, f in enumerate(SPEC.fields) if f.name in fields}
    seen = BatchMaker(SPEC).batch(40)
    for i, bag in enumerate(SPEC.bags):
        if bag.reader == NAME:
            keys = set(seen.bags_BL[i].numpy().ravel().tolist()) - {0}
            assert keys <= set(rows_of(learner))
    assert len(numbers) == 4


def test_turned_off_nothing_of_it_is_there():
    off = IdContent(SPEC, IdContentConfig(device="cpu", hidden=(16, 8)))
    plain = IdContent(small_spec(), IdContentConfig(device="cpu", hidden=(16, 8)))
    assert off.spec == plain.spec
    stream, bare = BatchMaker(SPEC), BatchMaker(small_spec())
    for _ in range(4):
        a, b = off.learn_many(stream.batch(40)), plain.learn_many(bare.batch(40))
        assert torch.equal(a.logits_B, b.logits_B)


def test_threads_do_not_matter():
    states = []
    for threads in (1, 2):
        try:
            learner = ranker(threads=threads)
            stream = BatchMaker(SPEC)
            for _ in range(3):
                learner.learn_many(stream.batch(1_000))
        finally:
            torch.set_num_threads(1)
        states.append({p.name: p for p in learner.export_full()})
    for name, part in states[0].items():
        for key, array in part.arrays.items():
            np.testing.assert_array_equal(
                array, states[1][name].arrays[key], err_msg=f"{name}{key}"
            )


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"uses": ("all",)}, "some of item, sequence, cross"),
        ({"codes": ("vq",)}, "expected rq1"),
        ({"codes": ("rq1", "rq1")}, "each once"),
        ({"codes": ("rq1",), "history_codes": ("rq2",)}, "expected|must be among codes"),
        ({"history_codes": ()}, "need one at least"),
        ({"codes": ("rq1", "rq2"), "history_codes": ("rq2",)}, "cross needs rq1 or a prefix"),
        ({"dim": 0}, "dim, rows_max >= 1"),
    ),
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QarmConfig(**options)


def test_without_codes_it_says_what_to_do():
    with pytest.raises(ValueError, match=r"set items\.codebook"):
        IdContent(small_spec(), IdContentConfig(device="cpu", qarm=CODES))
    unknown = dataclasses.replace(CODES, histories=("bought",))
    with pytest.raises(ValueError, match=r"histories: \['bought'\]"):
        IdContent(SPEC, IdContentConfig(device="cpu", qarm=unknown))


@pytest.mark.parametrize("uses", (("item",), ("sequence",), ("cross",)))
def test_each_use_brings_its_own_bags_only(uses):
    codes = dataclasses.replace(CODES, uses=uses)
    bags = code_bags(codes, [("history", 7), ("liked", 5)])
    read = {bag.history for bag in bags}
    assert read == ({""} if uses == ("item",) else {"", "history", "liked"})
    assert any(bag.code == "vq" for bag in bags) == (uses == ("item",))
    learner = trained(codes)
    assert np.abs(added(learner, BatchMaker(small_spec(codes=codes)).batch(30))).max() > 0
    assert (
        code_bags(dataclasses.replace(CODES, histories=("liked",)), [("history", 7)])[-1].history
        == ""
    )


class Planted(BatchMaker):
    """Every row shows an item never seen before; the click depends on its codes alone."""

    how = "item"

    def batch(self, b: int) -> MiniBatch:
        made = super().batch(b)
        rng = self.rng
        cluster = rng.integers(1, 7, b)  # never a multiple of 7: all have codes
        entries = rng.integers(1, 7, (b, 7))
        ids_BF = made.ids_BF.clone()
        self.request += b
        ids_BF[:, 1] = torch.from_numpy(keys_of(5, np.arange(self.request - b, self.request)))
        bags = list(made.bags_BL)
        for i, bag in enumerate(self.spec.bags):
            if bag.reader == NAME:
                keys = code_keys(self.spec, bag, entries if bag.sequence else cluster)
                bags[i] = torch.from_numpy(keys.reshape(b, bag.length))
            else:
                bags[i] = torch.zeros_like(bags[i])
        likely = cluster % 2 == 1 if self.how == "item" else (entries == cluster[:, None]).any(1)
        labels_BK = made.labels_BK.clone()
        labels_BK[:, 1] = torch.from_numpy(rng.random(b) < np.where(likely, 0.9, 0.1)).float()
        dense_BD = torch.zeros_like(made.dense_BD)
        return dataclasses.replace(
            made, ids_BF=ids_BF, bags_BL=tuple(bags), labels_BK=labels_BK, dense_BD=dense_BD
        )


def late_loss(learner: IdContent, how: str, steps: int = 150) -> float:
    stream = Planted(SPEC, seed=1)
    stream.how = how
    losses = [float(learner.learn_many(stream.batch(64)).loss) for _ in range(steps)]
    return float(np.mean(losses[-30:]))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "uses"), (("item", ("item",)), ("cross", ("cross",)),
                                           ("cross", ("sequence",))))  # fmt: skip
def test_it_sees_what_only_codes_tell(how, uses):
    base = IdContent(SPEC, IdContentConfig(device="cpu", hidden=(16, 8), content_projection=0))
    codes = dataclasses.replace(CODES, uses=uses)
    seeing = IdContent(SPEC, dataclasses.replace(base.config, qarm=codes))
    # A quarter of the histories has no entry of the target's cluster: .64 is the rate alone.
    assert late_loss(base, how) > 0.6
    assert late_loss(seeing, how) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ({"make": {"on": True, "attention": 16, "hidden": [16]}}, {"simtier": {"on": True}},
     {"fgcnn": {"on": True, "channels": [3], "kernel": 3}}),
    ids=lambda module: next(iter(module)),
)  # fmt: skip
def test_other_methods_do_not_see_what_only_codes_tell(module):
    options = {"device": "cpu", "hidden": [16, 8], "content_projection": 0, **module}
    blind = catalog.build("id_content", SPEC, options)
    assert isinstance(blind, IdContent)
    assert late_loss(blind, "item", steps=60) > 0.66


@pytest.mark.slow
def test_codes_drawn_at_random_are_worth_nothing():
    """Check 17: the same rows and weights over codes that no click depends on."""

    class Random(Planted):
        def batch(self, b: int) -> MiniBatch:
            made = super().batch(b)
            order = self.rng.permutation(b)
            bags = tuple(bag[order] for bag in made.bags_BL)
            return dataclasses.replace(made, bags_BL=bags)

    learner, stream = ranker(content_projection=0), Random(SPEC, seed=1)
    losses = [float(learner.learn_many(stream.batch(64)).loss) for _ in range(80)]
    assert np.mean(losses[-30:]) > 0.68


@pytest.mark.slow
def test_it_can_learn_a_batch_by_heart():
    learner, batch = ranker(content_projection=0), Planted(SPEC, seed=2).batch(64)
    losses = [float(learner.learn_many(batch).loss) for _ in range(250)]
    assert losses[-1] < 0.1 * losses[0]
