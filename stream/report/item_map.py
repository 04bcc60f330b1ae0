"""The map of items: one plot of vectors on a plane, coloured by group. Projects nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.report.layout import Card, Section
from stream.report.theme import ARM_COLOURS, FAINT, Figure, arm_colour, arm_symbol, axis, figure
from stream.report.words import escape

_OTHER = "all others"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoint:
    """One item: where it is, its group (None: it has none), and lines to show when pointed at."""

    x: float
    y: float
    group: str | None
    lines: Sequence[str]


def map_section(points: Sequence[MapPoint], *, grouped_by: str, shares: Sequence[float]) -> Section:
    """The section of a page; the largest groups have colours and symbols, the others are faint."""
    sizes = Counter(point.group for point in points if point.group is not None)
    named = [group for group, _ in sizes.most_common(ARM_COLOURS)]
    note = (
        f"The plane holds {sum(shares):.0%} of the vectors' variance: what is close here may be "
        "far apart in truth, and what is far here is far."
        if shares
        else "All vectors are equal."
    )
    rest = len(sizes) - len(named)
    lead = (
        f"Items by the two directions in which their vectors differ most, by {escape(grouped_by)}"
    )
    lead += f"; {rest:,} smaller groups have no colour of their own." if rest > 0 else "."
    card = Card(title="Map of items", note=note, figures=[_figure(points, named, shares)])
    return Section(name="map", title="Items", lead=lead, cards=[card])


def _figure(points: Sequence[MapPoint], named: list[str], shares: Sequence[float]) -> Figure:
    groups: dict[str | None, list[MapPoint]] = {None: []} | {group: [] for group in named}
    for point in points:
        groups[point.group if point.group in groups else None].append(point)
    traces = []
    for place, (group, members) in enumerate(groups.items()):
        if not members:
            continue
        other = group is None
        traces.append({
            "type": "scatter", "mode": "markers",
            "name": escape(_OTHER if group is None else group),
            "x": _rounded([p.x for p in members]), "y": _rounded([p.y for p in members]),
            "text": ["<br>".join(map(escape, p.lines)) for p in members],
            "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
            "marker": {"size": 4 if other else 6, "opacity": 0.45 if other else 0.85,
                       "color": FAINT if other else arm_colour(place - 1),
                       "symbol": "circle" if other else arm_symbol(place - 1)},
        })  # fmt: skip
    titles = [f"component {i} ({share:.0%} of variance)" for i, share in enumerate(shares, 1)]
    titles += ["component"] * (2 - len(titles))
    return figure(
        traces, x=axis(titles[0], zeroline=False),
        y=axis(titles[1], zeroline=False), height=640, hovermode="closest",
    )  # fmt: skip


def _rounded(values: Sequence[float]) -> list[float]:
    found: NDArray[np.float64] = np.round(np.array(values), 4)
    return [float(value) for value in found]
