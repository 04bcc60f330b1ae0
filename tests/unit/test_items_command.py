"""`millrace items`: one item with its neighbours, the map of all, and what is refused."""

import html
import json
import re

import numpy as np
import pytest

from embeddings.neighbours import nearest_by_cosine, plane
from stream.cli import run
from stream.codec_write import encode_event, encode_key, item_body
from stream.record_log import RecordLogWriter
from stream.report.item_map import MapPoint, map_section
from tests.support.streams import T0


def titled_log(path):
    """Items of two tags; item 7 has no content, item 8 a title that would be a tag of HTML."""
    with RecordLogWriter(path, {"items": 1}, ordered=True) as log:
        for item in range(12):
            body = item_body(
                item_id=item, ts_ms=T0 + item,
                title="<img src=x onerror=alert(1)>" if item == 8 else f"Title {item}",
                attributes={} if item == 7 else {"tag": ["cats", "dogs"][item % 2], "n": item},
            )  # fmt: skip
            log.write("items", 0, item, T0 + item, encode_key(item), encode_event("item", body))
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return titled_log(tmp_path_factory.mktemp("items") / "log.parquet")


@pytest.fixture(scope="module")
def book(log):
    out = log.with_name("book.safetensors")
    small = ("--levels", "2", "--size", "4", "--anchors", "5", "--anchors-of-item", "2")
    assert run(["codes", "fit", str(log), "--out", str(out), *small]) == 0
    return out


def shown(capsys, *arguments):
    assert run(["items", "show", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_neighbours_are_those_of_brute_force():
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    vectors[9] = 0
    places, cosines = nearest_by_cosine(vectors, 3, 60)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    expected = [n for n in np.argsort(-(unit @ unit[3]), kind="stable") if n not in (3, 9)]
    assert places.tolist() == expected
    assert np.allclose(cosines, (unit @ unit[3])[expected], atol=1e-6)
    assert not len(nearest_by_cosine(vectors, 9, 5)[0])


def test_the_plane_holds_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 6)) * [9, 1, 4, 1, 1, 1] + 5).astype(np.float32)
    xy, shares = plane(vectors)
    assert abs(np.corrcoef(xy[:, 0], vectors[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(xy[:, 1], vectors[:, 2])[0, 1]) > 0.99
    assert shares[0] == pytest.approx(81 / 101, abs=0.05)
    assert shares[0] > shares[1] > 0
    assert plane(np.ones((4, 3), np.float32))[1] == []


def test_an_item_is_shown_with_codes_and_titles_of_its_neighbours(log, book, capsys):
    told = shown(capsys, 4, "--store", log, "--codebook", book, "--titles", log)
    assert (told["item"], told["title"]) == (4, "Title 4")
    assert told["attributes"] == {"tag": "cats", "n": 4}
    assert told["norm"] == pytest.approx(1, abs=1e-3)
    assert list(told["codes"]) == ["rq1", "rq2", "prefix2", "vq"]
    nearest = told["neighbours"][:4]
    assert {one["item"] % 2 for one in nearest} == {0}
    assert nearest[0]["title"] == f"Title {nearest[0]['item']}" or nearest[0]["item"] == 8
    assert [n["cosine"] for n in told["neighbours"]] == sorted(
        (n["cosine"] for n in told["neighbours"]), reverse=True
    )
    assert {n["shared_path"] for n in told["neighbours"]} <= {0, 1, 2}


def test_an_item_without_vector_says_so(log, capsys):
    told = shown(capsys, 7, "--store", log)
    assert (told["norm"], told["neighbours"], told["codes"]) == (None, [], {})
    assert told["reason"] == "the item has no vector"
    assert run(["items", "show", "7", "--store", str(log)]) == 0
    assert "the item has no vector" in capsys.readouterr().out


def test_what_is_not_there_is_refused(log, book, tmp_path, capsys):
    for arguments, words in (
        (["show", "99", "--store", log], "item '99': not among the 12 items"),
        (["show", "1", "--store", tmp_path / "none"], "no such file"),
        (["show", "1", "--store", tmp_path], "it has no CURRENT"),
        (["show", "1", "--store", log, "--codebook", log], "codes fit"),
        (["show", "1", "--store", log, "--codebook", book, "--set", "items.seed=4"],
         "is for vectors of encoder"),
        (["map", "--store", log, "--html", tmp_path / "x.html", "--group", "no"], "'no'"),
    ):  # fmt: skip
        assert run(["items", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_map_is_one_page_that_fetches_and_runs_nothing_of_the_data(log, book, tmp_path, capsys):
    out = tmp_path / "map.html"
    where = ("--store", str(log), "--titles", str(log), "--html", str(out), "--codebook", str(book))
    assert run(["items", "map", *where, "--group", "tag"]) == 0
    assert "11 items by tag" in capsys.readouterr().out
    page = out.read_text()
    traces = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])["map-0-0"]["data"]
    assert {t["name"]: len(t["x"]) for t in traces} == {"cats": 6, "dogs": 5}
    texts = [text for trace in traces for text in trace["text"]]
    assert sum("Title" in text for text in texts) == 10
    assert any(html.escape("<img src=x onerror=alert(1)>") in text for text in texts)
    assert "<img" not in page
    assert "default-src 'none'" in page
    assert [p.name for p in tmp_path.iterdir()] == ["map.html"]


def test_small_groups_share_a_faint_colour():
    points = [
        MapPoint(x=i, y=-i, group=f"g{min(i, 20 + i % 8)}", lines=[str(i)]) for i in range(99)
    ]
    points.append(MapPoint(x=0, y=0, group=None, lines=[]))
    section = map_section(points, grouped_by="<g>", shares=[0.5, 0.25])
    names = [trace["name"] for trace in section.cards[0].figures[0]["data"]]
    assert names[0] == "all others"
    assert sorted(names[1:]) == [f"g{i}" for i in range(20, 28)]
    assert "&lt;g&gt;; 20 smaller groups" in section.lead
    assert "75%" in section.cards[0].note
