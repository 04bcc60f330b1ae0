"""What millrace claims, proved on a stream whose click probabilities are known.

Differences between models are taken in expectation over labels (`expected_losses`), so they have
no label noise; where a proof is about labels themselves it says by how many standard errors.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from infra import config as loader
from learners import catalog
from learners.calibration import ece
from learners.learner import StepReport
from learners.metrics import LossSums, auc_exact, entropy, log_losses
from learners.rankers.id_content import IdContent, IdContentConfig
from stream.config import Config
from stream.importers.synthetic import simulate
from stream.importers.synthetic_config import HOUR_MS, SyntheticConfig
from stream.importers.synthetic_log import write_stream
from stream.importers.synthetic_truth import (
    calibration_z,
    expected_losses,
    regrets,
    true_calibration,
)
from tests.support.synthetic_truth import AT_ONCE, SMALL, config_of, replayed, stream_of

FEATURES = ("user", "item", "topic", "author", "segment", "device", "position", "hour")
RATES = ("item", "position")
IDS = ("user", "item", "segment", "position")
START_MS = SyntheticConfig().start_ms
WINDOW_MS = SyntheticConfig().window_ms


class Runs:
    """Streams and replays by what they are made of, each made once."""

    def __init__(self, folder):
        self._folder, self._logs, self._runs = folder, {}, {}

    def log(self, **settings):
        key = tuple(sorted(settings.items()))
        if key not in self._logs:
            self._logs[key] = stream_of(self._folder / f"log{len(self._logs)}", **settings)
        return self._logs[key]

    def run(self, log, name="id_content", **changes):
        key = repr((str(log), name, sorted(changes.items())))
        if key not in self._runs:
            folder = self._folder / f"run{len(self._runs)}"
            self._runs[key] = replayed(log, folder, config_of(name, **changes))
        return self._runs[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("proofs"))


@pytest.fixture(scope="module")
def model(runs):
    """The ranker with ids, content and two counters on a stream without drift."""
    return runs.run(runs.log(), features=FEATURES, counters=("user", "item"))


@pytest.fixture(scope="module")
def settled(runs):
    """The same, predicting just before it learns."""
    return runs.run(runs.log(), features=FEATURES, counters=("user", "item"),
                    stream={"predict_at": "settle"})  # fmt: skip


def changed_log(folder, change, **settings):
    """A log of a stream whose impressions went through `change`, with fields for the context."""
    config = SyntheticConfig(**(SMALL | settings))
    items, shown = simulate(config)
    shown, context = change(shown)
    write_stream(folder / "changed.parquet", config, items, shown, context=context)
    return folder / "changed.parquet"


def mean_and_error(d, block):
    """Mean of d, and its standard error by blocks of rows that go together."""
    _, number = np.unique(block, return_inverse=True)
    sums = np.bincount(number, d - d.mean())
    return d.mean(), np.sqrt((sums**2).sum()) / len(d)


def logits_of(p):
    return np.log(p / (1 - p))


def gap(a, b, rows=slice(None)):
    """Expected loss of run a above that of run b."""
    assert np.array_equal(a.item_id, b.item_id)
    return (expected_losses(a.p, a.logit) - expected_losses(b.p, b.logit))[rows]


def test_a_model_lies_between_the_base_rate_and_the_truth(runs, model):
    base = runs.run(runs.log(), "base_rate")
    rates = runs.run(runs.log(), "smoothed_rates", counters=RATES, plain_counts=True)
    for run in (model, rates):
        late = run.late
        won, error = mean_and_error(gap(base, run, late), run.user_id[late])
        assert won > 4 * error
        drawn = log_losses(run.logit, run.label) - log_losses(logits_of(run.p), run.label)
        lost, error = mean_and_error(drawn[late], run.user_id[late])
        assert lost > -3 * error
        assert lost == pytest.approx(regrets(run.p, run.logit)[late].mean(), abs=4 * error)
    assert gap(rates, model, model.late).mean() > 0.01
    assert true_calibration(model.p[model.late], model.logit[model.late]) == pytest.approx(
        1.0, abs=0.05
    )


def test_labels_are_draws_of_the_truth_and_its_calibration_error_is_noise(model):
    assert abs(calibration_z(model.p, model.label)) < 4
    for rows in (model.position == 0, model.late, model.p > 0.3):
        assert abs(calibration_z(model.p[rows], model.label[rows])) < 4
    perfect, wrong = ece(model.p, model.label), ece(0.8 * model.p, model.label)
    assert perfect.z < 3 < wrong.z
    assert perfect.score == pytest.approx(perfect.floor, rel=0.5)


@pytest.mark.slow
def test_labels_shuffled_within_the_hour_cannot_be_predicted(tmp_path):
    def shuffle(shown):
        hour = shown.ts_ms // HOUR_MS
        chance = np.random.default_rng(0).random(len(hour))
        delays = np.empty_like(shown.click_delay_ms)
        delays[np.argsort(hour, kind="stable")] = shown.click_delay_ms[np.lexsort((chance, hour))]
        return replace(shown, click_delay_ms=delays), {}

    config = config_of(features=FEATURES, counters=("user", "item"))
    run = replayed(changed_log(tmp_path, shuffle), tmp_path / "report", config)
    hour, late = run.ts_ms // HOUR_MS, run.late
    n, auc, variance, information = [], [], [], 0.0
    for one in np.unique(hour[late]):
        rows = hour == one
        positives, rest = run.label[rows].sum(), (1 - run.label[rows]).sum()
        n.append(rows.sum())
        auc.append(auc_exact(run.logit[rows], run.label[rows]))
        variance.append((positives + rest + 1) / (12 * positives * rest))
        information += rows.sum() * entropy(run.label[rows].mean())
    share = np.array(n) / np.sum(n)
    error = np.sqrt((share**2 * variance).sum())
    assert error < 0.01
    assert abs((share * auc).sum() - 0.5) < 3 * error
    rows = np.isin(hour, np.unique(hour[late]))
    # Against the rate of each hour, which shuffling leaves as it is.
    assert log_losses(run.logit[rows], run.label[rows]).sum() / information >= 1.0


def canary(of, share=0.05):
    """A field that says, of a share of the impressions, a label: their own, or the one before."""

    def change(shown):
        label = (shown.click_delay_ms > 0).astype(np.int64)
        said = label if of == "own" else np.concatenate([[0], label[:-1]])
        tells = np.random.default_rng(1).random(len(label)) < share
        return shown, {"canary": np.where(tells, 1 + said, 0)}

    return change


@pytest.mark.slow
def test_a_leaked_label_shows_and_the_label_before_is_worth_nothing(tmp_path):
    ids = config_of(features=IDS, counters=())
    table = loader.to_dict(ids)
    table["feature"] = [*table["feature"], {"name": "canary", "path": "context.canary", "dim": 8}]
    with_canary = loader.build(Config, table)
    (tmp_path / "own").mkdir()
    (tmp_path / "before").mkdir()
    own = changed_log(tmp_path / "own", canary("own"), slate=1)
    before = changed_log(tmp_path / "before", canary("before"), slate=1)
    plain = replayed(own, tmp_path / "plain", ids)
    gains = {}
    for name, log in (("own", own), ("before", before)):
        run = replayed(log, tmp_path / name / "report", with_canary)
        assert np.array_equal(run.label, plain.label)
        d = log_losses(plain.logit, plain.label) - log_losses(run.logit, run.label)
        gains[name] = mean_and_error(d, run.user_id)
    assert gains["own"][0] > 5 * gains["own"][1]
    assert gains["before"][0] < 3 * gains["before"][1]
    assert gains["before"][0] < 0.2 * gains["own"][0]


class TrainsFirst(IdContent):
    """Wrong on purpose: gives the logits of after the update as those of before."""

    def learn_many(self, batch):
        report = super().learn_many(batch)
        return StepReport(
            logits_B=self.predict_many(batch).clone(), loss=report.loss, skipped=report.skipped
        )


@pytest.mark.slow
def test_training_before_predicting_would_show(runs, settled, monkeypatch):
    entry = catalog.Entry(config=IdContentConfig, builder=TrainsFirst)
    monkeypatch.setattr(catalog, "ENTRIES", {**catalog.ENTRIES, "trains_first": entry})
    wrong = runs.run(runs.log(), "trains_first", features=FEATURES, counters=("user", "item"),
                     options=AT_ONCE, stream={"predict_at": "settle"})  # fmt: skip
    d = log_losses(settled.logit, settled.label) - log_losses(wrong.logit, wrong.label)
    seeming, error = mean_and_error(d, settled.user_id)
    assert seeming > 10 * error
    # Most of it is nothing but the labels that it has just seen.
    assert gap(settled, wrong).mean() < 0.5 * seeming


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_bytes(tmp_path):
    log = stream_of(tmp_path, impressions=4_000)
    config = config_of(features=FEATURES, counters=("user", "item"))
    digests = {
        hashlib.sha256(replayed(log, tmp_path / name, config).path.read_bytes()).hexdigest()
        for name in "ab"
    }
    assert len(digests) == 1


def test_weights_never_know_a_rows_own_label(model):
    assert (model.weights_ms < model.ts_ms + WINDOW_MS).all()
    assert (model.weights_ms < model.ts_ms).all()
    assert len(np.unique(model.weights_ms)) > 50


@pytest.mark.slow
def test_later_clicks_change_no_earlier_prediction(runs, model, settled, tmp_path):
    """All clicks after a moment are taken away: what was predicted until then stays bit for bit."""
    end_ms = START_MS + 24 * HOUR_MS

    def cut(shown):
        kept = shown.ts_ms + shown.click_delay_ms <= end_ms
        return replace(shown, click_delay_ms=np.where(kept, shown.click_delay_ms, 0)), {}

    log = changed_log(tmp_path, cut)
    for whole, at in ((model, "impression"), (settled, "settle")):
        config = config_of(features=FEATURES, counters=("user", "item"), stream={"predict_at": at})
        run = replayed(log, tmp_path / at, config)
        assert np.array_equal(run.item_id, whole.item_id)
        earlier = (run.ts_ms <= end_ms) & (whole.weights_ms <= end_ms)
        assert earlier.mean() > 0.4
        assert np.array_equal(run.logit[earlier], whole.logit[earlier])
        assert (run.logit[run.ts_ms > end_ms + HOUR_MS] != whole.logit[run.ts_ms > end_ms + HOUR_MS]
                ).mean() > 0.9  # fmt: skip


@pytest.mark.slow
def test_the_two_clocks_differ_by_what_the_weights_know(model, settled):
    """The same rows, features and labels; at `settle` the weights know about a window more."""
    for name in ("item_id", "user_id", "ts_ms", "label"):
        assert np.array_equal(getattr(model, name), getattr(settled, name))
    assert (model.weights_ms <= settled.weights_ms).all()
    lag = [(run.ts_ms - run.weights_ms)[model.weights_ms > 0].mean() for run in (model, settled)]
    assert 0.5 * WINDOW_MS < lag[0] - lag[1] < 1.5 * WINDOW_MS
    same = model.logit == settled.logit
    # Rows whose weights are the same are predicted alike to the last bit but that of their batch.
    known = model.weights_ms == settled.weights_ms
    assert np.allclose(model.logit[known], settled.logit[known], atol=1e-5)
    assert 0.2 < same.mean() < 0.8
    assert abs(gap(model, settled).mean()) < 0.005


@pytest.mark.slow
def test_ignoring_the_position_hurts(runs, model):
    names = [name for name in FEATURES if name != "position"]
    blind = runs.run(runs.log(), features=names, counters=("user", "item"))
    rows = model.late
    lost, error = mean_and_error(gap(blind, model, rows), model.user_id[rows])
    assert lost > 5 * error
    first, last = rows & (model.position == 0), rows & (model.position == 3)
    assert true_calibration(blind.p[first], blind.logit[first]) < 0.85
    assert true_calibration(blind.p[last], blind.logit[last]) > 1.15
    assert true_calibration(model.p[first], model.logit[first]) == pytest.approx(1, abs=0.12)
    assert true_calibration(model.p[last], model.logit[last]) == pytest.approx(1, abs=0.12)


def exposures_before(run):
    """How often each row's item was shown before, in the order of time."""
    order = np.lexsort((np.arange(len(run)), run.ts_ms, run.item_id))
    item = run.item_id[order]
    first = np.flatnonzero(np.diff(item, prepend=-1))
    within = np.arange(len(item)) - np.repeat(first, np.diff(np.append(first, len(item))))
    exposures = np.empty(len(item), np.int64)
    exposures[order] = within
    return exposures


