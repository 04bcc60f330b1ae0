"""FGCNN: shapes and golden counts of the paper, its layer by hand, rows of its own, planted XOR."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from infra.state import Part
from learners import catalog
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec, IdField
from learners.metrics import auc_exact
from learners.modules.fgcnn import FgcnnConfig, FieldRows
from learners.modules.fgcnn_generator import Generator, GeneratorConfig, generated, heights
from learners.modules.small_max import window_max
from learners.net_inputs import NetInputs
from learners.net_learner import NetLearner
from learners.rankers.fgcnn import FgcnnNet, FgcnnRankerConfig
from learners.step_inputs import narrowed
from tests.conformance.learner_checks import (
    EVERY_LEARNER,
    maker,
    trained,
)
from tests.support.batches import BatchMaker, keys_of, small_spec

AVAZU = {"channels": (14, 16, 18, 20), "kernel": 7, "maps": 3, "norm": "none"}
CRITEO = {"channels": (38, 40, 42, 44), "kernel": 9, "maps": 3, "norm": "none"}
TOY = {"channels": (6, 8), "kernel": 3, "maps": 2, "norm": "none"}
SMALL = {"on": True, "fields": ["item", "user"], "channels": [3], "kernel": 3, "dim": 8}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("options", "rounding", "n", "k", "by_level", "parameters", "pairs"),
    (
        (AVAZU, "ceil", 24, 20, [36, 18, 9, 6], 3_408_450, 4_278),
        (AVAZU, "floor", 24, 20, [36, 18, 9, 3], 3_336_390, 4_005),
        (CRITEO, "ceil", 39, 20, [60, 30, 15, 9], 24_823_418, 11_628),
        (CRITEO, "floor", 39, 20, [57, 27, 12, 6], 21_415_178, 9_870),
        (TOY, "ceil", 8, 16, [8, 4], 65_904, 190),
    ),
)
def test_sizes_of_the_published_configurations(
    options, rounding, n, k, by_level, parameters, pairs
):
    config = GeneratorConfig(rounding=rounding, **options)
    assert [h * config.maps for h in heights(n, config)[1:]] == by_level
    generator = Generator(n, k, config)
    assert sum(p.numel() for p in generator.parameters()) == parameters
    total = n + generated(n, config)
    assert total * (total - 1) // 2 == pairs


def by_hand(generator: Generator, fields_BNK: torch.Tensor) -> torch.Tensor:
    """The layer in the form of FuxiCTR: conv2d and padded max-pool, channels first."""
    maps_BChK, found = fields_BNK.unsqueeze(1), []
    for level in generator.levels:
        c, k = level.config, fields_BNK.shape[2]
        channels = maps_BChK.shape[1]
        shape = (c.kernel, 1)
        conv = nn.Conv2d(channels, level.conv.out_features, shape, padding=(c.kernel // 2, 0))
        conv.weight.data = level.conv.weight.data.view(-1, channels, c.kernel, 1)
        conv.bias.data = level.conv.bias.data
        convolved = torch.tanh(conv(maps_BChK))
        pool = nn.MaxPool2d((c.pool, 1), padding=(maps_BChK.shape[2] % c.pool, 0))
        maps_BChK = pool(convolved)
        # Columns of W are in the order (dim, field, channel) here, (channel, field, dim) there.
        h, out = maps_BChK.shape[2], level.conv.out_features
        weight = level.recombine.weight.data.view(-1, k, h, out).permute(0, 3, 2, 1).flatten(1)
        flat = maps_BChK.flatten(1) @ weight.t() + level.recombine.bias
        found.append(torch.tanh(flat).view(len(flat), -1, k))
    return torch.cat(found, 1)


@pytest.mark.parametrize("slots", (8, 11, 13))
def test_equals_the_public_layer(slots):
    """Odd heights too: there the public rule pads the first window."""
    torch.manual_seed(0)
    generator = Generator(slots, 5, GeneratorConfig(**TOY))
    fields = torch.randn(1000, slots, 5)
    with torch.no_grad():
        assert (generator(fields) - by_hand(generator, fields)).abs().max() < 1e-5


def test_windows_of_the_pool():
    values = torch.tensor([0.0, 1, 2, 3, -4]).view(1, 1, 5)
    for rounding, expected in (("ceil", [0, 2, 3]), ("floor", [1, 3])):
        config = GeneratorConfig(channels=(1,), kernel=3, maps=1, rounding=rounding)
        level = Generator(5, 1, config).levels[0]
        assert level.pool(values).flatten().tolist() == expected
        # Never the padding's zero: all-negative neighbours stay negative.
        assert bool((level.pool(-1 - values.abs()) < 0).all())


@pytest.mark.parametrize("p", (2, 3))
def test_the_maximum_of_windows_and_its_gradient(p):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, p, 6)
    factors, found = torch.randn(3, 4, 5, 6), []
    for form in (window_max, lambda x: x.max(3).values):
        leaf = x.clone().requires_grad_()
        out = form(leaf)
        (out * factors).sum().backward()
        found.append((out.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(window_max(x), found[0][0])  # as for scoring
    equal = torch.zeros(1, 1, 1, p, 1, requires_grad=True)
    window_max(equal).sum().backward()
    assert equal.grad.flatten().tolist() == [1.0] + [0.0] * (p - 1)
    x[0, 0, 0, 1, 0] = torch.nan
    for leaf in (x, x.clone().requires_grad_()):
        assert torch.isnan(window_max(leaf)[0, 0, 0, 0])


def test_convolution_is_along_fields_and_recombination_everywhere():
    torch.manual_seed(1)
    generator = Generator(12, 4, GeneratorConfig(**TOY))
    level = generator.levels[0]
    fields = torch.randn(2, 12, 4)
    moved = fields.clone()
    moved[:, 6, 2] += 1.0
    with torch.no_grad():
        before, after = (
            level.convolved(x.transpose(1, 2)).unflatten(2, (12, 6)) for x in (fields, moved)
        )
        changed = (before != after).any(3).any(0).t()  # [field, coordinate]
        assert not changed[:, [0, 1, 3]].any()
        assert changed[:, 2].nonzero().flatten().tolist() == [5, 6, 7]
        new, other = (level(x.transpose(1, 2))[1] for x in (fields, moved))
        assert bool((new != other).any(2).all())
        # Order of the fields is part of the model.
        assert not torch.allclose(generator(fields), generator(fields.flip(1)))
        assert bool((generator(fields).abs() < 1).all())


def test_pooled_maps_feed_the_next_level():
    torch.manual_seed(2)
    generator = Generator(8, 4, GeneratorConfig(**TOY))
    fields = torch.randn(3, 8, 4)
    with torch.no_grad():
        first = generator(fields)
        for parameter in generator.levels[0].recombine.parameters():
            parameter.zero_()
        second = generator(fields)
    assert torch.equal(second[:, :8], torch.zeros(3, 8, 4))
    assert torch.equal(first[:, 8:], second[:, 8:])


def spec_of(fields: int, dim: int = 8) -> FeatureSpec:
    """Id fields alone."""
    return FeatureSpec(
        ids=tuple(IdField(name=f"f{i}", dim=dim) for i in range(fields)),
        bag_fields=(),
        bags=(),
        dense=(),
        labels=("click",),
        trained_label="click",
        content_dim=0,
    )


def batch_of(values_BF: np.ndarray, label_B: np.ndarray) -> MiniBatch:
    """Rows of small integer ids."""
    b = len(values_BF)
    keys = np.stack([keys_of(i, column) for i, column in enumerate(values_BF.T)], 1)
    return MiniBatch(
        ids_BF=torch.from_numpy(keys),
        bags_BL=(),
        dense_BD=torch.zeros(b, 0),
        content=None,
        labels_BK=torch.from_numpy(label_B.astype(np.float32)).unsqueeze(1),
        label_mask_BK=torch.ones(b, 1),
        weight_B=torch.ones(b),
        row_kind_B=torch.zeros(b, dtype=torch.uint8),
        age_ms_B=torch.zeros(b, dtype=torch.int64),
        request_row_B=torch.arange(b),
        sample_rate_B=torch.ones(b),
        ts_ms_B=torch.arange(b) + 1_650_000_000_000,
        sample_id_B=torch.arange(b),
        nominal_size=b,
    )


def inputs(rows: torch.Tensor) -> NetInputs:
    """What `FgcnnNet` reads of rows of one table."""
    b, none = len(rows), torch.zeros(len(rows), 0)
    return NetInputs(
        embedded_BFD=(rows,), pooled_BD=((),), dense_BD=none, raw_BD=none, target_BC=none,
        pooled_BC=(), present_B1=torch.zeros(b, 1), repeats_BH=none, step=None,
    )  # fmt: skip


def test_without_recombination_it_is_ipnn():
    """R = 0 makes A = [E, 0]: the logit of an IPNN with the weights of E's columns and pairs."""
    spec, n = spec_of(6), 6
    shared = GeneratorConfig(source="shared", channels=(3,), kernel=3)
    whole = FgcnnNet(spec, FgcnnRankerConfig(dim=8, generator=shared, dense=False))
    plain = FgcnnNet(spec, FgcnnRankerConfig(dim=8, generate=False, dense=False))
    total = n + generated(n, shared)
    pairs = [(a, b) for a in range(total) for b in range(a + 1, total)]
    of_e = [*range(n * 8), *(total * 8 + i for i, (_, b) in enumerate(pairs) if b < n)]
    with torch.no_grad():
        for level in whole.generator.levels:
            for parameter in level.recombine.parameters():
                parameter.zero_()
        nn.init.normal_(whole.out.weight)
        plain.mlp[0].weight.zero_()
        plain.mlp[0].weight[:, : len(of_e)] = whole.mlp[0].weight[:, of_e]
        plain.mlp[0].bias.copy_(whole.mlp[0].bias)
        plain.mlp[1].load_state_dict(whole.mlp[1].state_dict())
        plain.out.load_state_dict(whole.out.state_dict())
        rows = torch.randn(16, n, 8)
        assert (whole(inputs(rows)) - plain(inputs(rows))).abs().max() < 1e-5
        assert float(whole(inputs(rows)).abs().max()) > 0.01


