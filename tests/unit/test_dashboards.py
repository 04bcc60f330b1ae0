import json
import re

import promql_parser
import pytest
import yaml

from stream import metric_table as t
from tests.support import dashboard

ROOT = dashboard.TARGET.parents[2]
BOARD = json.loads(dashboard.TARGET.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h", "$instance": ".*"}
BY_NAME = {dashboard.prometheus_name(row): row for row in t.TABLE_OF_METRICS}


def replaced(expr):
    for variable, text in VARIABLES.items():
        expr = expr.replace(variable, text)
    return expr


def test_the_file_is_what_the_generator_writes():
    assert dashboard.TARGET.read_text() == dashboard.text(), "run python -m tests.support.dashboard"


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_expressions_are_promql_on_metrics_and_attributes_of_the_table(expr):
    text = replaced(expr)
    assert "$" not in text
    promql_parser.parse(text)
    names = dashboard.names_in(expr)
    assert names
    assert names <= set(BY_NAME)
    grouped = {word for group in re.findall(r"by \(([^)]*)\)", expr) for word in group.split(", ")}
    matched = set(re.findall(r'[{ ]([a-z_]+)=~?"', expr))
    for name in names:
        known = {dashboard.label(a) for a in BY_NAME[name].attributes}
        assert grouped <= known | {"le"}
        assert matched <= known | {"instance"}


def test_a_histogram_and_only_that_is_read_by_its_parts():
    for expr in EXPRESSIONS:
        for name, suffix in re.findall(r"\b([a-z][a-z0-9_]*?)(_bucket|_sum|_count)?\{", expr):
            assert bool(suffix) == (BY_NAME[name].metric.kind == "histogram"), expr


def test_every_metric_is_shown_or_listed_as_unused():
    shown = {BY_NAME[name].name for expr in EXPRESSIONS for name in dashboard.names_in(expr)}
    assert shown == {row.name for row in t.TABLE_OF_METRICS if row.use == "panel"}


@pytest.mark.parametrize(
    ("row", "name"),
    (
        (t.EVENTS, "ranker_ingest_events_total"),
        (t.PROCESS, "messaging_process_duration_seconds"),
        (t.WATERMARK, "ranker_watermark_timestamp_seconds"),
        (t.OPEN, "ranker_join_open_windows"),
        (t.AUC, "ranker_quality_auc"),
    ),
)
def test_names_are_translated_as_an_otlp_receiver_does(row, name):
    assert dashboard.prometheus_name(row) == name


def test_form():
    assert BOARD["schemaVersion"] == 42
    titles = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Freshness", "Ingest", "Items", "Join", "Quality", "Methods"]
    variables = {v["name"]: v for v in BOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance"}
    assert variables["instance"]["definition"] == "label_values(target_info, instance)"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["interval"] == "5s"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert not any("job=" in expr for expr in EXPRESSIONS)


def test_panels_do_not_overlap():
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_provider_reads_the_folder_that_compose_mounts():
    provider = yaml.safe_load((ROOT / "infra/dashboards/provider.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = [
        volume.split(":")[:2]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./infra/dashboards")
    ]
    assert ["./infra/dashboards/millrace.json", f"{folder}/millrace.json"] in mounts
    assert any(source.endswith("/provider.yaml") for source, _ in mounts)