@pytest.mark.slow
def test_content_helps_items_that_nobody_has_seen_and_a_placebo_does_not(runs):
    fresh = {"new_items_per_hour": 6, "item_life_hours": 8.0, "trend": 0.2}
    log, placebo_log = runs.log(**fresh), runs.log(**fresh, content="permuted")
    without = runs.run(log, features=IDS, counters=(), items={"dim": 0})
    content = runs.run(log, features=IDS, counters=())
    placebo = runs.run(placebo_log, features=IDS, counters=())
    new = (exposures_before(without) < 10) & without.late
    assert new.sum() > 1_000
    gain, error = mean_and_error(gap(without, content, new), without.item_id[new])
    assert gain > 5 * error
    assert gain > 0.1 * regrets(without.p, without.logit)[new].mean()
    for rows in (new, without.late):
        nothing, error = mean_and_error(gap(without, placebo, rows), without.item_id[rows])
        assert nothing < 3 * error
        assert nothing < 0.2 * gain


# Drift: few items, whose popularity is most of what there is to learn, and moves.
FEW = {"items": 20, "trend": 1.5, "seed": 1}
FIRST_COPY = 20
POPULARITY = {
    "features": ("item", "position", "device"), "counters": (), "stream": {"batch_size": 128},
}  # fmt: skip