def test_products_are_the_upper_triangle():
    net = FgcnnNet(spec_of(5), FgcnnRankerConfig(dim=8, generate=False, dense=False))
    fields = torch.randn(4, 5, 8)
    whole = torch.einsum("bnk,bmk->bnm", fields, fields)
    upper = torch.triu_indices(5, 5, 1)
    assert (net.products(fields) - whole[:, upper[0], upper[1]]).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("check", EVERY_LEARNER, ids=lambda check: check.__name__)
def test_contract_with_rows_of_its_own(check):
    check(maker("id_content", fgcnn=SMALL))


def test_threads_do_not_matter():
    def build(threads: int) -> NetLearner:
        options = {"device": "cpu", "threads": threads, "fgcnn": {**SMALL, "source": "own"}}
        learner = catalog.build("id_content", small_spec(), options)
        stream = BatchMaker(small_spec())
        for _ in range(4):
            learner.learn_many(stream.batch(800))
        assert isinstance(learner, NetLearner)
        return learner

    try:
        one, two = build(1), build(2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one.adam.w, two.adam.w)


def test_own_rows_are_other_rows_and_both_learn():
    learner = catalog.build("id_content", small_spec(), {"device": "cpu", "fgcnn": SMALL})
    plain = catalog.build("id_content", small_spec(), {"device": "cpu"})
    assert isinstance(learner, NetLearner)
    stream, other = BatchMaker(small_spec()), BatchMaker(small_spec())
    batch = stream.batch(40)
    # The head starts at 0: before the first step all scores are those of the base.
    assert torch.equal(learner.predict_many(batch), plain.predict_many(other.batch(40)))
    keys = narrowed(batch, small_spec(), learner.spec).ids_BF
    names = [f.name for f in learner.spec.ids]
    assert names == ["user", "item", "tab", "fgcnn.item", "fgcnn.user"]
    of_item, own = (set(keys[:, names.index(n)].tolist()) for n in ("item", "fgcnn.item"))
    assert len(of_item) == len(own)
    assert not of_item & own
    learner.learn_many(batch)
    table = learner.tables[1]
    assert [f.name for f in table.fields] == ["user", "item", "fgcnn.item", "fgcnn.user"]
    rows = torch.arange(table.ids.high)
    moved = []
    for _ in range(2):
        before = table.weight_RD[rows].clone()
        learner.learn_many(stream.batch(40))
        moved.append((table.weight_RD[rows] != before).any(1))
    field = torch.from_numpy(table.ids.field_R[: len(rows)].astype(np.int64))
    for number in range(4):
        assert bool(moved[1][field == number].any()), table.fields[number].name


