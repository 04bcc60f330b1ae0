"""MAKE: the extractor's arithmetic, releases without leakage, the guard, the replay buffer."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infra.errors import InputError
from learners import catalog
from learners.content_view import content_view, masked_softmax, picked_dots, weighted_sum
from learners.feature_spec import ContentBlock
from learners.learner import Learner
from learners.modules.make import MakeConfig
from learners.modules.make_net import ExtractorConfig, MakeNet, normalised
from learners.modules.make_online import OnlineConfig
from learners.modules.make_release import (
    MakeReleaseUnusable,
    read_release,
    release_of,
    write_release,
)
from learners.modules.make_training import ContentSamples, MakeTrainingConfig, new_net, train
from learners.modules.make_versions import GuardConfig, Versions
from learners.step_inputs import step_inputs
from stream.cli import run
from stream.composition import _check_incoming
from tests.conformance.learner_checks import EVERY_LEARNER, assert_same_state, state_of
from tests.support.batches import START_MS, BatchMaker, small_spec
from tests.support.close import assert_close
from tests.support.planted import DIM, HISTORY, PlantedContent, last_losses

SMALL = ExtractorConfig(attention=16, hidden=(16, 16))
OPTIONS = {"device": "cpu", "content_projection": 0, "adam": {"averaged_rows": 0}}
HOUR_MS = 3_600_000
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def build(content_projection=0, **make) -> Learner:
    options = {**OPTIONS, "content_projection": content_projection}
    spec = small_spec(content_dim=DIM)
    return catalog.build("id_content", spec, {**options, **({"make": make} if make else {})})


def make_of(learner):
    return learner.net.methods["make"]


def planted_net(seed=1, rows=2_000, epochs=8, noise=0.0):
    """An extractor that knows the planted signal, its weights moved by `noise`."""
    stream = PlantedContent(seed)
    samples = ContentSamples.of(stream.spec)
    for _ in range(rows // 100):
        samples.add(stream.batch(100), stream.spec, from_ms=0, before_ms=2**62)
    table = samples.rows()
    net = new_net(table, SMALL, seed)
    list(train(table, net, MakeTrainingConfig(epochs=epochs, lr=5e-3), last=len(table)))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def trained_net():
    return planted_net()


def release_file(path, net, until_ms=START_MS, encoder="synthetic"):
    write_release(
        path, release_of(net, encoder=encoder, from_ms=0, until_ms=until_ms, facts={"rows": 3})
    )
    return str(path)


def test_view_has_each_vector_once_and_the_same_vectors():
    batch = BatchMaker(small_spec()).batch(21)
    content = batch.content
    view = content_view(content, rows=24, dim=6, lengths=(7,))
    table = content.table_VC
    assert torch.equal(view.rows_UC[view.target_B[:21]], table[content.target_B])
    assert torch.equal(view.rows_UC[view.bags_BL[0][:21]], table[content.bags_BL[0]])
    used = torch.unique(torch.cat([content.target_B, content.bags_BL[0].flatten()]))
    distinct = int((used != len(table) - 1).sum())
    assert (view.rows_UC.abs().sum(1) > 0).sum() == distinct
    assert len(view.rows_UC) % 8 == 0
    assert not view.rows_UC[view.none].any()
    assert (view.target_B[21:] == view.none).all()
    assert not view.kept(0)[21:].any()
    chosen = np.array([3, 4, 20])
    part = content_view(content, rows=3, dim=2, lengths=(7,), chosen=chosen, start=4)
    assert torch.equal(part.rows_UC[part.bags_BL[0]], table[content.bags_BL[0][chosen], 4:6])


def test_masked_softmax_leaves_out_what_is_not_kept():
    kept = torch.tensor([[True, False, True], [False, False, False]])
    weights = masked_softmax(torch.tensor([[1.0, 50.0, 2.0], [1.0, 2.0, 3.0]]), kept)
    e = np.exp([1.0, 2.0])
    np.testing.assert_allclose(weights[0].numpy(), [e[0] / e.sum(), 0, e[1] / e.sum()], rtol=1e-6)
    assert not weights[1].any()


def test_extractor_is_the_formula():
    """Against a loop over rows and places."""
    torch.manual_seed(3)
    net = MakeNet(6, 1, SMALL)
    torch.nn.init.normal_(net.key.weight)
    batch = BatchMaker(small_spec()).batch(16)
    view = content_view(batch.content, rows=16, dim=6, lengths=(7,))
    out = net(view)
    table = batch.content.table_VC.numpy().astype(np.float64)
    w = {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}
    for row in range(16):
        t = table[int(batch.content.target_B[row])]
        places = [int(i) for i in batch.content.bags_BL[0][row] if int(i) != len(table) - 1]
        v = np.zeros(6)
        if places:
            x = table[places]
            a = (x @ w["key.weight"].T) @ (w["query.weight"] @ t) / np.sqrt(16)
            a = np.exp(a - a.max())
            v = (a / a.sum()) @ x
        np.testing.assert_allclose(out.interest_BX[row].detach(), v, atol=1e-5)
        z = np.concatenate([t, v, v * t])
        for i in range(2):
            z = np.maximum(w[f"layers.{i}.weight"] @ z + w[f"layers.{i}.bias"], 0)
            np.testing.assert_allclose(out.hidden[i][row].detach(), z, atol=1e-5)
        logit = w["out.weight"][0] @ z + w["out.bias"][0]
        assert float(out.logit_B[row].detach()) == pytest.approx(logit, abs=1e-5)


def test_extractor_ignores_order_and_padding():
    torch.manual_seed(3)
    net, batch = MakeNet(6, 1, SMALL), BatchMaker(small_spec()).batch(16)
    bag = batch.content.bags_BL[0]
    none = len(batch.content.table_VC) - 1
    turned = dataclasses.replace(batch.content, bags_BL=(bag.flip(1),))
    padded = dataclasses.replace(
        batch.content, bags_BL=(torch.nn.functional.pad(bag, [0, 5], value=none),)
    )
    outs = [
        net(content_view(c, rows=16, dim=6, lengths=(7,))).logit_B
        for c in (batch.content, turned, padded)
    ]
    assert_close(outs[0], outs[1])
    assert_close(outs[0], outs[2])


def test_every_weight_gets_a_gradient_and_vectors_get_none():
    torch.manual_seed(3)
    net, batch = MakeNet(6, 1, SMALL), BatchMaker(small_spec()).batch(64)
    view = normalised(content_view(batch.content, rows=64, dim=6, lengths=(7,)))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        net(view).logit_B, batch.labels_BK[:, 1]
    )
    loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in net.parameters())
    assert view.rows_UC.grad is None


def test_extractor_overfits_a_few_rows():
    maker = PlantedContent(5)
    samples = ContentSamples.of(maker.spec)
    samples.add(maker.batch(64), maker.spec, from_ms=0, before_ms=2**62)
    table = samples.rows()
    net = new_net(table, SMALL, 1)
    scores = list(train(table, net, MakeTrainingConfig(epochs=150, lr=1e-2), last=len(table)))
    assert scores[0].train_loss > 0.5
    assert scores[-1].train_loss < 0.1
    assert scores[-1].auc is None  # nothing was held back to be judged by


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("online", "frozen", "joint"))
def test_sees_a_signal_that_is_in_content_alone(mode, trained_net, tmp_path):
    options = {"on": True, "mode": mode, "attention": 16, "hidden": [16, 16], "lr": 5e-3}
    if mode != "online":
        options["releases"] = [release_file(tmp_path / "a", trained_net, until_ms=0)]
    without = last_losses(build(), PlantedContent(9), 120)
    with_it = last_losses(build(**options), PlantedContent(9), 120)
    assert without > 0.6
    assert with_it < without - 0.08


def test_releases_round_trip_and_say_what_is_wrong(trained_net, tmp_path):
    path = tmp_path / "a"
    release_file(path, trained_net)
    release = read_release(path)
    assert release.facts == {"rows": 3}
    assert (release.encoder, release.until_ms) == ("synthetic", START_MS)
    for name, parameter in trained_net.named_parameters():
        assert torch.equal(dict(release.net().named_parameters())[name], parameter)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(MakeReleaseUnusable, match="not those of version"):
        read_release(path)
    with pytest.raises(InputError, match="pretrain make"):
        read_release(tmp_path / "absent")


def test_vectors_of_another_encoder_are_refused(trained_net, tmp_path):
    path = release_file(tmp_path / "a", trained_net, until_ms=0, encoder="other")
    learner = build(on=True, mode="frozen", releases=[path])
    with pytest.raises(ValueError, match="encoder 'other'"):
        make_of(learner).check_content("synthetic")
    with pytest.raises(ValueError, match="encoder 'other'"):
        learner.predict_many(PlantedContent().batch(8))


def test_a_release_is_not_for_a_version_that_comes_in_and_it_is_said_what_to_do(
    trained_net, tmp_path
):
    spec = small_spec(content_dim=DIM)
    spec = dataclasses.replace(spec, incoming_blocks=(ContentBlock(name="", start=0, dim=DIM),))
    release = release_file(tmp_path / "a", trained_net, until_ms=0, encoder="present")
    make = {"on": True, "mode": "frozen", "releases": [release]}
    learner = catalog.build("id_content", spec, {**OPTIONS, "make": make})
    version = SimpleNamespace(embedder=SimpleNamespace(version="new"))
    words = r"items\.next with module 'make'.*ranker\.options\.make\.on = false.*grow = true"
    with pytest.raises(InputError, match=words):
        _check_incoming(learner, version, "[ranker]")
    online = catalog.build("id_content", spec, {**OPTIONS, "make": {"on": True}})
    _check_incoming(online, version, "[ranker]")


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"mode": "frozen"}, "needs releases"),
        ({"mode": "online", "releases": ("a", "b")}, "one release at most"),
        ({"mode": "sometimes"}, "expected frozen"),
        ({"hidden": ()}, "multiples of 16"),
        ({"attention": 8}, "multiples of 16"),
        ({"lr": 0.0}, "lr > 0"),
        ({"guard_sigmas": 0.0}, "guard_sigmas"),
    ),
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        MakeConfig(on=True, **changes)
    assert OnlineConfig().replays == 1
    assert GuardConfig().rows > 0


def test_misfit_releases_are_refused(trained_net, tmp_path):
    path = release_file(tmp_path / "a", trained_net)
    with pytest.raises(ValueError, match="vectors of 8"):
        catalog.build(
            "id_content",
            small_spec(),
            {"device": "cpu", "make": {"on": True, "mode": "frozen", "releases": [path]}},
        )
    with pytest.raises(ValueError, match="same time"):
        build(on=True, mode="frozen", releases=[path, path])


def frozen_learner(tmp_path, trained_net, **options):
    """A ranker that has learned to use the first release."""
    first = release_file(tmp_path / "first", trained_net, until_ms=START_MS)
    options = {"on": True, "mode": "frozen", "releases": [first], **options}
    learner, stream = build(**options), PlantedContent(9)
    for _ in range(30):
        learner.learn_many(stream.batch(64, ts_ms=START_MS + HOUR_MS))
    return learner, stream


def test_impressions_within_the_window_get_nothing(trained_net, tmp_path):
    learner, stream = frozen_learner(tmp_path, trained_net)
    batch = stream.batch(64)
    within = dataclasses.replace(batch, ts_ms_B=torch.full_like(batch.ts_ms_B, START_MS))
    after = dataclasses.replace(batch, ts_ms_B=torch.full_like(batch.ts_ms_B, START_MS + 1))
    module = make_of(learner)
    with_it, without = learner.predict_many(after), learner.predict_many(within)
    for layer in (module.to_hidden, module.to_logit):
        torch.nn.init.zeros_(layer.weight)
    plain = learner.predict_many(after)
    assert torch.equal(without, plain)
    assert (with_it - plain).abs().max() > 0.1
    mixed = batch.ts_ms_B.clone().fill_(START_MS)
    mixed[::2] += 1
    assert not torch.equal(with_it[::2], plain[::2])
    assert learner.counts()["make_refused"] == 0
    learner.learn_many(within)
    assert learner.counts()["make_refused"] == 64


def test_each_impression_uses_the_newest_release_before_it(trained_net, tmp_path):
    second_ms = START_MS + 10 * HOUR_MS
    second = release_file(tmp_path / "b", planted_net(2, rows=300, epochs=1), until_ms=second_ms)
    only, stream = frozen_learner(tmp_path, trained_net)
    both = build(on=True, mode="frozen", releases=[second, str(tmp_path / "first")], guard_rows=0)
    both.apply({n: p for n, p in state_of(only).items() if n != "make"})
    batch = stream.batch(64)

    def at(ts_ms):
        return dataclasses.replace(batch, ts_ms_B=torch.full_like(batch.ts_ms_B, ts_ms))

    assert torch.equal(both.predict_many(at(second_ms)), only.predict_many(at(second_ms)))
    later = both.predict_many(at(second_ms + 1))
    assert not torch.equal(later, only.predict_many(at(second_ms + 1)))
    mixed = at(second_ms)
    mixed.ts_ms_B[::2] += 1
    scores = both.predict_many(mixed)
    assert torch.equal(scores[::2], later[::2])
    assert torch.equal(scores[1::2], only.predict_many(at(second_ms))[1::2])


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "reverted"), ((3.0, True), (0.003, False)))
def test_a_harmful_change_is_reverted_and_a_good_one_stays(noise, reverted, trained_net, tmp_path):
    """The new release is the old one with its weights moved: a lot, or hardly."""
    second_ms = START_MS + 10 * HOUR_MS
    moved = planted_net(noise=noise)
    second = release_file(tmp_path / "b", moved, until_ms=second_ms)
    learner, stream = frozen_learner(tmp_path, trained_net)
    swapped = build(
        on=True, mode="frozen", releases=[str(tmp_path / "first"), second], guard_rows=1_024
    )
    swapped.apply(state_of(learner))
    copy = None
    for step in range(20):
        batch = stream.batch(64, ts_ms=second_ms + HOUR_MS)
        swapped.learn_many(batch)
        if copy is not None:
            copy.learn_many(batch)
        if step == 1:  # in the middle of the trial
            assert make_of(swapped).versions.sums[0] == 128
            assert swapped.counts()["make_trial_rows"] == 128
            harm = swapped.counts()["make_trial_micronats"]
            assert harm > 10_000 if reverted else abs(harm) < 10_000
            copy = build(
                on=True,
                mode="frozen",
                releases=[str(tmp_path / "first"), second],
                guard_rows=1_024,
            )
            copy.apply(state_of(swapped))
    assert swapped.counts()["make_reverted"] == int(reverted)
    assert bool(make_of(swapped).versions.passed[1]) is not reverted
    assert_same_state(state_of(swapped), state_of(copy))
    if reverted:
        learner.apply({n: p for n, p in state_of(swapped).items() if n != "make"})
        batch = stream.batch(32, ts_ms=second_ms + HOUR_MS)
        assert torch.equal(swapped.predict_many(batch), learner.predict_many(batch))


def test_a_snapshot_needs_the_releases_that_it_used(trained_net, tmp_path):
    learner, _ = frozen_learner(tmp_path, trained_net)
    other = release_file(tmp_path / "b", planted_net(2, rows=200, epochs=1), until_ms=START_MS)
    with pytest.raises(ValueError, match="keep its file"):
        build(on=True, mode="frozen", releases=[other]).apply(state_of(learner))


def test_frozen_stays_and_joint_is_trained(trained_net, tmp_path):
    """Check 16, second half: by the bits of the extractor."""
    path = release_file(tmp_path / "a", trained_net, until_ms=0)
    before = {n: p.detach().clone() for n, p in trained_net.named_parameters()}
    for mode, same in (("frozen", True), ("joint", False)):
        learner, stream = build(on=True, mode=mode, releases=[path]), PlantedContent(9)
        for _ in range(10):
            learner.learn_many(stream.batch(64))
        module = make_of(learner)
        net = module.net if mode == "joint" else module.versions.nets[0]
        for name, parameter in net.named_parameters():
            assert torch.equal(parameter, before[name]) is same, name


def test_training_the_extractor_touches_no_weight_of_the_ranker():
    """Check 16, first half: its own loss and its replays change nothing but itself."""
    learner, stream = build(on=True, attention=16, hidden=[16], replays=3), PlantedContent(9)
    for _ in range(5):
        learner.learn_many(stream.batch(64))
    module, before = make_of(learner), state_of(learner)
    seen = []
    forward = module.forward
    module.forward = lambda x, *, learning: (seen.append(x), forward(x, learning=learning))[1]
    learner.learn_many(stream.batch(64))
    learner.apply(before)
    module.learned(seen[0], ok=True)
    after = state_of(learner)
    changed = {n for n in before if any(
        not np.array_equal(a, after[n].arrays[k]) for k, a in before[n].arrays.items()
    )}  # fmt: skip
    assert changed == {"make.net", "make.train"}
    assert after["make.train"].meta["steps"] == before["make.train"].meta["steps"] + 1


def test_buffer_is_bounded_and_replays_are_counted():
    options = {"on": True, "attention": 16, "hidden": [16], "replays": 2, "replay_rows": 200}
    learner, stream = build(**options), PlantedContent(9)
    for _ in range(9):
        learner.learn_many(stream.batch(64))
    counts = learner.counts()
    assert counts["make_buffer_rows"] == 192
    assert counts["make_replayed"] == 8 * 2 * 64
    assert counts["make_steps"] == 9


def test_without_replays_no_row_is_kept_and_one_that_was_is_let_go():
    """The buffer is neither in memory nor in a snapshot; all else of the extractor goes on."""
    learner, stream = build(on=True, attention=16, hidden=[16], replays=0), PlantedContent(9)
    for _ in range(3):
        learner.learn_many(stream.batch(64))
    assert learner.counts()["make_buffer_rows"] == 0
    assert set(state_of(learner)["make.train"].arrays) == {"w", "m", "v", "t"}
    other = build(on=True, attention=16, hidden=[16], replays=2)
    other.apply(state_of(learner))
    batches = [stream.batch(64) for _ in range(3)]
    for batch in batches:
        other.learn_many(batch)
    assert other.counts()["make_buffer_rows"] == 192
    learner.apply(state_of(other))
    assert learner.counts()["make_buffer_rows"] == 0
    rest = state_of(learner)["make.train"]
    assert rest.meta["steps"] == 6
    assert np.array_equal(rest.arrays["w"], state_of(other)["make.train"].arrays["w"])


@pytest.mark.slow
def test_visits_again_learn_faster_than_one():
    """What the replays are for: the same stream, the extractor's own loss after 40 steps."""

    def own_loss(replays):
        learner, stream = (
            build(on=True, attention=16, hidden=[16, 16], replays=replays, averaged_rows=0),
            PlantedContent(9),
        )
        for _ in range(40):
            learner.learn_many(stream.batch(32))
        probe = PlantedContent(11).batch(1_000)
        view = normalised(content_view(probe.content, rows=1_000, dim=DIM, lengths=(HISTORY,)))
        logits = make_of(learner).online.scorer(view).logit_B
        return float(
            torch.nn.functional.binary_cross_entropy_with_logits(logits, probe.labels_BK[:, 1])
        )

    assert own_loss(8) < own_loss(0) - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("frozen", "joint"))
