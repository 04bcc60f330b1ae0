"""Cards and sections of a page, and their figures as JSON. Knows no evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stream.report.theme import FAINT, Figure

Choices = Sequence[tuple[str, Sequence[str]]]
"""Of a card: for each control its name and its options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A plot with its title; of several `figures` the controls show one at a time.

    `figures` are in the order of the product of the options, the last control fastest; a figure
    without traces counts as nothing to show.
    """

    title: str
    note: str = ""
    choices: Choices = ()
    figures: Sequence[Figure]

    @property
    def empty(self) -> bool:
        """Whether no figure has any trace with a value in it."""
        return not any(_has_values(figure) for figure in self.figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """`name` is its anchor. Where there is room, cards stand two in a row, or beside the words."""

    name: str
    title: str
    lead: str = ""
    html: str = ""
    cards: Sequence[Card] = ()
    after: str = ""
    layout: Literal["wide", "two", "beside"] = "wide"


def _plotted(figure: Figure) -> Figure:
    """What Plotly reads; where no value is, words instead of axes around nothing."""
    layout = figure["layout"]
    if not _has_values(figure):
        words = {"text": "no values; the reasons are below", "showarrow": False,
                 "font": {"size": 13, "color": FAINT}}  # fmt: skip
        layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}, "shapes": [],
                   "annotations": [words]}  # fmt: skip
    return {"data": figure["data"], "layout": layout}


def _has_values(figure: Figure) -> bool:
    return any(
        x is not None and y is not None
        for trace in figure["data"]
        for x, y in zip(trace["x"], trace["y"], strict=True)
    )


def figures_of(sections: Iterable[Section]) -> str:
    """JSON of all figures by their names, safe between script tags."""
    found = {
        f"{section.name}-{i}-{j}": _plotted(figure)
        for section in sections
        for i, card in enumerate(section.cards)
        for j, figure in enumerate(card.figures)
    }
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
