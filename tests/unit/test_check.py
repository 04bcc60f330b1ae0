"""`millrace check`: where each field goes, what times imply, what a log lacks."""

import json

import pytest

from learners import catalog
from stream import cli
from stream.codec_write import encode_event, encode_key, impression_body
from stream.commands.check import duration
from stream.commands.check_facts import facts_of
from stream.feature_plan import plan
from stream.join import JoinState
from stream.record_log import RecordLogWriter
from tests.support.logs import write_log
from tests.support.replays import RANKED, ranked_config, write_config
from tests.support.streams import T0, click


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "c.toml", ranked_config())


def check(capsys, *arguments):
    assert cli.run(["check", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def named(rows, name):
    return next(row for row in rows if row["name"] == name)


def test_every_field_says_where_it_is_decoded_and_which_column_it_is():
    facts = facts_of(ranked_config())
    fields = facts["features"]
    assert [f["name"] for f in fields] == [f["name"] for f in RANKED["feature"]]
    assert named(fields, "tab")["decoded"] == "codec, from the impression event"
    assert named(fields, "tab")["column"] == "ids_BF[:, 2]"
    assert named(fields, "tag")["decoded"].startswith("item table")
    assert named(fields, "tag")["column"] == "bags_BL[1]"
    assert named(fields, "gap")["decoded"].startswith("join, frozen")
    assert named(fields, "item")["table"] == "own rows, plain item key, shared with history recent"
    assert named(fields, "user")["table"] == "own rows, salted by the field's name"
    assert facts["histories"][0]["column"] == "bags_BL[0]"


def test_columns_are_those_of_the_specification():
    config = ranked_config()
    spec, facts = plan(config).spec, facts_of(config)
    dense = [d.name for d in spec.dense]
    places = {name: i for c in facts["counters"] for name, i in c["columns"].items()}
    assert places.items() <= {name: i for i, name in enumerate(dense)}.items()
    gap = named(facts["features"], "gap")["column"]
    assert gap == f"dense_BD[:, {dense.index('gap')}]"
    taken = {
        *places.values(),
        dense.index("gap"),
        *map(dense.index, ("session", "clicked", "seen")),
    }
    assert taken == set(range(len(dense)))


def test_counters_say_whose_state_they_are():
    counters = facts_of(ranked_config())["counters"]
    states = {c["name"]: c["state"] for c in counters}
    assert states == {
        "prior": "global", "user": "user", "item": "global", "user_tab": "user", "tag": "global"
    }  # fmt: skip
    assert len(named(counters, "item")["columns"]) == 4  # a decayed copy beside the plain one


def test_times_and_labels():
    facts = facts_of(ranked_config())
    times = facts["times"]
    assert times["features_fresh_after_ms"] == 500
    assert times["weights_fresh_after_ms"] == 6_000 + 500 + 60_000
    assert times["weights_fresh_after_ms_busy"] == 6_500
    uses = [(row["kind"], row["use"]) for row in facts["labels"]]
    assert uses == [("click", "trained"), ("like", "measured")]


def test_options_of_the_ranker_are_resolved():
    ranker = {"name": "id_content", "label": "click", "options": {"cross_rank": 24}}
    options = facts_of(ranked_config(ranker=ranker))["ranker"]["options"]
    defaults = catalog.config_of("id_content", {})
    assert options["cross_rank"] == 24
    assert options["hidden"] == defaults.hidden
    assert options["embedding"]["lr"] == defaults.embedding.lr


def test_memory_bounds_are_rows_times_bytes():
    config = ranked_config()
    made = plan(config)
    opened = JoinState(made.shape, made.params()).opened
    rows = facts_of(config)["memory"]
    first = next(m for m in rows if m["setting"] == "stream.open_max")
    assert first["rows_max"] == config.stream.open_max
    assert first["bytes_per_row"] == sum(a.nbytes for a in opened) // len(opened.key)
    assert all(m["bytes_max"] == m["rows_max"] * m["bytes_per_row"] for m in rows)


@pytest.mark.parametrize(("hours", "warned"), ((95, True), (96, False)))
def test_retention_must_outlast_snapshots_twice(hours, warned):
    topics = {"retention_hours": hours, "snapshot_age_hours": 48}
    lines = facts_of(ranked_config(topics=topics))["warnings"]
    assert any("retention_hours" in line for line in lines) == warned


def test_a_log_whose_gaps_the_clock_follows_late_is_warned_of(config, tmp_path, capsys):
    log = write_log(tmp_path / "a.parquet", samples=50)
    given = ("--config", config, "--log", log)
    for jump, told in ((600_000, 0), (1, 1)):
        facts = check(capsys, *given, "--set", f"stream.max_jump_ms={jump}")
        assert sum("set stream.max_jump_ms" in line for line in facts["warnings"]) == told


def test_a_log_says_how_many_events_have_each_field(config, tmp_path, capsys):
    log = write_log(tmp_path / "a.parquet", samples=50)
    found = check(capsys, "--config", config, "--log", log)["log"]
    assert found["share_with_field"] == {
        "user": 1.0, "item": 1.0, "tab": 1.0, "gap": None, "session": None, "clicked": None,
        "seen": None, "tag": 1.0
    }  # fmt: skip
    assert found["items"] == 40
    assert list(found["unknown_fields"]) == ["context.city"]
    assert found["unknown_fields"]["context.city"] == found["impressions"] >= 50
    assert found["rejected_by_reason"] == {}


def test_fields_that_few_or_no_events_have(tmp_path, capsys):
    features = [
        *RANKED["feature"],
        {"name": "city", "path": "context.city", "kind": "multi-id"},
        {"name": "age", "path": "context.age", "kind": "dense"},
        {"name": "brand", "path": "item.attributes.brand"},
    ]
    config = write_config(tmp_path / "c.toml", ranked_config(feature=features))
    contexts = ({"tab": 1, "city": ["a"]}, {"tab": 1}, {}, {"tab": 0, "extra": 5})
    with RecordLogWriter(
        tmp_path / "a.parquet", {"impressions": 1, "clicks": 1}, ordered=False
    ) as log:
        for offset, context in enumerate(contexts):
            body = impression_body(request_id=offset, user_id=1, ts_ms=T0, items=[{"item_id": 1}],
                                   context=context)  # fmt: skip
            value = encode_event("impression", body)
            log.write("impressions", 0, offset, T0, encode_key(1), value)
        log.write("impressions", 0, 9, T0, None, b"\xc1")
        log.write("clicks", 0, 0, T0, *click(1, 1, 0, "poke", 0))
        log.write("clicks", 0, 1, T0, *click(1, 1, 0, "click", 0))
    facts = check(capsys, "--config", config, "--log", tmp_path / "a.parquet")
    found, shares = facts["log"], facts["log"]["share_with_field"]
    assert (shares["tab"], shares["city"], shares["age"]) == (0.75, 0.25, 0.0)
    assert shares["brand"] is None  # the log has no items
    assert found["unknown_fields"] == {"context.extra": 1}
    assert found["click_kinds"] == {"(not configured)": 1, "click": 1}
    assert found["rejected_by_reason"] == {"malformed": 1}
    assert "feature 'age': no event has it" in facts["warnings"]
    assert "label 'like': no click of this kind" in facts["warnings"]


def test_tables_for_a_person(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    log = write_log(tmp_path / "a.parquet", samples=20)
    assert cli.run(["check", "--config", str(config), "--log", str(log)]) == 0
    out = capsys.readouterr().out
    for words in ("context.tab", "ids_BF[:, 2]", "user × tab", "feature[tab].rows_max", "1.11 min",
                  "100.0%", "embedding.lr", "attributes-1-16-", "warning: counters with key 'tag'",
                  "field nobody reads: context.city"):  # fmt: skip
        assert words in out, words


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--set", "stream.latenes_ms=1"), "did you mean 'lateness_ms'?"),
        (("--set", "ranker.options.cross_rnk=1"), "did you mean 'cross_rank'?"),
        (("--set", "ranker.name=nothing"), "[ranker]: learner: unknown name 'nothing'"),
        (("--set", "counter.0.keys=['nobody']"), "key 'nobody' is no id feature"),
        (("--config", "nowhere.toml"), "cannot be read"),
        (("--config", "nothing"), "preset 'nothing'"),
        (("--log", "nowhere.parquet"), "there is no such file"),
    ),
)
def test_a_bad_configuration_is_code_two_with_the_reason(config, capsys, arguments, words):
    given = arguments if "--config" in arguments else ("--config", str(config), *arguments)
    assert cli.run(["check", *given]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("ms", "text"),
    ((0, "0 ms"), (20, "20 ms"), (500, "0.5 s"), (5_000, "5 s"), (90_000, "1.5 min"),
     (21_600_000, "6 h"), (172_800_000, "2 d")),
)  # fmt: skip
def test_durations(ms, text):
    assert duration(ms) == text