@pytest.mark.parametrize("check", EVERY_LEARNER, ids=lambda check: check.__name__)
def test_keeps_the_contract_in_the_other_modes(check, mode, tmp_path):
    torch.manual_seed(4)
    net = MakeNet(6, 1, SMALL)
    first = release_file(tmp_path / "a", net, until_ms=START_MS + 100_000)
    second = release_file(tmp_path / "b", MakeNet(6, 1, SMALL), until_ms=START_MS + 300_000)
    releases = [first, second] if mode == "frozen" else [first]
    options = {"device": "cpu", "make": {"on": True, "mode": mode, "releases": releases}}
    check(lambda: catalog.build("id_content", small_spec(), options))


def test_samples_are_kept_once_a_vector_and_newest_first(tmp_path):
    stream = BatchMaker(small_spec())
    samples = ContentSamples.of(stream.spec, rows_max=100)
    batches = [stream.batch(40) for _ in range(5)]
    for batch in batches:
        samples.add(batch, stream.spec, from_ms=0, before_ms=int(batches[4].ts_ms_B.min()))
    assert len(samples) == 120  # the step before would leave less than rows_max
    table = samples.rows()
    kept = batches[1:4]
    assert len(table.rows.table_VC) <= stream.items + 1
    expected = torch.cat([b.content.table_VC[b.content.target_B] for b in kept])
    assert torch.equal(table.rows.table_VC[table.rows.target_B], expected)
    histories = torch.cat([b.content.table_VC[b.content.bags_BL[0]] for b in kept])
    assert torch.equal(table.rows.table_VC[table.rows.bags_BL[0]], histories)
    np.testing.assert_array_equal(
        table.label_N, torch.cat([b.labels_BK[:, 1] for b in kept]).numpy()
    )


