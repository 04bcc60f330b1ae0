"""How plots look: names of colours, the common layout. The colours' values are in page.css.

A colour in a figure is a token, `@good` or `@arm0/0.2` (with an opacity): the page's script
replaces it by the style sheet's value, so that one figure serves the light and the dark theme.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Figure = dict[str, Any]
"""Plotly's JSON, and where it compares, `sides`: words for below and above 0, beside the plot."""

ARM_COLOURS = 8
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x", "pentagon")
GOOD, BAD, NEUTRAL, INK, FAINT, GRID = "@good", "@bad", "@neutral", "@ink", "@faint", "@grid"


def arm_colour(place: int, opacity: float | None = None) -> str:
    """Token of an arm's colour; the arms of one comparison have the same one everywhere."""
    token = f"@arm{place % ARM_COLOURS}"
    return token if opacity is None else f"{token}/{opacity:g}"


def arm_dash(place: int) -> str:
    """Dash of an arm's line: arms differ by more than colour once colours come round again."""
    return _DASHES[place // ARM_COLOURS % len(_DASHES)]


def arm_symbol(place: int) -> str:
    """Marker of an arm: told apart without colour."""
    return _SYMBOLS[place % len(_SYMBOLS)]


def axis(title: str = "", **settings: Any) -> dict[str, Any]:
    """An axis with quiet lines; `settings` are Plotly's."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": FAINT}, "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "tickfont": {"size": 11, "color": FAINT},
        "automargin": True,
        "fixedrange": False,
        **settings,
    }


def figure(
    data: list[dict[str, Any]], *, x: dict[str, Any], y: dict[str, Any], height: int = 320,
    **layout: Any,
) -> Figure:  # fmt: skip
    """A figure as Plotly's JSON: traces, axes and the common layout."""
    return {
        "data": data,
        "layout": {
            "height": height,
            "margin": {"l": 52, "r": 16, "t": 34, "b": 44},
            "paper_bgcolor": "@clear",
            "plot_bgcolor": "@clear",
            "font": {"size": 12, "color": INK},
            "hoverlabel": {
                "bgcolor": "@card", "bordercolor": "@line", "font": {"size": 12, "color": INK},
                "namelength": 40,
            },
            "legend": {
                "orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
                "traceorder": "normal", "font": {"size": 12, "color": INK},
            },
            "modebar": {"bgcolor": "@clear", "color": FAINT, "activecolor": "@accent"},
            "xaxis": x,
            "yaxis": y,
            **layout,
        },
    }  # fmt: skip


def level(y: float, **line: Any) -> dict[str, Any]:
    """A horizontal line over the whole plot, below the traces."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": y, "y1": y,
        "layer": "below", "line": {"color": FAINT, "width": 1, "dash": "dash"} | line,
    }  # fmt: skip


def upright(x: float, **line: Any) -> dict[str, Any]:
    """A vertical line over the whole plot, below the traces."""
    return {
        "type": "line", "yref": "paper", "y0": 0, "y1": 1, "xref": "x", "x0": x, "x1": x,
        "layer": "below", "line": {"color": FAINT, "width": 1, "dash": "dash"} | line,
    }  # fmt: skip


def holding(values: Iterable[float | None], *always: float) -> list[float] | None:
    """A range that holds the values and a little more; None where there is none to hold."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(*known, *always, known[0]), max(*known, *always, known[0])
    pad = 0.06 * (high - low) or abs(low) * 0.01 or 0.01
    return compact([low - pad, high + pad])


def compact(values: list[Any]) -> list[Any]:
    """Values with six significant digits: a plot shows no more, and the page stays small."""
    return [float(f"{v:.6g}") if isinstance(v, float) else v for v in values]
