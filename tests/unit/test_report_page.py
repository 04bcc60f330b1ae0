import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from stream import cli
from stream.report.layout import figures_of
from stream.report.page import page_of, write_page
from stream.report.sections import sections_of
from stream.report.words import (
    count,
    duration,
    interval,
    local_time,
    number,
    percent,
    short_name,
    signed,
    zone,
)
from tests.support.evaluations import START_MS, evaluation

HOSTILE = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Collects the tags, visible words and scripts of a page, which must close what it opens."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.scripts, self.words = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(value, **settings):
    return page_of(value, title="A comparison", **settings)


def figures(value, offset_minutes=480):
    sections = sections_of(value, offset_minutes=offset_minutes, config_text="")
    return json.loads(figures_of(sections))


def names(value):
    return [s.name for s in sections_of(value, offset_minutes=0, config_text="a = 1")]


def test_a_comparison_has_every_section_in_order():
    assert names(evaluation()) == [
        "verdict", "scores", "time", "calibration", "cold", "slices", "freshness", "placebo",
        "run", "notes", "config",
    ]  # fmt: skip


def test_a_single_run_has_what_needs_no_second_arm():
    assert names(evaluation(("id_content",))) == [
        "summary", "scores", "time", "calibration", "cold", "slices", "run", "notes", "config",
    ]  # fmt: skip


def test_the_verdict_is_said_in_words_with_its_interval_and_rules():
    text = Reader(page(evaluation())).text
    assert "id_content is better than vw_history by 0.0072 nats per impression." in text
    assert "−0.00720 nats per impression 95 % interval [−0.00810, −0.00630]" in text
    assert "better on 3 of 3 days" in text
    assert "✓ the 95 % interval of the difference excludes 0" in text
    assert "– a placebo shows no gain not run" in text


@pytest.mark.parametrize(
    ("accept", "winner", "badge"),
    (
        (True, "id_content", "winner: id_content"),
        (False, "vw_history", "winner: vw_history"),
        (False, None, "not accepted"),
        (None, None, "no difference shown"),
    ),
)
def test_the_verdict_is_marked_with_its_decision(accept, winner, badge):
    value = evaluation()
    value["pairs"][0]["decision"] |= {"accept": accept, "winner": winner}
    assert f">{badge}</p>" in page(value)


def test_scores_are_shown_with_what_they_left_out():
    text = Reader(page(evaluation())).text
    assert "GAUC by user × batch 0.6262 skipped 72 % of groups, 48 % of impressions" in text
    # No arm has it: the reason is in the notes instead of a row of dashes.
    assert "GAUC by request" not in text
    assert "arms.id_content.metrics.gauc_request every request shows one item" in text


def test_meanings_of_scores_stand_beside_few_arms_and_are_pointed_at_beside_many():
    few = Reader(page(evaluation(tuple("abcd"))))
    many = Reader(page(evaluation(tuple("abcdef"))))
    assert ("td", {"class": "says"}) in few.tags
    assert ("td", {"class": "says"}) not in many.tags
    assert any(tag == "th" and "1 = right on average" in a.get("title", "") for tag, a in many.tags)


def test_what_has_no_value_is_a_dash_and_never_nan():
    value = evaluation()
    value["arms"][0]["metrics"]["auc"] = None
    value["pairs"][0] |= {"low": None, "high": None, "cold_start_regret": None}
    value["pairs"][0]["decision"] |= {"accept": None, "winner": None}
    text = page(value)
    assert re.search(r"AUC</th><td class=\"num\">–</td><td class=\"num\">0\.7", text)
    assert "no difference shown" in text
    # Plotly's own script has the word.
    assert "NaN" not in "".join(Reader(text).words) + json.dumps(figures(value))