def copied(runs, log, every_hours):
    """The learner, scored by a copy of its weights made every so many hours; 0: once."""
    name = "published" if every_hours else "frozen"
    options = {"learner": "id_content", "options": AT_ONCE, "every_ms": every_hours * HOUR_MS,
               "start_ms": START_MS + FIRST_COPY * HOUR_MS}  # fmt: skip
    return runs.run(log, name, options=options, **POPULARITY)


@pytest.mark.slow
def test_under_drift_a_frozen_model_falls_behind(runs):
    lost = {}
    for drift in (0.0, 2.0):
        log = runs.log(drift=drift, **FEW)
        online, frozen = runs.run(log, **POPULARITY), copied(runs, log, 0)
        hour = (online.ts_ms - START_MS) // HOUR_MS
        before = hour < FIRST_COPY
        assert np.array_equal(online.logit[before], frozen.logit[before])
        lost[drift] = [gap(frozen, online, (hour >= a) & (hour < b)).mean()
                       for a, b in ((FIRST_COPY, 24), (24, 48))]  # fmt: skip
    early, later = lost[2.0]
    assert later > 2 * max(early, 0)
    assert later > 0.01
    # Without drift it loses what the other still learns, which is less.
    assert later > 2 * lost[0.0][1]


@pytest.mark.slow
def test_the_fresher_the_copy_the_smaller_the_loss(runs):
    log = runs.log(drift=2.0, **FEW)
    online = runs.run(log, **POPULARITY)
    rows = online.ts_ms >= START_MS + FIRST_COPY * HOUR_MS
    curve = [gap(copied(runs, log, hours), online, rows).mean() for hours in (1, 6, 0)]
    assert curve == sorted(curve)
    assert curve[2] > curve[0] + 0.01


@pytest.mark.slow
def test_a_break_shows_in_the_hourly_loss_and_the_model_recovers(runs):
    log = runs.log(break_at=0.5, **FEW)
    run = runs.run(log, **POPULARITY)
    hour = (run.ts_ms - START_MS) // HOUR_MS
    drawn = log_losses(run.logit, run.label) - log_losses(logits_of(run.p), run.label)
    for excess in (drawn, regrets(run.p, run.logit)):
        hourly = np.bincount(hour, excess) / np.bincount(hour)
        before, after, end = hourly[20:24].mean(), hourly[24:28].mean(), hourly[42:].mean()
        assert after > 1.5 * before
        assert end < 0.8 * after
    ne = [LossSums.of(run.logit[rows], run.label[rows]).ne
          for rows in ((hour >= 18) & (hour < 24), (hour >= 24) & (hour < 30))]  # fmt: skip
    assert ne[1] > ne[0]
