"""An evaluation as one HTML file that needs no network. Plots and tables are made elsewhere."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from stream.report.layout import Card, Section, figures_of
from stream.report.sections import sections_of
from stream.report.theme import Figure
from stream.report.words import MISSING, Value, count, escape, span


def write_page(
    evaluation: Value,
    path: Path,
    *,
    title: str,
    config_text: str = "",
    offset_minutes: int = 0,
    version: str = "",
) -> None:
    """Write the page of an evaluation, atomically: about 5 MB, of which 4.8 are Plotly's script.

    `offset_minutes` ahead of UTC is the zone of days and times. Names and values from data are
    text wherever they stand, and the page's policy lets no script run but its own two.
    """
    page = page_of(
        evaluation, title=title, config_text=config_text, offset_minutes=offset_minutes,
        version=version,
    )  # fmt: skip
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.rename(path)


def page_of(
    evaluation: Value, *, title: str, config_text: str = "", offset_minutes: int = 0,
    version: str = "",
) -> str:  # fmt: skip
    """The page's text."""
    return assembled(
        sections_of(evaluation, offset_minutes=offset_minutes, config_text=config_text),
        title=title,
        meta=_meta(evaluation, offset_minutes),
        footer=f"Made by millrace {escape(version)} from report.json. All figures are progressive: "
        "each impression was predicted before its outcome was learned.",
    )


def assembled(
    sections: Sequence[Section], *, title: str, meta: str, footer: str, brand: str = "report"
) -> str:
    """The text of a page of any sections; `meta`, `footer` and `brand` are HTML, `title` is not."""
    script, plotly = _own("page.js"), get_plotlyjs()
    # A script ends at its closing tag wherever that stands, even in a string.
    assert "</script" not in script + plotly, "a script that would end early"
    return Template(_own("page.html")).substitute(
        policy=_policy(plotly, script),
        title=escape(title),
        style=_own("page.css"),
        meta=meta,
        brand=brand,
        footer=footer,
        nav="".join(f'<a href="#{s.name}">{s.title}</a>' for s in sections),
        # A number stays on one line with its percent sign.
        main="".join(_section(section) for section in sections).replace(" %", "\u00a0%"),
        figures=figures_of(sections),
        plotly=plotly,
        script=script,
    )


def _own(name: str) -> str:
    return resources.files("stream.report").joinpath(name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Nothing is fetched, and only scripts with these contents run; Plotly sets styles itself."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def _meta(value: Value, offset_minutes: int) -> str:
    """What was evaluated, in a line."""
    parts = [f"label <b>{escape(value.get('label', MISSING))}</b>",
             f"predicted at <b>{escape(value.get('predict_at', MISSING))}</b>",
             span(value, offset_minutes)]  # fmt: skip
    parts += [
        f"<b>{count(value[key])}</b> {words}"
        for key, words in (("rows", "impressions"), ("positives", "positive"), ("users", "users"))
        if value.get(key) is not None
    ]
    return " · ".join(part for part in parts if part != MISSING)


def _section(section: Section) -> str:
    cards = "".join(_card(card, f"{section.name}-{i}") for i, card in enumerate(section.cards))
    return (
        f'<section id="{section.name}" class="{section.layout}">'
        f"<h2>{section.title}</h2>"
        + (f'<p class="lead-text">{section.lead}</p>' if section.lead else "")
        + section.html
        + (f'<div class="cards">{cards}</div>' if cards else "")
        + section.after
        + "</section>"
    )


def _sides(figure: Figure) -> str:
    """Words for what lies below and above 0, where a plot compares."""
    if "sides" not in figure:
        return ""
    low, high = figure["sides"]
    return f'<p class="sides"><span class="good">{low}</span><span class="bad">{high}</span></p>'


def _card(card: Card, name: str) -> str:
    options = [names for _, names in card.choices] or [[""]]
    labels = [", ".join(filter(None, chosen)) for chosen in itertools.product(*options)]
    assert len(labels) == len(card.figures), f"{name}: a figure for each choice"
    plots = "".join(
        f'<div class="view" role="group" aria-label="{card.title}{f": {label}" if label else ""}"'
        f"{' hidden' if i else ''}>{_sides(figure)}"
        f'<div data-figure="{name}-{i}" style="min-height:{figure["layout"]["height"]}px"></div>'
        "</div>"
        for i, (figure, label) in enumerate(zip(card.figures, labels, strict=True))
    )
    controls = "".join(
        f"<fieldset><legend>{legend}</legend>"
        + "".join(
            f'<label><input type="radio" name="{name}-{legend}" value="{i}"'
            f"{'' if i else ' checked'}>{option}</label>"
            for i, option in enumerate(names)
        )
        + "</fieldset>"
        for legend, names in card.choices
    )
    sizes = ",".join(str(len(names)) for names in options)
    return (
        f'<figure class="card" data-sizes="{sizes}"><figcaption><h3>{card.title}</h3>'
        f'<div class="controls">{controls}</div></figcaption>{plots}'
        + (f'<p class="note">{card.note}</p>' if card.note else "")
        + "</figure>"
    )