@pytest.mark.parametrize(("arms", "drawn"), ((("one",), 19), (("a", "b", "c"), 27)))
def test_every_figure_is_one_that_plotly_accepts(arms, drawn):
    """Plotly's own validation knows every attribute; colours are names of the style sheet."""
    found = figures(evaluation(arms, days=1))
    assert len(found) == drawn
    for name, figure in found.items():
        text = re.sub(r'"@[a-z0-9/.]+"', '"rgba(1,2,3,0.5)"', json.dumps(figure))
        go.Figure(json.loads(text))
        assert any(v is not None for trace in figure["data"] for v in trace["y"]), name


def test_every_colour_is_in_the_style_sheet():
    value = evaluation(tuple("abcdefghij"))
    text = page(value)
    tokens = re.findall(r'"@([a-z0-9-]+)', json.dumps(figures(value)))
    used = set(tokens) | set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    defined = set(re.findall(r"--([a-z0-9-]+): ", text))
    assert len(used) > 10
    assert used <= defined


def test_figures_show_the_evaluations_numbers():
    value = evaluation()
    found = figures(value)
    days = value["arms"][1]["daily"]
    trace = found["time-0-0"]["data"][1]
    assert trace["x"] == [day["date"] for day in days]
    assert trace["y"] == pytest.approx([day["ne"] for day in days], rel=1e-5)
    daily = value["pairs"][0]["daily"]
    difference = found["time-1-0"]["data"][0]
    assert difference["y"] == pytest.approx([day["mean"] for day in daily], rel=1e-5)
    low = [y - e for y, e in zip(difference["y"], difference["error_y"]["arrayminus"], strict=True)]
    assert low == pytest.approx([day["low"] for day in daily], rel=1e-4)


def test_summed_differences_end_at_the_whole_difference():
    value = evaluation()
    total = sum(
        (a["log_loss"] - b["log_loss"]) * a["samples"]
        for a, b in zip(value["arms"][0]["hourly"], value["arms"][1]["hourly"], strict=True)
    )
    assert figures(value)["time-1-1"]["data"][0]["y"][-1] == pytest.approx(total, rel=1e-4)


def test_times_are_those_of_the_zone():
    assert figures(evaluation(), 480)["time-0-1"]["data"][0]["x"][0] == "2022-04-30 00:00:00"
    assert figures(evaluation(), 0)["time-0-1"]["data"][0]["x"][0] == "2022-04-29 16:00:00"
    assert "2022-04-30 00:00 to 2022-05-02 23:59 (UTC+08:00)" in page(
        evaluation(), offset_minutes=480
    )


def test_an_hour_without_rows_breaks_the_line():
    value = evaluation(("one",))
    del value["arms"][0]["hourly"][5:8]
    line = figures(value)["time-0-3"]["data"][1]
    assert line["y"][5] is None
    assert line["y"][6] is not None


def test_the_running_mean_is_weighted_by_impressions():
    value = evaluation(("one",))
    value["arms"][0]["hourly"] = [
        {"ts_ms": START_MS + i * 3_600_000, "samples": n, "positives": 1, "log_loss": loss}
        for i, (n, loss) in enumerate([(10, 1.0), (30, 0.2), *[(5, 0.5)] * 6])
    ]
    y = figures(value)["time-0-3"]["data"][1]["y"]
    assert y[:2] == pytest.approx([1.0, 0.4], rel=1e-5)
    assert y[7] == pytest.approx(0.5, rel=1e-5)  # six hours: both of the first are over


def test_noise_of_calibration_narrows_with_positives():
    value = evaluation(("one",), days=2)
    value["arms"][0]["daily"][0] |= {"samples": 200, "positives": 100}
    value["arms"][0]["daily"][1] |= {"samples": 20_000, "positives": 10_000}
    high = figures(value)["calibration-1-0"]["data"][1]["y"]
    assert high == pytest.approx([1 + 1.96 * (0.5 / n) ** 0.5 for n in (100, 1e4)], rel=1e-5)