def test_gradients_of_the_generator_stop_at_shared_rows():
    spec = small_spec()
    shared = {**SMALL, "source": "shared"}
    rows_of = FieldRows(spec, FgcnnConfig(**{**shared, "fields": ("item", "user")}))
    embedded = tuple(torch.randn(2, len(t.ids), t.dim, requires_grad=True) for t in spec.tables())
    x = dataclasses.replace(inputs(torch.zeros(2, 1, 1)), embedded_BFD=embedded)
    rows = rows_of(x)
    assert torch.equal(rows, embedded[1][:, [1, 0]])
    assert not rows.requires_grad


def test_another_order_is_another_model_and_spare_slots_take_new_fields():
    spec = spec_of(4)

    def rows(fields: tuple[str, ...], spare: int = 0) -> FieldRows:
        options = FgcnnConfig(on=True, source="shared", fields=fields, spare=spare)
        return FieldRows(spec, options)

    was = rows(("f0", "f1"), spare=2)
    parts: dict[str, Part] = {was.part().name: was.part()}
    rows(("f0", "f1", "f2"), spare=1).check(parts)
    turned, between, fewer = ("f1", "f0"), ("f0", "f2", "f1"), ("f0", "f1")
    for other in (rows(turned, spare=2), rows(between, spare=1), rows(fewer)):
        with pytest.raises(ValueError, match="another order is another model"):
            other.check(parts)
    given = was(inputs(torch.ones(3, 4, 8)))
    assert given.shape == (3, 4, 8)
    assert float(given[:, 2:].abs().sum()) == 0.0
    learner = catalog.build("id_content", small_spec(), {"device": "cpu", "fgcnn": SMALL})
    other = catalog.build(
        "id_content",
        small_spec(),
        {"device": "cpu", "fgcnn": {**SMALL, "source": "shared", "dim": 8}},
    )
    turned = catalog.build(
        "id_content",
        small_spec(),
        {"device": "cpu", "fgcnn": {**SMALL, "source": "shared", "fields": ["user", "item"]}},
    )
    assert isinstance(learner, NetLearner)
    with pytest.raises(ValueError, match="order"):
        turned.apply({part.name: part for part in other.export_full()})


