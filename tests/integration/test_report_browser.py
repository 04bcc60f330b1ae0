"""The report page in a real Chromium: what it draws, fetches and complains about."""

import os
import shutil

import pytest

from stream.report.page import write_page
from tests.support.evaluations import evaluation

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("MILLRACE_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium; install it or name one in MILLRACE_CHROMIUM"
)
# Without these, Chromium looks up its maker's hosts at every start.
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_MS = 90_000
HOSTILE = "</script><script>document.title='taken'</script><b onclick=x>arm"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


class Opened:
    """The page of an evaluation in a window of its own, with all that it said and asked for."""

    def __init__(self, browser, folder, value):
        self.complaints, self.requests = [], []
        path = folder / "report.html"
        write_page(value, path, title="In a browser", config_text="a = 1", offset_minutes=480)
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.settle()

    def settle(self, selector="html[data-drawn]"):
        self.page.wait_for_selector(selector)

    def drawn(self):
        """Names of the figures with a plot in them that has a size."""
        return self.page.evaluate(
            "[...document.querySelectorAll('[data-figure]')].filter(p => {"
            " const svg = p.querySelector('svg.main-svg');"
            " return svg && svg.getBoundingClientRect().height > 100 && p.querySelector('.trace')"
            "}).map(p => p.dataset.figure)"
        )

    def colours(self):
        return self.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle("
            "document.querySelector('[data-figure=\"run-0-0\"] .xtick text')).fill]"
        )

    def outside(self):
        """How many blocks reach beyond the window."""
        return self.page.evaluate(
            "[...document.querySelectorAll('.card, .verdict, .main-svg')].filter("
            "e => e.getBoundingClientRect().right > innerWidth).length"
        )

    def is_quiet(self):
        """Whether nothing was complained about, and nothing fetched but the file itself."""
        fetched = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        return self.complaints == [] and [url.partition(":")[0] for url in fetched] == ["file"]


@pytest.fixture(scope="module")
def comparison(browser, tmp_path_factory):
    """One page for all looks at a comparison: loading Plotly is what takes the time."""
    value = evaluation(("a", "b", "c"), days=2)
    opened = Opened(browser, tmp_path_factory.mktemp("comparison"), value)
    yield opened
    opened.page.close()


def test_a_comparison_draws_the_first_figure_of_every_card(comparison):
    assert comparison.drawn() == [
        "verdict-0-0", "time-0-0", "time-1-0", "calibration-0-0", "calibration-1-0", "cold-0-0",
        "slices-0-0", "slices-1-0", "freshness-0-0", "placebo-0-0", "run-0-0",
    ]  # fmt: skip
    assert comparison.is_quiet()


def test_controls_show_the_other_figures(comparison):
    page = comparison.page
    page.check("input[name=time-0-score][value='2']", force=True)
    page.check("input[name=time-0-window][value='1']", force=True)
    comparison.settle("html[data-drawn]:has([data-figure='time-0-5'][data-drawn])")
    assert "time-0-5" in comparison.drawn()
    assert "time-0-0" not in comparison.drawn()
    assert comparison.is_quiet()


def test_light_and_dark_follow_the_system_and_the_button(comparison):
    page = comparison.page
    light = comparison.colours()
    page.click("#theme")
    comparison.settle("html[data-theme=dark][data-drawn]")
    dark = comparison.colours()
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.click("#theme")
    comparison.settle("html[data-theme=light][data-drawn]")
    assert comparison.colours() == light
    page.evaluate("delete document.documentElement.dataset.theme")
    page.emulate_media(color_scheme="dark")
    label = page.locator("[data-figure='run-0-0'] .xtick text").first
    sync_api.expect(label).to_have_css("fill", dark[1], timeout=WAIT_MS)
    assert comparison.colours() == dark
    assert comparison.is_quiet()


def test_the_page_is_as_wide_as_its_window(comparison):
    page = comparison.page
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        # Plots follow the window a moment later.
        sync_api.expect(page.locator("html")).to_have_js_property(
            "scrollWidth", width, timeout=WAIT_MS
        )
        assert comparison.outside() == 0


def test_a_single_run_draws_its_figures_and_names_from_data_run_nothing(browser, tmp_path):
    value = evaluation((HOSTILE,), days=1)
    value["arms"][0]["slices"][0]["value"] = HOSTILE
    opened = Opened(browser, tmp_path, value)
    try:
        page = opened.page
        assert len(opened.drawn()) == 6
        assert page.title() == "In a browser"
        assert page.locator("b[onclick]").count() == 0
        assert HOSTILE in page.text_content("#scores")
        # Plotly shows the slice's name as it is, tags and all.
        assert "</script><scri" in page.text_content("[data-figure='slices-0-0']")
        assert opened.is_quiet()
    finally:
        page.close()