@pytest.mark.slow
def test_command_writes_a_release_that_a_replay_uses(tmp_path, capsys):
    log, out, report = (tmp_path / name for name in ("log.parquet", "make", "report"))
    sizes = ["--users", "60", "--items", "40", "--impressions", "2400", "--days", "0.5"]
    assert run(["synth", str(log), *sizes]) == 0
    end_ms = 1_704_067_200_000 + 6 * HOUR_MS
    capsys.readouterr()
    small = ["--epochs", "2", "--attention", "16", "--hidden", "16", "--json"]
    base = ["pretrain", "make", str(log), "--config", "synthetic", "--out", str(out), *small]
    assert run([*base, "--until", str(end_ms)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    release = read_release(out)
    assert facts["version"] == release.version
    assert release.until_ms == end_ms
    assert 800 < facts["rows"] < 1_400
    assert facts["positives"] > 0
    assert [score["epoch"] for score in facts["curve"]] == [1, 2]
    assert facts["judged_rows"] == facts["rows"] // 10
    use = [
        "ranker.options.make.on=true", "ranker.options.make.mode=frozen",
        f'ranker.options.make.releases=["{out}"]',
    ]  # fmt: skip
    sets = [word for each in use for word in ("--set", each)]
    replay = ["replay", str(log), "--config", "synthetic", "--report", str(report)]
    assert run([*replay, *sets]) == 0
    counts = json.loads((report / "report.json").read_text())
    assert '"make_releases": 1' in json.dumps(counts)
    assert run([*replay, *sets, "--set", "items.supplied=", "--set", "items.attributes=[]"]) == 2
    assert "encoder" in capsys.readouterr().err
    warm = [*base[:-5], "--warm-start", str(out), "--epochs", "1", "--out", str(tmp_path / "next")]
    assert run([*warm, "--until", str(end_ms + HOUR_MS), "--from", str(end_ms)]) == 0
    assert read_release(tmp_path / "next").facts["warm_start"] == release.version
    assert run([*base, "--until", "1704067200000"]) == 2
    assert "no labelled impression" in capsys.readouterr().err


def test_dots_and_their_gradients_are_those_of_torch():
    torch.manual_seed(2)
    bag = torch.randint(0, 9, (8, 7))
    rows, query = torch.randn(9, 16), torch.randn(8, 16)
    found = []
    for dots in (
        picked_dots,
        lambda r, q, b: (torch.nn.functional.embedding(b, r) * q.unsqueeze(1)).sum(2),
    ):
        r, q = rows.clone().requires_grad_(), query.clone().requires_grad_()
        out = dots(r, q, bag)
        (out.sin() * torch.arange(7.0)).sum().backward()
        found.append((out.detach(), r.grad, q.grad))
    for own, expected in zip(*found, strict=True):
        assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_weighted_sums_and_their_gradients_are_those_of_torch():
    torch.manual_seed(2)
    bag, rows = torch.randint(0, 9, (8, 7)), torch.randn(9, 6)
    found = []
    for trains in (False, True):  # torch's own is what rows with a gradient get
        r, w = rows.clone().requires_grad_(trains), torch.arange(56.0).view(8, 7) / 50
        w.requires_grad_()
        out = weighted_sum(r, bag, w)
        (out.sin() * torch.arange(6.0)).sum().backward()
        found.append((out.detach(), w.grad))
    for own, expected in zip(*found, strict=True):
        assert_close(own, expected, atol=1e-5, rtol=1e-5)


class Opposites(PlantedContent):
    """Histories of three of eight directions, each there and back: their mean is always nothing.

    A click is likely where the target's direction is among them: attention by content finds it.
    """

    def batch(self, rows, *, ts_ms=None):
        plain, rng = super().batch(rows, ts_ms=ts_ms), self._rng
        order = np.argsort(rng.random((rows, DIM)), axis=1)
        inside = rng.random(rows) < 0.5
        shown = np.where(inside, order[:, 0], order[:, 3])
        click = rng.random(rows) < np.where(inside, 0.9, 0.1)
        axes = np.linalg.qr(np.random.default_rng(77).normal(size=(DIM, DIM)))[0]
        history = axes[order[:, :3]]
        vectors = np.concatenate(
            [axes[shown], np.concatenate([history, -history], 1).reshape(-1, DIM)]
        )
        bag = np.full((rows, HISTORY), len(vectors))
        bag[:, :6] = rows + np.arange(rows * 6).reshape(rows, 6)
        content = dataclasses.replace(
            plain.content,
            table_VC=torch.from_numpy(np.vstack([vectors, np.zeros((1, DIM))]).astype(np.float32)),
            bags_BL=(torch.from_numpy(bag),),
            bag_inv_len_B=(torch.full((rows,), 1 / 6),),
        )
        labels = torch.from_numpy(np.stack([click, click], 1)).float()
        return dataclasses.replace(plain, content=content, labels_BK=labels)


@pytest.mark.slow
def test_attention_finds_what_no_mean_of_the_history_tells():
    """The base with projections, SimScore's mean cosine and codes of nothing are blind to it."""
    online = {"on": True, "attention": 16, "hidden": [16, 16], "lr": 5e-3}
    spec = small_spec(content_dim=DIM)
    seen = {}
    for name, options in {
        "projections": {"content_projection": 16},
        "simscore": {"content_projection": 0, "simscore": {"on": True, "recent": []}},
        "fgcnn": {"content_projection": 0, "fgcnn": {"on": True, "channels": [3], "kernel": 3}},
        "make": {"content_projection": 0, "make": online},
    }.items():
        learner = catalog.build("id_content", spec, {**OPTIONS, **options})
        seen[name] = last_losses(learner, Opposites(9), 100)
    assert seen.pop("make") < 0.58
    assert min(seen.values()) > 0.66, seen


def versions(*nets, until_ms, rows=300):
    """Releases and a guard of few rows; the first release's window ends at 0."""
    releases = [
        release_of(net, encoder="e", from_ms=0, until_ms=until, facts={})
        for net, until in zip(nets, until_ms, strict=True)
    ]
    return Versions(releases, GuardConfig(rows=rows))


def judged(own, ts_ms, gain, rows=256):
    """A learned step of `rows` impressions at `ts_ms`; the release on trial is better by `gain`."""
    x = step_inputs(PlantedContent(3).batch(rows, ts_ms=ts_ms), small_spec(content_dim=DIM), CPU)
    if own.on_trial(x):
        z = torch.where(x.label_B > 0, 1.0, -1.0)
        own.note(x, z * (1 + gain), z)
    own.learned(x, ok=True)


def test_a_release_that_comes_during_a_trial_is_judged_first():
    """Sums begin anew with it; when it is reverted, the one before has its trial."""
    nets = [MakeNet(DIM, 1, SMALL) for _ in range(3)]
    own = versions(*nets, until_ms=(0, 1_000, 2_000))
    judged(own, 500, 0.0)
    assert own.trial == -1  # the first release has nothing to be compared with
    judged(own, 1_500, 0.1, rows=100)
    assert (own.trial, own.sums[0]) == (1, 100)
    judged(own, 2_500, -0.5)
    assert own.reverted.tolist() == [False, False, True]
    other = versions(*nets, until_ms=(0, 1_000, 2_000))
    other.apply({"make": own.part()})
    for each in (own, other):
        judged(each, 2_500, 0.1, rows=200)
        assert (each.trial, each.sums[0]) == (1, 200)  # not the 100 rows of long ago
        judged(each, 2_500, 0.1, rows=200)
        assert each.passed.tolist() == [False, True, False]
        judged(each, 2_500, -0.5)
        assert each.reverted.tolist() == [False, False, True]  # what has passed stays
    assert_same_state({"make": own.part()}, {"make": other.part()})


def test_a_step_that_was_not_taken_does_not_count_in_a_trial():
    own = versions(*(MakeNet(DIM, 1, SMALL) for _ in range(2)), until_ms=(0, 1_000))
    x = step_inputs(PlantedContent(3).batch(64, ts_ms=1_500), small_spec(content_dim=DIM), CPU)
    own.note(x, torch.full((64,), 9.0), torch.zeros(64))
    own.learned(x, ok=False)
    own.learned(x, ok=True)
    assert own.sums == (0, 0.0, 0.0)


def test_an_extractor_of_other_sizes_is_refused():
    """Also where the ranker's own maps would fit: attention is not among their columns."""
    learner, stream = build(on=True, attention=16, hidden=[16, 32]), PlantedContent(9)
    learner.learn_many(stream.batch(32))
    for other in ({"attention": 32, "hidden": [16, 32]}, {"attention": 16, "hidden": [32, 16]}):
        with pytest.raises(ValueError, match="make: the snapshot's extractor"):
            build(on=True, **other).apply(state_of(learner))


def test_another_mode_is_another_model(trained_net, tmp_path):
    """The ranker's maps have the same sizes in both, so that no other check would tell."""
    path = release_file(tmp_path / "a", trained_net, until_ms=0)
    options = {"on": True, "attention": 16, "hidden": [16, 16], "releases": [path]}
    frozen, online = (build(mode=mode, **options) for mode in ("frozen", "online"))
    for one, other in ((frozen, online), (online, frozen)):
        with pytest.raises(ValueError, match="make: the snapshot is of mode"):
            other.apply(state_of(one))


LAYERED = {"on": True, "layers": True, "attention": 16, "hidden": [16, 32, 48]}


@pytest.mark.parametrize(
    ("hidden", "reads"),
    (
        ((64,), [DIM + 16 + 32 + 48]),
        ((64, 32), [DIM + 16, 32 + 48]),
        ((64, 32, 16), [DIM + 16, 32, 48]),
        ((64, 32, 16, 16), [DIM + 16, 32, 48]),
    ),
)
def test_each_hidden_layer_of_the_ranker_reads_its_own_of_the_extractor(hidden, reads):
    learner = catalog.build(
        "id_content", small_spec(content_dim=DIM), {**OPTIONS, "hidden": hidden, "make": LAYERED}
    )
    make = make_of(learner)
    maps = (make.to_hidden, *make.to_deeper)
    assert [one.in_features for one in maps] == reads
    assert [one.out_features for one in maps] == list(hidden[: len(reads)])
    plain = catalog.build("id_content", small_spec(content_dim=DIM), {**OPTIONS, "hidden": hidden})
    batch = PlantedContent(3).batch(40)
    assert torch.equal(learner.predict_many(batch), plain.predict_many(batch))
    for _ in range(4):
        learner.learn_many(PlantedContent(3).batch(100))
    assert all(bool(one.weight.any()) for one in maps)
    again = catalog.build(
        "id_content", small_spec(content_dim=DIM), {**OPTIONS, "hidden": hidden, "make": LAYERED}
    )
    again.apply(state_of(learner))
    assert torch.equal(again.predict_many(batch), learner.predict_many(batch))


def test_a_deeper_sum_moves_that_layer_alone():
    """z_2 joins the second layer: with its map set, scores move though the first one reads 0."""
    learner = catalog.build(
        "id_content", small_spec(content_dim=DIM), {**OPTIONS, "hidden": (64, 32), "make": LAYERED}
    )
    make, batch = make_of(learner), PlantedContent(3).batch(40)
    net = learner.net.cross_mlp
    torch.nn.init.normal_(net.out_mlp.weight)
    before = learner.predict_many(batch)
    torch.nn.init.normal_(make.to_deeper[0].weight)
    moved = learner.predict_many(batch)
    assert not torch.equal(moved, before)
    with torch.no_grad():
        net.mlp[1].weight.zero_()  # nothing comes from the first layer any more
    assert not torch.equal(learner.predict_many(batch), before)
    with torch.no_grad():
        make.to_deeper[0].weight.zero_()
        without = learner.predict_many(batch)
        torch.nn.init.normal_(make.to_hidden.weight)
    assert torch.equal(learner.predict_many(batch), without)


@pytest.mark.slow
@pytest.mark.parametrize("check", EVERY_LEARNER, ids=lambda check: check.__name__)
def test_keeps_the_contract_where_layers_read_their_own(check):
    options = {"device": "cpu", "hidden": [32, 16], "make": {**LAYERED, "hidden": [16, 16, 16]}}
    check(lambda: catalog.build("id_content", small_spec(), options))
