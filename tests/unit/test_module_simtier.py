"""SimTier and SimScore: golden tiers, conservation, planted signals, tiers files."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from infra.errors import InputError
from learners import catalog
from learners.content_cosines import Cosines
from learners.feature_spec import Bag
from learners.modules.simscore import SimScore, SimScoreConfig
from learners.modules.simtier import SimTier, SimTierConfig
from learners.modules.tiers import count_fine, count_tiers, equal_mass, equal_width
from learners.modules.tiers_file import Tiers, read_tiers, write_tiers
from learners.step_inputs import step_inputs
from stream.cli import run
from tests.conformance.learner_checks import assert_same_state, state_of, take
from tests.support.batches import BatchMaker, small_spec

CPU = torch.device("cpu")


def of(r_BL, known_BL=None):
    """Cosines of full histories."""
    r = np.asarray(r_BL, np.float32)
    known = np.ones(r.shape, np.uint8) if known_BL is None else np.asarray(known_BL, np.uint8)
    return Cosines(r, known, np.full(len(r), r.shape[1]))


def counted(cosines, tiers=20, recent=0, edges_E=None):
    """The histogram of each row."""
    edges = equal_width(tiers) if edges_E is None else edges_E
    out_BN = np.zeros((len(cosines.r_BL), len(edges) + 1), np.float32)
    count_tiers(cosines, recent, edges, out_BN)
    return out_BN


def simtier(spec=None, **options):
    spec = spec or small_spec()
    return SimTier(spec, SimTierConfig(on=True, **{"recent": (3,), **options}), 16)


def inputs(batch, spec=None):
    return step_inputs(batch, spec or small_spec(), CPU)


@pytest.mark.parametrize(
    ("r", "tier"),
    ((-1, 0), (-0.95, 0), (0, 10), (0.05, 10), (0.1001, 11), (0.35, 13), (0.95, 19), (1, 19)),
)
def test_golden_tiers(r, tier):
    assert counted(of([[r]])).argmax() == tier


def test_history_counts_once_each_whatever_its_order():
    rng = np.random.default_rng(0)
    cosines = of(rng.uniform(-1, 1, (50, 30)), rng.random((50, 30)) < 0.7)
    h_BN = counted(cosines)
    np.testing.assert_array_equal(h_BN.sum(1), cosines.known_BL.sum(1))
    order = rng.permutation(30)
    mixed = Cosines(cosines.r_BL[:, order], cosines.known_BL[:, order], cosines.length_B)
    np.testing.assert_array_equal(counted(mixed), h_BN)
    one = cosines.r_BL.copy()
    one[:, 4] = rng.uniform(-1, 1, 50)
    change = counted(cosines._replace(r_BL=one)) - h_BN
    assert set(np.unique(change)) <= {-1, 0, 1}
    assert (np.abs(change).sum(1) <= 2).all()
    assert (change.sum(1) == 0).all()


def test_scope_is_the_last_entries_of_the_history():
    cosines = of([[-0.95, 0.95, 0.55, 0.05]])
    shorter = cosines._replace(length_B=np.array([3]))  # the last place is padding
    assert np.flatnonzero(counted(shorter, recent=2)).tolist() == [15, 19]
    assert np.flatnonzero(counted(cosines, recent=2)).tolist() == [10, 15]
    assert counted(shorter, recent=9).sum() == 3


def test_padding_and_missing_vectors_count_nowhere():
    spec, module = small_spec(), simtier()
    batch = BatchMaker(spec).batch(50)
    h_BSN = module.counts_of(inputs(batch))
    assert h_BSN.shape == (56, 2, 20)
    known_B = inputs(batch).cosines.histories(spec.block())[0].known_BL.sum(1)
    np.testing.assert_array_equal(h_BSN[:50, 0].sum(1), known_B)
    assert (known_B == 0).any()
    assert not h_BSN[50:].any()
    content = batch.content
    more = torch.nn.functional.pad(content.bags_BL[0], [0, 5], value=len(content.table_VC) - 1)
    longer = dataclasses.replace(
        batch,
        bags_BL=(torch.nn.functional.pad(batch.bags_BL[0], [0, 5]), batch.bags_BL[1]),
        content=dataclasses.replace(content, bags_BL=(more,)),
    )
    assert torch.equal(module.counts_of(inputs(longer)), h_BSN)


def fitted(r, tiers):
    """Edges of equal mass of a sample."""
    counts_K = np.zeros(20_000, np.int64)
    count_fine(of([r]), counts_K)
    assert counts_K.sum() == len(r)
    return equal_mass(counts_K, tiers)


def test_equal_mass_fills_tiers_evenly_where_equal_width_leaves_them_empty():
    r = np.random.default_rng(1).beta(8, 3, 5_000)  # all in a third of the range
    edges = fitted(r, 10)
    np.testing.assert_allclose(counted(of([r]), edges_E=edges) / len(r), 0.1, atol=0.003)
    assert (counted(of([r])) == 0).sum() >= 8


def test_equal_mass_gives_fewer_tiers_where_cosines_are_equal():
    (edge,) = fitted([0.25] * 50 + [0.5] * 51, 10)
    assert 0.25 < edge <= 0.5
    with pytest.raises(ValueError, match="no cosine"):
        fitted([], 4)
    for value in (-1.0, 0.5, 1.0):
        with pytest.raises(ValueError, match="all cosines are equal"):
            fitted([value] * 9, 4)


def test_tiers_file_round_trip_and_what_it_refuses(tmp_path):
    path = tmp_path / "tiers.json"
    write_tiers(path, Tiers(encoder="synthetic", edges_E=np.array([-0.1, 0.2]), cosines=7))
    assert read_tiers(path).edges_E.tolist() == [-0.1, 0.2]
    module = simtier(tiers_file=str(path))
    batch = BatchMaker(small_spec()).batch(8)
    assert module.counts_of(inputs(batch)).shape == (8, 2, 3)
    other = dataclasses.replace(batch, content=dataclasses.replace(batch.content, encoder="b"))
    with pytest.raises(InputError, match="fitted to vectors 'synthetic', but these are 'b'"):
        module.counts_of(inputs(other))
    text = path.read_text()
    for wrong in (text.replace("-0.1", "0.9"), text[:-9], text.replace("tiers/1", "tiers/9")):
        path.write_text(wrong)
        with pytest.raises(InputError, match="tiers file"):
            read_tiers(path)
    with pytest.raises(InputError, match="pretrain tiers"):
        read_tiers(tmp_path / "none")


def test_snapshot_of_other_tiers_is_refused(tmp_path):
    edges = tmp_path / "tiers.json"
    write_tiers(edges, Tiers(encoder="synthetic", edges_E=equal_width(20) + 0.01))
    even, fitted = (
        catalog.build(
            "id_content", small_spec(), {"device": "cpu", "simtier": {"on": True, **more}}
        )
        for more in ({}, {"tiers_file": str(edges)})
    )
    with pytest.raises(ValueError, match="other edges"):
        fitted.apply(state_of(even))


def ranker(**modules):
    """A ranker that reads content through its modules alone."""
    options = {"device": "cpu", "content_projection": 0, "repeats": False, "adam": {"lr": 0.02}}
    on = {name: {"on": True, "recent": (), **more} for name, more in modules.items()}
    return catalog.build("id_content", small_spec(content_dim=16), options | on)


@functools.cache
def similar_stream():
    """A click where the target looks like its history; ids are new in every row, so say nothing."""
    spec = small_spec(content_dim=16)
    maker, found = BatchMaker(spec, seed=3, items=400), []
    for i in range(100):
        batch = maker.batch(64)
        cosines = inputs(batch, spec).cosines.histories(spec.block())[0]
        n = cosines.known_BL.sum(1).clip(1)
        click = (cosines.r_BL * cosines.known_BL).sum(1) / n > 0.05
        fresh = np.random.default_rng(i).integers(1, 2**62, (64, 3))
        labels = torch.from_numpy(np.stack([click, click], 1)).float()
        batch = dataclasses.replace(
            batch, labels_BK=labels, ids_BF=torch.from_numpy(fresh),
            dense_BD=torch.zeros_like(batch.dense_BD),
            bags_BL=(batch.bags_BL[0], torch.zeros_like(batch.bags_BL[1])),
        )  # fmt: skip
        found.append(batch)
    return found


@functools.cache
def base_loss():
    base = ranker()
    return np.mean([float(base.learn_many(batch).loss) for batch in similar_stream()][-30:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    (
        {"simtier": {"counts": False}},
        {"simtier": {"shares": False}},
        {"simscore": {"hidden": False}},
        {"simscore": {"logit": False}},
        {"simtier": {}, "simscore": {}},
    ),
    ids=str,
)
def test_planted_similarity_is_seen_by_the_module_and_not_by_the_base(modules):
    learner = ranker(**modules)
    own = np.mean([float(learner.learn_many(batch).loss) for batch in similar_stream()][-30:])
    assert own < base_loss() - 0.1


def test_one_batch_can_be_learned_by_heart():
    learner = ranker(simtier={}, simscore={})
    batch = similar_stream()[0]
    losses = [float(learner.learn_many(batch).loss) for _ in range(80)]
    assert losses[-1] < 0.1 * losses[0]


def test_gradients_reach_the_maps_and_nothing_else_is_kept():
    learner = ranker(simtier={}, simscore={})
    for batch in similar_stream()[:3]:
        learner.learn_many(batch)
    weights = {n: p for n, p in learner.net.named_parameters() if "methods" in n}
    assert sorted(weights) == [
        f"methods.{m}.to_{to}.weight" for m in ("simscore", "simtier") for to in ("hidden", "logit")
    ]
    assert all(p.abs().sum() > 0 for p in weights.values())
    other = ranker(simtier={}, simscore={})
    other.apply(state_of(learner))
    batch = similar_stream()[0]
    assert torch.equal(learner.predict_many(batch), other.predict_many(batch))
    learner.learn_many(batch)
    other.learn_many(batch)
    assert_same_state(state_of(learner), state_of(other))


def test_scores_are_means_with_a_prior():
    spec = small_spec()
    module = SimScore(spec, SimScoreConfig(on=True, recent=(2,), scale=3.0, prior=0.5), 16)
    batch = BatchMaker(spec).batch(20)
    x = inputs(batch)
    scores = module.scores_of(x).numpy().reshape(24, 2, 2)
    cosines = x.cosines.histories(spec.block())[0]
    for b in range(20):
        for s, first in enumerate((0, max(0, cosines.length_B[b] - 2))):
            known = cosines.known_BL[b, first : cosines.length_B[b]].astype(bool)
            r, n = cosines.r_BL[b, first : cosines.length_B[b]][known], known.sum()
            assert scores[b, s, 0] == pytest.approx(3 * r.sum() / (n + 0.5), abs=1e-5)
            assert scores[b, s, 1] == pytest.approx(n / (n + 0.5), abs=1e-6)
    part = take(batch, slice(3, 9))
    np.testing.assert_array_equal(module.scores_of(inputs(part))[:6], scores.reshape(24, 4)[3:9])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"histories": ("likes",)}, r"no history 'likes', expected some of \['history'\]"),
        ({"block": "text"}, "no block 'text'"),
        ({"recent": (0,)}, "at least one entry"),
        ({"recent": (), "whole": False}, "nothing to look at"),
    ),
)
@pytest.mark.parametrize("module", ("simtier", "simscore"))
def test_wrong_options_say_what_is_expected(module, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.build("id_content", small_spec(), {module: {"on": True, **options}})


@pytest.mark.parametrize("module", ("simtier", "simscore"))
def test_without_vectors_or_histories_a_module_is_refused(module):
    with pytest.raises(ValueError, match=r"no item vectors; set items\.dim"):
        catalog.build("id_content", small_spec(content_dim=0), {module: {"on": True}})
    spec = small_spec()
    bare = dataclasses.replace(
        spec, bags=(Bag(name="tags", field="tag", length=3, is_history=False),)
    )
    with pytest.raises(ValueError, match="no history to compare with"):
        catalog.build("id_content", bare, {module: {"on": True}})


@pytest.mark.parametrize(
    ("module", "options", "message"),
    (
        ("simtier", {"counts": False, "shares": False}, "add nothing"),
        ("simtier", {"tiers": 1}, "2 to 1000"),
        ("simtier", {"share_prior": 0.0}, "above 0"),
        ("simscore", {"hidden": False, "logit": False}, "add nothing"),
        ("simscore", {"scale": 0.0}, "above 0"),
    ),
)
def test_settings_out_of_range_are_refused(module, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.build("id_content", small_spec(), {module: {"on": True, **options}})


def test_verb_fits_tiers_that_a_replay_takes_for_these_vectors_alone(tmp_path, capsys):
    log, out = tmp_path / "log.parquet", tmp_path / "tiers.json"
    sizes = ["--users", "40", "--items", "30", "--impressions", "1200", "--days", "0.2"]
    assert run(["synth", str(log), *sizes]) == 0
    start_ms = 1_704_067_200_000
    fit = ["pretrain", "tiers", str(log), "--config", "synthetic", "--tiers", "6", "--json"]
    capsys.readouterr()
    assert run([*fit, "--out", str(out), "--until", str(start_ms + 2 * 3_600_000)]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    tiers = read_tiers(out)
    assert facts["edges"] == tiers.edges_E.tolist()
    assert len(tiers.edges_E) == 5
    assert tiers.encoder == facts["encoder"]
    assert run([*fit, "--out", str(tmp_path / "all"), "--until", str(start_ms + 10**8)]) == 0
    assert read_tiers(tmp_path / "all").cosines > tiers.cosines > 0
    report = ["replay", str(log), "--config", "synthetic+simtier", "--report", str(tmp_path / "r")]
    use = ["--set", f"ranker.options.simtier.tiers_file={out}"]
    assert run([*report, *use]) == 0
    assert run([*report, *use, "--set", "items.supplied=", "--set", "items.attributes=[]"]) == 2
    assert "fit them again" in capsys.readouterr().err
    assert run([*fit, "--out", str(out), "--until", str(start_ms)]) == 2
    assert "no cosine" in capsys.readouterr().err