def spared(fields: list[str], spare: int, *, grows: bool) -> NetLearner:
    """A ranker whose generator has rows of its own for some fields, and room for more."""
    options = {**SMALL, "fields": fields, "spare": spare}
    learner = catalog.build("id_content", small_spec(), {"device": "cpu", "fgcnn": options})
    assert isinstance(learner, NetLearner)
    learner.grows = grows
    return learner


def test_a_running_model_takes_a_field_into_a_spare_slot():
    """Its rows are new and small, all others stay; in another place it is refused."""
    running, stream = spared(["item", "user"], 1, grows=False), BatchMaker(small_spec())
    for _ in range(8):
        running.learn_many(stream.batch(40))
    state = {part.name: part for part in running.export_full()}
    grown = spared(["item", "user", "tab"], 0, grows=True)
    grown.apply(state)
    assert torch.equal(grown.adam.w, running.adam.w)
    batch = stream.batch(50)
    before, after = running.predict_many(batch), grown.predict_many(batch)
    assert float((after - before).abs().max()) < 0.02 * float(before.std())
    table = grown.tables[1]
    number = [f.name for f in table.fields].index("fgcnn.tab")
    grown.learn_many(batch)
    first = table.weight_RD[number].clone()
    rows = np.flatnonzero(table.ids.field_R[: table.ids.high] == number)
    assert len(rows) > 1  # the shared row, and one for each of the tabs that were seen
    weights = table.weight_RD[torch.from_numpy(rows)].clone()
    grown.learn_many(stream.batch(50))
    assert bool((table.weight_RD[torch.from_numpy(rows)] != weights).any())
    assert torch.equal(table.weight_RD[number], first)
    refused = ((["item", "user", "tab"], 0, False), (["user", "item", "tab"], 0, True),
               (["tab", "item", "user"], 0, True), (["item"], 2, True))  # fmt: skip
    for fields, spare, grows in refused:
        with pytest.raises(ValueError, match=r"fields \['"):
            spared(fields, spare, grows=grows).apply(state)


