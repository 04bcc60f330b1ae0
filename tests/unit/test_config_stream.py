"""The configuration of a run: names across components, presets, and what differs."""

import pytest

from infra import config as loader
from infra.config_text import render
from infra.errors import InputError
from learners import catalog
from stream.checkpoint import misfits
from stream.composition import compose, load_config
from stream.config import Config
from stream.feature_plan import plan
from tests.support.replays import RANKED, ranked_config
from tests.support.streams import SMALL, small_config


def built(**tables):
    return loader.build(Config, SMALL | tables)


@pytest.mark.parametrize("name", [path.stem for path in sorted(loader.PRESETS.glob("*.toml"))])
def test_presets_load_plan_and_fit_their_learner(name):
    if "label" not in loader.read_toml(loader.preset_path(name)):
        name = f"default+{name}"  # a method, for the ranker of another preset
    config = load_config(name, ())
    made = plan(config)
    assert made.spec.trained_label == config.ranker.label
    catalog.config_of(config.ranker.name, config.ranker.options)
    again = load_config(name, tuple(f"{k}={v}" for k, v in {"stream.batch_size": 7}.items()))
    assert again.stream.batch_size == 7


def test_methods_join_a_preset_by_their_names(tmp_path):
    (tmp_path / "content.toml").write_text("[ranker.options.linear_content]\non = true\n")
    config = load_config(f"default+base+{tmp_path / 'content.toml'}", ("stream.batch_size=9",))
    assert config.ranker.options["linear_content"] == {"on": True}
    assert config.stream.batch_size == 9
    assert config.label == load_config(None, ()).label


def test_a_configuration_is_its_own_text(tmp_path):
    config = ranked_config()
    file = tmp_path / "c.toml"
    file.write_text(render(config))
    assert loader.load(Config, [file]) == config


@pytest.mark.parametrize(
    ("tables", "words"),
    (
        ({"label": {}}, "no [label.KIND] is configured"),
        ({"ranker": {"name": "base_rate", "label": "buy"}}, "expected one of ['click', 'like']"),
        ({"label": {"click": {"window_ms": 0}}}, "window_ms must be positive"),
        ({"feature": [*SMALL["feature"], {"name": "tab", "path": "user"}]}, "given twice"),
        ({"feature": [{"name": "x", "path": "contxt.tab"}]}, "path 'contxt.tab' is unknown"),
        ({"feature": [{"name": "x", "path": "user", "kind": "dense"}]}, "is unknown for kind"),
        ({"feature": [{"name": "x", "path": "user", "dim": 0}]}, "must be at least 1"),
        ({"feature": [{"name": "x", "path": "user", "dims": 8}]}, "did you mean 'dim'?"),
        ({"feature": [{"name": "x", "path": "user", "kind": "ids"}]}, "feature"),
        ({"counter": [{"name": "c", "keys": ["taab"]}]}, "key 'taab' is no id feature"),
        ({"counter": [{"name": "c", "keys": ["gap"]}]}, "key 'gap' is no id feature"),
        ({"counter": [{"name": "c", "keys": []}]}, "keys is empty"),
        ({"feature": SMALL["feature"][:1], "counter": []}, "needs a [[feature]] with path 'item'"),
        ({"stream": {"latness_ms": 5}}, "did you mean 'lateness_ms'?"),
        ({"stream": {"lateness_ms": -1}}, "must not be negative"),
        ({"stream": {"batch_size": 0}}, "stream.batch_size must be at least 1"),
        ({"stream": {"batch_size": "many"}}, "stream.batch_size"),
        ({"stream": {"predict_at": "never"}}, "predict_at"),
        ({"labels": {}}, "did you mean 'label'?"),
        (
            {"label": {f"k{i}": {"window_ms": 5} for i in range(32)}, "ranker": {"label": "k1"}},
            "at most 31 kinds",
        ),
    ),
)
def test_what_is_wrong_is_said(tables, words):
    with pytest.raises(InputError) as caught:
        built(**tables)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_the_ranker_are_checked_where_it_is_made():
    config = built(ranker={"name": "base_rate", "label": "click", "options": {"prior_rat": 0.1}})
    with pytest.raises(InputError, match=r"\[ranker\].*did you mean 'prior_rate'"):
        compose(config, None)


def test_windows_and_click_kinds():
    config = built(history=[{"name": "h", "kinds": ["watch", "click", "buy"], "length": 3}])
    assert config.window_ms == 6_000
    assert config.click_kinds == ("click", "like", "buy", "watch")
    assert config.feature_named("tab").path == "context.tab"


def test_what_state_depends_on_must_fit_and_the_rest_may_change():
    saved = loader.to_dict(small_config())
    assert misfits(saved, small_config()) == []
    free = built(
        snapshot={"every_samples": 3}, kafka={"group": "other"}, worker={"tick_ms": 5},
        stream=SMALL["stream"] | {"max_slice_events": 9, "buffered_max": 99, "idle_ms": 5},
    )  # fmt: skip
    assert misfits(saved, free) == []
    assert misfits(saved, small_config(lateness_ms=1)) == ["stream.lateness_ms: 500 -> 1"]
    features = [dict(f, dim=8) if f["name"] == "tab" else f for f in SMALL["feature"]]
    assert misfits(saved, built(feature=features)) == ["feature[tab].dim: 16 -> 8"]
    lines = misfits(saved, built(label={"click": {"window_ms": 9}, "like": {"window_ms": 6_000}}))
    assert lines == ["label.click.window_ms: 2000 -> 9"]


def test_the_plan_puts_each_field_where_it_says():
    made = plan(ranked_config())
    assert [c.where for c in made.ids] == ["user", "item", "event"]
    assert [c.where for c in made.multis] == ["multi-attribute"]
    assert [s.path for s in made.attributes.multis] == ["item.attributes.tag"]
    assert [s.path for s in made.impression_spec.ids] == ["context.tab"]
    assert [c.is_global for c in made.counters] == [False, True, False, True]
    assert [c.decayed for c in made.counters] == [-1, 0, -1, -1]
    names = [d.name for d in made.spec.dense]
    assert names[:1] == ["prior"]
    assert names[-3:] == ["session", "clicked", "seen"]
    assert (
        len(names) == 1 + 2 * len(RANKED["counter"]) + 2 + 1 + 4
    )  # one counter has a decayed copy, one `open`
    assert made.spec.content_dim == 16
    assert made.shape.histories == (5,)
