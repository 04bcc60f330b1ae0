"""The map of items in a real Chromium: it draws, shows an item, and fetches nothing."""

import os
import shutil

import pytest

from stream.report.item_map import MapPoint, map_section
from stream.report.page import assembled

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("MILLRACE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; install it or name one in MILLRACE_CHROMIUM"
)
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def test_pointing_at_an_item_shows_its_title_as_text(tmp_path):
    points = [
        MapPoint(x=0, y=0, group="a", lines=["<b onclick=x>one</b>", "item 1"]),
        MapPoint(x=1, y=1, group="b", lines=["two"]),
    ]
    section = map_section(points, grouped_by="kind", shares=[0.6, 0.3])
    path, complaints, requests = tmp_path / "map.html", [], []
    path.write_text(assembled([section], title="Items", meta="", footer="", brand="items"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn='1']")
        assert page.locator(".scatterlayer .trace path.point").count() == 2
        page.locator("[data-figure]").scroll_into_view_if_needed()
        box = page.locator(".scatterlayer path.point").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector(".hoverlayer .hovertext")
        shown = page.locator(".hoverlayer .hovertext").first.text_content()
        browser.close()
    assert "<b onclick=x>one</b>" in shown
    assert "item 1" in shown
    assert complaints == []
    assert requests == [path.as_uri()]