def test_windows_with_labels_that_may_still_change_are_shaded():
    value = evaluation(("one",), days=2)
    assert figures(value)["time-0-0"]["layout"]["shapes"] == []
    value["arms"][0]["daily"][1]["unsettled"] = 212
    value["arms"][0]["hourly"][-1]["unsettled"] = 212
    layout = figures(value)["time-0-0"]["layout"]
    assert [(shape["x0"], shape["x1"]) for shape in layout["shapes"]] == [(0.5, 1.5)]
    assert layout["annotations"][0]["text"] == "212 not settled"
    shape = figures(value)["calibration-1-1"]["layout"]["shapes"][0]
    assert (shape["x0"], shape["x1"]) == ("2022-05-01 23:00:00", "2022-05-02 00:00:00")


def test_colours_of_differences_say_on_which_side_the_interval_lies():
    value = evaluation(("a", "b"))
    value["pairs"][0]["slices"] = [
        {"by": "x", "value": v, "n": 9, "share": 0.3, "mean": m, "low": m - 1, "high": m + 1}
        for v, m in (("better", -2.0), ("worse", 2.0), ("unsure", 0.5))
    ]
    colours = {
        trace["marker"]["color"]: trace["x"] for trace in figures(value)["slices-0-0"]["data"]
    }
    assert colours == {"@good": [-2.0], "@bad": [2.0], "@neutral": [0.5]}


def test_a_figure_without_values_says_so():
    value = evaluation(("one",))
    for row in (*value["arms"][0]["daily"], *value["arms"][0]["hourly"]):
        row["auc"] = None
    found = figures(value)
    assert "no values" in found["time-0-4"]["layout"]["annotations"][0]["text"]
    assert "no values" in found["time-0-5"]["layout"]["annotations"][0]["text"]
    assert found["time-0-0"]["layout"]["annotations"] == []


def test_what_lies_beyond_the_axis_of_slices_is_marked_at_its_end():
    value = evaluation(("a",))
    rows = value["arms"][0]["slices"]
    rows[0] |= {"calibration": 40.0, "share": 0.003}
    figure = figures(value)["slices-0-0"]
    high = figure["layout"]["xaxis"]["range"][1]
    assert high < 2
    inside, beyond = figure["data"]
    assert beyond["marker"]["symbol"][0] == "triangle-right-open"
    assert high - 0.1 < beyond["x"][0] < high
    assert "Calibration 40.0000" in beyond["text"][0]
    n, positives = rows[1]["n"], rows[1]["positives"]
    half = 1.96 * ((1 - positives / n) / positives) ** 0.5
    assert inside["error_x"]["array"][0] == pytest.approx(half, rel=1e-5)


def test_slices_that_divide_nothing_or_hold_next_to_nothing_are_left_to_the_table():
    value = evaluation(("a",))
    rows = value["arms"][0]["slices"]
    rows[0]["share"] = 0.001
    value["arms"][0]["slices"] = [
        r for r in rows if (r["by"], r["value"]) != ("missing vector", "yes")
    ]
    labels = figures(value)["slices-0-0"]["layout"]["yaxis"]["ticktext"]
    assert "<b>item age</b>" in labels
    assert labels[:2] == ["<b>item exposures</b>", "1-9 · 27.0 %"]
    assert "<b>missing vector</b>" not in labels
    assert "missing vector: no" in Reader(page(value)).text


def test_what_comes_from_data_is_text_wherever_it_stands():
    value = evaluation((HOSTILE, "</script><img src=x onerror=alert(1)>"))
    for arm in value["arms"]:
        arm["slices"][0]["value"] = arm["slices"][0]["by"] = HOSTILE
    value["pairs"][0]["slices"][0]["value"] = HOSTILE
    value["pairs"][0]["decision"]["words"] = HOSTILE
    value["pairs"][0]["decision"]["rules"][0]["detail"] = HOSTILE
    value["placebo"][0]["arm"] = value["freshness"][0]["name"] = HOSTILE
    value["label"] = HOSTILE
    value["reasons"][HOSTILE] = HOSTILE
    text = page_of(value, title=HOSTILE, config_text=HOSTILE, version=HOSTILE)
    reader = Reader(text)
    assert [tag for tag, _ in reader.tags].count("script") == 3
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in reader.tags)
    assert reader.text.count(HOSTILE) >= 8
    # Plotly reads tags in its texts as well: they are escaped once more there.
    data = next(s for s in reader.scripts if s.startswith("{"))
    assert "<" not in data
    assert "<script>" not in json.dumps(json.loads(data))


