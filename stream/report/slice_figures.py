"""Plots of slices: whom a model serves better, and where it is badly calibrated.

Makes Plotly's JSON from an evaluation; the slices themselves come from there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from stream.report.difference_figures import verdict_colour, whiskers
from stream.report.theme import (
    INK,
    NEUTRAL,
    Figure,
    arm_colour,
    arm_symbol,
    axis,
    compact,
    figure,
    holding,
    upright,
)
from stream.report.words import Value, count, interval, percent, short_name, signed

METRICS = {
    "calibration": ("Calibration", "calibration (predicted / observed)"),
    "ne_slice": ("NE in the slice", "NE with the slice's own base rate"),
    "ne_global": ("NE, global", "NE with the global base rate"),
    "log_loss": ("Log loss", "log loss (nats per impression)"),
    "auc": ("AUC", "AUC in the slice"),
}
# The axis is scaled for slices of at least this share: the small ones' intervals are far wider,
# and the rule on slices leaves them out as well.
SHARE_SCALED = 0.01
SHARE_SHOWN = 0.002
_ROW_PX = 23


def pair_slices(pair: Value) -> Figure:
    """The paired difference in each slice, with its interval, grouped by what slices."""
    rows = _telling([row for row in pair["slices"] if row.get("mean") is not None])
    colours = [verdict_colour(row) for row in rows]
    y, ticks, height = _rows_of(rows)
    data = []
    for colour in dict.fromkeys(colours):
        chosen = [i for i, c in enumerate(colours) if c == colour]
        some = [rows[i] for i in chosen]
        data.append({
            "type": "scatter", "mode": "markers", "showlegend": False,
            "x": compact([row["mean"] for row in some]), "y": [y[i] for i in chosen],
            "error_x": whiskers(some, colour),
            "marker": {"color": colour, "symbol": "square", "opacity": 1,
                       "line": {"width": 0},
                       "size": [round(6 + 8 * row["share"] ** 0.5, 1) for row in some]},
            "text": [_hover(row, f"{signed(row['mean'], 5)} {interval(row, 5)} nats")
                     for row in some],
            "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    a, b = short_name(pair["a"], 18), short_name(pair["b"], 18)
    return figure(
        data,
        x=axis("difference in log loss (nats per impression)", tickformat=".4~f", nticks=5,
               range=_reach(rows, lambda row: (row.get("low"), row.get("high"), 0.0))),
        y=ticks, height=height - 24, margin={"l": 40, "r": 20, "t": 10, "b": 48},
        hovermode="closest", shapes=[upright(0.0, color=NEUTRAL, dash="solid", width=1.5)],
    ) | {"sides": (f"◀ {a} better", f"{b} better ▶")}  # fmt: skip


def arm_slices(arms: Sequence[Value], metric: str) -> Figure:
    """A score of each arm in each slice, one dot an arm; calibration and loss with 95 % intervals.

    What lies beyond the axis is an open triangle at its end.
    """
    layout = _telling([row for arm in arms[:1] for row in arm["slices"]])
    y, ticks, height = _rows_of(layout)
    place = {(row["by"], row["value"]): at for row, at in zip(layout, y, strict=True)}
    known = [
        [row for row in arm["slices"]
         if row.get(metric) is not None and (row["by"], row["value"]) in place]
        for arm in arms
    ]  # fmt: skip
    neutral = [1.0] if metric not in {"log_loss", "auc"} else []
    reach = _reach([row for rows in known for row in rows], lambda row: (row[metric], *neutral))
    low, high = reach or [0.0, 1.0]
    # Arms that agree would hide each other on one line.
    step = min(0.24, 0.7 / max(len(arms), 1))
    data = []
    for i, (arm, rows) in enumerate(zip(arms, known, strict=True)):
        lower = step * (i - (len(arms) - 1) / 2)
        inside = [row for row in rows if low <= row[metric] <= high]
        beyond = [row for row in rows if not low <= row[metric] <= high]
        ends = [high if row[metric] > high else low for row in beyond]
        common = {
            "type": "scatter", "mode": "markers", "name": short_name(arm["name"]),
            "legendgroup": str(i), "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
        }  # fmt: skip
        dots: dict[str, Any] = {
            "x": [row[metric] for row in inside],
            "error_x": _noise(inside, metric, arm_colour(i, 0.55)),
            "marker": {"color": arm_colour(i), "size": 9, "symbol": arm_symbol(i)},
        }
        symbols = [f"triangle-{'right' if end == high else 'left'}-open" for end in ends]
        triangles: dict[str, Any] = {
            "x": [end + 0.02 * (low + high - 2 * end) for end in ends],
            "showlegend": False,
            "marker": {"color": arm_colour(i), "size": 9, "symbol": symbols},
        }
        for own, some in ((dots, inside), (triangles, beyond)):
            y = [place[row["by"], row["value"]] + lower for row in some]
            text = [_hover(row, f"{METRICS[metric][0]} {row[metric]:.4f}") for row in some]
            if some:
                data.append(common | own | {"x": compact(own["x"]), "y": compact(y), "text": text})
    return figure(
        data,
        x=axis(METRICS[metric][1], tickformat=".3~f", nticks=6, range=reach),
        y=ticks, height=height, margin={"l": 40, "r": 20, "t": 34, "b": 48},
        hovermode="closest", shapes=[upright(value) for value in neutral],
    )  # fmt: skip


def _noise(rows: Sequence[Value], metric: str, colour: str) -> dict[str, Any]:
    """95 % intervals where a standard error is known."""

    def error(row: Value) -> float:
        if metric == "log_loss":
            return row.get("standard_error") or 0.0
        if metric == "calibration" and row.get("positives"):
            return float(((1 - row["positives"] / row["n"]) / row["positives"]) ** 0.5)
        return 0.0

    half = [1.96 * error(row) for row in rows]
    return {"type": "data", "array": compact(half), "visible": any(half), "color": colour,
            "thickness": 1.2, "width": 0}  # fmt: skip


def _telling(rows: Sequence[Value]) -> list[Value]:
    """Slices of a visible share, but not the one that holds every impression: it divides nothing.

    The table has all of them.
    """
    values = Counter(row["by"] for row in rows)
    return [
        row for row in rows if values[row["by"]] > 1 and (row.get("share") or 0.0) >= SHARE_SHOWN
    ]


def _rows_of(rows: Sequence[Value]) -> tuple[list[float], dict[str, Any], int]:
    """Heights of the rows from the top, their axis with a heading a group, the plot's height."""
    y, values, texts, at = [], [], [], 0.0
    for by, group in itertools.groupby(rows, key=lambda row: row["by"]):
        values.append(at)
        texts.append(f"<b>{short_name(by, 26)}</b>")
        for row in group:
            at += 1
            y.append(at)
            values.append(at)
            texts.append(f"{short_name(row['value'], 16)} · {percent(row.get('share'))}")
        at += 1.4
    ticks = axis(
        tickvals=values, ticktext=texts, range=[max(at - 0.6, 1), -0.8], showgrid=False,
        zeroline=False, fixedrange=True, tickfont={"size": 11, "color": INK},
    )  # fmt: skip
    return y, ticks, int(100 + _ROW_PX * max(at, 2))


def _hover(row: Value, score: str) -> str:
    positives = f", {count(row['positives'])} positive" if "positives" in row else ""
    return (
        f"<b>{short_name(row['by'], 40)}: {short_name(row['value'], 40)}</b><br>{score}"
        f"<br>{count(row.get('n'))} impressions{positives}"
    )


def _reach(
    rows: Sequence[Value], ends: Callable[[Value], tuple[float | None, ...]]
) -> list[float] | None:
    """Range that holds the ends of all rows of a fair share; None where there are none."""
    fair = [row for row in rows if (row.get("share") or 0.0) >= SHARE_SCALED] or list(rows)
    return holding(value for row in fair for value in ends(row))
