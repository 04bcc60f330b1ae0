import pytest

from infra.telemetry import NoTelemetry
from learners.catalog import build
from learners.modules.simtier import Skew
from stream import metric_table as t
from stream.method_metrics import FIGURES, publish_methods
from tests.support.batches import BatchMaker, small_spec

SMALL = {"threads": 1, "hidden": [16, 8], "cross_layers": 1, "cross_rank": 4}
METHODS = {
    "em3": {"on": True, "dim": 16, "layers": 1, "heads": 2, "memory_rows": 100},
    "make": {"on": True, "attention": 16, "hidden": [16], "replay_rows": 64},
    "simscore": {"on": True},
}


class Told(NoTelemetry):
    def __init__(self):
        self.values, self.kinds = {}, {}

    def _take(self, kind, name, value, attributes):
        self.values[name, tuple((attributes or {}).items())] = value
        self.kinds[name] = kind

    def total(self, name, value, attributes=None):
        self._take("counter", name, value, attributes)

    def gauge(self, name, value, attributes=None):
        self._take("gauge", name, value, attributes)


def test_what_methods_count_is_told_under_names_of_the_table():
    stream = BatchMaker(small_spec())
    learner = build("id_content", small_spec(), SMALL | METHODS)
    for _ in range(3):
        learner.learn_many(stream.batch(64))
    counts, told = learner.counts(), Told()
    publish_methods(told, learner, counts)
    assert told.values[t.EM3_MEMORY.name, ()] == counts["em3_memory_rows"] > 0
    hour = told.values[t.EM3_COSINE.name, ((t.AGE, "hour"),)]
    assert hour == counts["em3_memory_cosine_hour"] / 1_000
    assert 0 < hour <= 1
    # Nothing was replaced that was older than a day: no figure, instead of a cosine of 0.
    assert (t.EM3_COSINE.name, ((t.AGE, "more"),)) not in told.values
    assert told.values[t.MAKE_REPLAYED.name, ()] == counts["make_replayed"] > 0
    assert told.kinds[t.MAKE_REPLAYED.name] == "counter"
    # Of these only EM3 has a loss of its own; its contrast begins at the logarithm of the keys.
    assert told.values[t.METHOD_LOSS.name, ((t.METHOD, "em3"),)] > 0
    assert [name for name, _ in told.values].count(t.METHOD_LOSS.name) == 1


def test_figures_of_releases():
    counts = {
        "make_releases": 2, "make_passed": 0, "make_reverted": 1, "make_refused": 5,
        "make_trial_rows": 100, "make_trial_micronats": -250,
    }  # fmt: skip
    told = Told()
    publish_methods(told, object(), counts)
    assert told.values[t.MAKE_DIFFERENCE.name, ()] == pytest.approx(-0.00025)
    assert told.values[t.MAKE_RELEASES.name, ((t.OUTCOME, "reverted"),)] == 1
    told = Told()
    publish_methods(told, object(), counts | {"make_trial_rows": 0})
    assert (t.MAKE_DIFFERENCE.name, ()) not in told.values


def test_skew_of_served_histograms():
    counts = {f"simtier_{name}": n for n, name in enumerate(Skew().counts(), 1)}
    told = Told()
    publish_methods(told, object(), counts)
    for outcome, name in (("read", "rows"), ("differing",) * 2, ("other_version",) * 2):
        value = told.values[t.SERVED.name, ((t.OUTCOME, outcome),)]
        assert value == counts[f"simtier_served_{name}"]


def test_a_learner_without_methods_tells_nothing():
    told = Told()
    publish_methods(told, object(), {"steps": 3, "ids8_rows": 4})
    assert not told.values


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_attributes_are_those_of_the_row(figure):
    assert set(figure.attributes) == set(figure.row.attributes)
    assert figure.row in t.TABLE_OF_METRICS