def test_nothing_is_fetched_and_only_known_scripts_run():
    reader = Reader(page(evaluation()))
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "content" in a)
    assert "default-src 'none'" in policy
    assert len(re.findall(r"'sha256-[\w+/=]+'", policy)) == 2
    assert "script-src 'sha256" in policy
    sources = [a[k] for _, a in reader.tags for k in ("src", "href") if k in a]
    assert sources
    assert all(s.startswith("#") or s == "data:," for s in sources)


def test_navigation_leads_to_the_sections():
    reader = Reader(page(evaluation(), config_text="a = 1"))
    links = [a["href"][1:] for tag, a in reader.tags if tag == "a"]
    assert links == [a["id"] for tag, a in reader.tags if tag == "section"]
    assert len(links) == 11


def test_a_page_of_a_month_by_the_hour_stays_small(tmp_path):
    value = evaluation(("a", "b", "c", "d"), days=30)
    write_page(value, tmp_path / "report.html", title="A month")
    assert (tmp_path / "report.html").stat().st_size < 8 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_evaluation_of_no_rows_makes_a_page():
    value = evaluation(("one",))
    value |= dict.fromkeys(("from_ms", "to_ms"), None) | {"rows": 0, "missing": []}
    arm = value["arms"][0]
    arm["metrics"] = dict.fromkeys(arm["metrics"], None)
    arm |= {key: [] for key in ("reliability", "daily", "hourly", "learning_curve", "slices")}
    assert figures(value) == {}
    assert "0 impressions" in Reader(page(value)).text


def test_numbers_are_written_as_people_read_them():
    assert [number(0.58294), number(-1.5, 1), number(None)] == ["0.5829", "−1.5", "–"]
    assert [signed(0.00314), signed(-0.00314), signed(-1e-9), signed(None)] == [
        "+0.0031", "−0.0031", "0.0000", "–",
    ]  # fmt: skip
    assert interval({"low": -0.2, "high": 0.1}, 1) == "[−0.2, +0.1]"
    assert interval({"low": None, "high": 0.1}) == "–"
    assert [count(59908), percent(0.1234), percent(None)] == ["59,908", "12.3 %", "–"]
    assert [duration(600_000), duration(5_400_000), duration(500), duration(None)] == [
        "10 min", "1.5 h", "500 ms", "–",
    ]  # fmt: skip
    assert [zone(480), zone(-210), zone(0)] == ["UTC+08:00", "UTC−03:30", "UTC"]
    assert local_time(1e18, 0) == "1000000000000000000 ms"
    assert short_name("<" * 9, 4) == "&lt;&lt;&lt;…"


def test_the_verb_makes_the_page_again(tmp_path, capsys):
    content = {
        "evaluation": evaluation(),
        "options": {"offset_minutes": 480},
        "configs": {
            "id_content": {"ranker": {"name": "id_content", "options": {"rate": 0.1}}},
            "vw_history": {"ranker": {"name": "vw", "options": {"rate": 0.1}}},
        },
    }
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert cli.run(["report", str(tmp_path), "--title", "Monday"]) == 0
    told = json.loads(capsys.readouterr().out)
    text = Reader((tmp_path / "report.html").read_text()).text
    assert told["page"] == str(tmp_path / "report.html")
    assert "Monday" in text
    assert "(UTC+08:00)" in text
    assert "# vw_history differs in # ranker.name: id_content -&gt; vw" in text.replace(
        "->", "-&gt;"
    )
    assert "predicted at impression" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    ((None, "cannot be read"), ("{", "is not JSON"), ("[]", "no evaluation"), ("{}", "with arms")),
)
def test_the_verb_refuses_what_is_no_report(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert cli.run(["report", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert str(tmp_path / "report.json") in message