@pytest.mark.parametrize(
    ("options", "match"),
    (
        ({"kernel": 4}, "odd number"),
        ({"channels": ()}, "at least 1"),
        ({"rounding": "half"}, "ceil or floor"),
        ({"source": "both"}, "own or shared"),
        ({"pool": 1}, "pool >= 2"),
        ({"fields": ("a", "a")}, "stands twice"),
    ),
)
def test_settings_that_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        GeneratorConfig(**options)


def test_misfits_with_the_spec_are_refused():
    with pytest.raises(ValueError, match="no id feature is named"):
        FieldRows(spec_of(3), FgcnnConfig(fields=("f9",)))
    with pytest.raises(ValueError, match="needs fields of one dim"):
        FieldRows(small_spec(), FgcnnConfig(source="shared"))
    with pytest.raises(ValueError, match="level 3 would read 1 field"):
        heights(3, GeneratorConfig(channels=(2, 2, 2)))


@pytest.mark.slow
def test_overfits_a_few_rows():
    spec, rng = spec_of(6), np.random.default_rng(3)
    options = {"device": "cpu", "adam": {"averaged_rows": 0}, "dense": False, "dim": 8}
    learner = catalog.build("fgcnn", spec, options)
    batch = batch_of(rng.integers(0, 40, (256, 6)), rng.integers(0, 2, 256))
    for _ in range(300):
        report = learner.learn_many(batch)
    assert float(report.loss) < 0.01


def auc_after(name: str, places: tuple[int, int], **options: object) -> float:
    """AUC over the last fifth of a stream whose click is the XOR of two of 8 fields."""
    rng, spec, steps = np.random.default_rng(5), spec_of(8), 110
    learner = catalog.build(name, spec, options)
    scores, labels = [], []
    for step in range(steps):
        values = rng.integers(0, 2, (128, 8))
        label = values[:, places[0]] ^ values[:, places[1]]
        logits = learner.learn_many(batch_of(values, label)).logits_B
        if step > steps * 0.8:
            scores.append(logits.numpy())
            labels.append(label)
    found = auc_exact(np.concatenate(scores), np.concatenate(labels))
    assert isinstance(found, float)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("places", ((3, 4), (0, 7)), ids=["neighbours", "far apart"])
def test_planted_interaction_is_seen(places):
    """Each field alone tells nothing: a linear model is blind to their XOR, the generator is not.

    Far apart, no window of the convolution sees both: only recombination brings them together.
    """
    generator = {"kernel": 3, "channels": [4], "dim": 8}
    net = {"device": "cpu", "hidden": [16], "adam": {"averaged_rows": 1000}}
    net["embedding"] = {"init_sigma": 0.3}
    assert abs(auc_after("ftrl", places, rows={"bits": 10}) - 0.5) < 0.06
    assert auc_after("fgcnn", places, **net, generator=generator, dim=8) > 0.97
    module = {"on": True, **generator}
    assert auc_after("id_content", places, **net, cross_layers=0, fgcnn=module) > 0.97


def test_products_do_not_depend_on_the_order_of_the_fields():
    """Order matters to the generator alone: IPNN with its columns turned alike says the same."""
    spec, n, k = spec_of(5), 5, 8
    nets = [FgcnnNet(spec, FgcnnRankerConfig(dim=k, generate=False, dense=False)) for _ in range(2)]
    order = [3, 0, 4, 1, 2]
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    place = {pair: i for i, pair in enumerate(pairs)}
    columns = [order[a] * k + d for a in range(n) for d in range(k)]
    columns += [n * k + place[min(order[a], order[b]), max(order[a], order[b])] for a, b in pairs]
    with torch.no_grad():
        nets[1].load_state_dict(nets[0].state_dict())
        nets[1].mlp[0].weight[:, : len(columns)] = nets[0].mlp[0].weight[:, columns]
        for net in nets:
            net.out.weight.fill_(0.3)
        rows = torch.randn(16, n, k)
        plain, turned = nets[0](inputs(rows)), nets[1](inputs(rows[:, order]))
        assert (plain - turned).abs().max() < 1e-5
        assert (nets[0](inputs(rows[:, order])) - plain).abs().max() > 1e-3


class Flat(nn.Module):
    """A linear head on what the generator makes: it can find no interaction by itself."""

    def __init__(self, *, recombines: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        config = GeneratorConfig(channels=(6,), kernel=3, maps=2, norm="none")
        self.rows = nn.Parameter(0.5 * torch.randn(8, 2, 4))
        self.generator, self.recombines = Generator(8, 4, config), recombines
        self.head = nn.Linear(self.width(), 1)

    def features(self, values_BF: torch.Tensor) -> torch.Tensor:
        """R, or the pooled maps of the convolution alone."""
        fields = self.rows[torch.arange(8), values_BF]
        pooled, found = self.generator.levels[0](fields.transpose(1, 2))
        return found if self.recombines else pooled

    def width(self) -> int:
        return self.features(torch.zeros(1, 8, dtype=torch.int64)).numel()

    def forward(self, values_BF: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(values_BF).flatten(1)).squeeze(1)


def flat_auc(places: tuple[int, int], *, recombines: bool) -> float:
    """AUC of the XOR of two fields after 150 steps."""
    net, rng = Flat(recombines=recombines), torch.Generator().manual_seed(6)
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(151):
        values = torch.randint(0, 2, (128, 8), generator=rng)
        label = (values[:, places[0]] ^ values[:, places[1]]).float()
        logits = net(values)
        if step == 150:
            break
        adam.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        adam.step()
    found = auc_exact(logits.detach().numpy(), label.numpy())
    assert isinstance(found, float)
    return found


@pytest.mark.slow
def test_without_recombination_only_neighbours_are_seen_together():
    """Sums of functions of single windows hold no XOR of fields that share no window."""
    near, far = (3, 4), (0, 7)
    assert min(flat_auc(places, recombines=True) for places in (near, far)) > 0.95
    assert flat_auc(near, recombines=False) > 0.95
    assert flat_auc(far, recombines=False) < 0.65


@pytest.mark.slow
def test_features_are_not_saturated_by_a_stream():
    """Check 10: else the rate or the start is wrong, and their gradient is gone."""
    learner, stream = trained(maker("id_content", fgcnn=SMALL), steps=150)
    assert isinstance(learner, NetLearner)
    seen: list[torch.Tensor] = []
    generator = dict(learner.net.modules_on)["fgcnn"].generator
    generator.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    learner.learn_many(stream.batch(400))
    assert float((seen[0].abs() > 0.99).float().mean()) < 0.2
    assert float(seen[0].abs().max()) < 1
    assert float(seen[0].std(0).max()) > 0.01
