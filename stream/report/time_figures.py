"""Plots over event time: scores and calibration by day and hour, what is missing.

Makes Plotly's JSON from an evaluation; chooses nothing about where a plot stands.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from typing import Any

from stream.report.theme import (
    FAINT,
    Figure,
    arm_colour,
    arm_dash,
    arm_symbol,
    axis,
    compact,
    figure,
    level,
)
from stream.report.words import Value, count, local_time, ratio, short_name, zone

HOUR_MS = 3_600_000
_TICKS = 8
_LONG_SPAN_MS = 7 * 24 * HOUR_MS
METRICS = {
    "ne": ("NE", "NE (1 = base rate)"),
    "log_loss": ("Log loss", "log loss (nats per impression)"),
    "auc": ("AUC", "AUC"),
    "calibration": ("Calibration", "calibration (predicted / observed)"),
}
Column = list[Any]


def running_hours(rows: Sequence[Value]) -> int:
    """Length of the running mean of these windows: six hours, of a long span a day."""
    long = bool(rows) and rows[-1]["ts_ms"] - rows[0]["ts_ms"] > _LONG_SPAN_MS
    return 24 if long else 6


def window_ms(rows: Sequence[Value]) -> int:
    """Length of the windows called hours, which are longer where a log is: the least step."""
    steps = (b["ts_ms"] - a["ts_ms"] for a, b in itertools.pairwise(rows))
    return int(min(steps, default=HOUR_MS))


def over_days(arms: Sequence[Value], metric: str) -> Figure:
    """A score of each arm by day."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": short_name(arm["name"]),
            "x": [row["date"] for row in arm["daily"]],
            "y": compact([row.get(metric) for row in arm["daily"]]),
            "customdata": [row.get("samples") for row in arm["daily"]],
            "line": {"color": arm_colour(i), "width": 2.2, "dash": arm_dash(i)},
            "marker": {"symbol": arm_symbol(i), "size": 8, "color": arm_colour(i)},
            "hovertemplate": "%{y:.4f} <i>(%{customdata:,} impressions)</i>",
        }
        for i, arm in enumerate(arms)
    ]
    days = sorted({row["date"] for arm in arms for row in arm["daily"]})
    first = [row for arm in arms[:1] for row in arm["daily"]]
    marks = _unsettled(
        [(days.index(row["date"]) - 0.5, days.index(row["date"]) + 0.5, row) for row in first]
    )
    if metric == "calibration":
        data = [*_noise(first, "date"), *data]
        marks["shapes"].append(level(1.0))
    return figure(
        data,
        x=day_axis(days),
        y=axis(METRICS[metric][1], tickformat=".3f"),
        hovermode="x unified",
        **marks,
    )


def over_hours(arms: Sequence[Value], metric: str, offset_minutes: int) -> Figure:
    """A score of each arm by hour: every hour as a dot, their running mean as a line."""
    data: list[dict[str, Any]] = []
    first = [row for arm in arms[:1] for row in arm["hourly"]]
    at = [local_time(row["ts_ms"], offset_minutes) for row in first]
    ends = [local_time(row["ts_ms"] + window_ms(first), offset_minutes) for row in first]
    marks = _unsettled(list(zip(at, ends, first, strict=True)))
    if metric == "calibration":
        data = _noise([{**row, "at": x} for row, x in zip(first, at, strict=True)], "at")
        marks["shapes"].append(level(1.0))
    for i, arm in enumerate(arms):
        times, values, samples = _hours(arm["hourly"], metric)
        at = [local_time(ms, offset_minutes) for ms in times]
        name, colour = short_name(arm["name"]), arm_colour(i)
        data += [
            {
                "type": "scatter", "mode": "markers", "name": name, "x": at, "y": values,
                "customdata": samples, "legendgroup": str(i), "showlegend": False,
                "marker": {"symbol": arm_symbol(i), "size": 4, "color": arm_colour(i, 0.35)},
                "hovertemplate": "%{y:.4f} <i>(%{customdata:,} impressions)</i>",
            },
            {
                "type": "scatter", "mode": "lines", "name": name, "x": at,
                "y": _running(times, values, samples, running_hours(arm["hourly"]) * HOUR_MS),
                "legendgroup": str(i),
                "line": {"color": colour, "width": 2.2, "dash": arm_dash(i)}, "hoverinfo": "skip",
            },
        ]  # fmt: skip
    return figure(
        data,
        x=time_axis(offset_minutes),
        y=axis(METRICS[metric][1], tickformat=".3f"),
        hovermode="x unified",
        **marks,
    )


def missing_over_time(rows: Sequence[Value], offset_minutes: int) -> Figure:
    """Share of impressions without an item vector, and without any history, by hour."""
    at = [local_time(row["ts_ms"], offset_minutes) for row in rows]
    series = (
        ("missing_vector", "item vector missing", "@arm1"),
        ("empty_history", "empty user history", "@arm0"),
    )
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": at,
            "y": compact([ratio(row.get(key), row.get("samples")) for row in rows]),
            "line": {"color": colour, "width": 2, "dash": dash},
            "hovertemplate": "%{y:.2%}",
        }
        for (key, name, colour), dash in zip(series, ("solid", "dot"), strict=True)
        if any(row.get(key) is not None for row in rows)
    ]  # fmt: skip
    return figure(
        data,
        x=time_axis(offset_minutes),
        y=axis("share of impressions", tickformat=".0%", rangemode="tozero"),
        hovermode="x unified",
        height=260,
    )


def day_axis(days: Sequence[str]) -> dict[str, Any]:
    """An axis of dates without hours, with at most eight labels."""
    shown = days[:: -(-len(days) // _TICKS) or 1]
    labels = [f"{dt.date.fromisoformat(day):%d %b}" for day in shown]
    return axis(
        "day", type="category", categoryorder="array", categoryarray=list(days),
        tickvals=list(shown), ticktext=labels, range=[-0.5, max(len(days), 1) - 0.5], tickangle=0,
    )  # fmt: skip


def time_axis(offset_minutes: int) -> dict[str, Any]:
    """An axis of local time that names its zone."""
    return axis(f"time ({zone(offset_minutes)})", type="date", hoverformat="%d %b %Y, %H:%M")


def _hours(rows: Sequence[Value], metric: str) -> tuple[Column, Column, Column]:
    """Times, values and impressions of the hours; a null where hours are absent in between."""
    times, values, samples = Column(), Column(), Column()
    step_ms = window_ms(rows)
    for row in rows:
        if times and row["ts_ms"] - times[-1] > step_ms:
            times.append(times[-1] + step_ms)
            values.append(None)
            samples.append(0)
        times.append(row["ts_ms"])
        values.append(row.get(metric))
        samples.append(row.get("samples") or 0)
    return times, compact(values), samples


def _running(times: Column, values: Column, samples: Column, reach_ms: int) -> Column:
    """Mean of each window and those that began less than `reach_ms` before, by impressions."""
    out, first, total, weight = Column(), 0, 0.0, 0.0
    for ts_ms, value, n in zip(times, values, samples, strict=True):
        if value is not None:
            total, weight = total + value * n, weight + n
        while times[first] <= ts_ms - reach_ms:
            if values[first] is not None:
                total -= values[first] * samples[first]
                weight -= samples[first]
            first += 1
        out.append(total / weight if weight > 0 and value is not None else None)
    return compact(out)


def _unsettled(windows: Sequence[tuple[Any, Any, Value]]) -> dict[str, Any]:
    """Shades (start, end, row) where labels are not final, and says how many: scores may change."""
    open_ones = [(a, b, row["unsettled"]) for a, b, row in windows if row.get("unsettled")]
    shades = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": a, "x1": b, "y0": 0, "y1": 1,
         "layer": "below", "fillcolor": "@arm4/0.14", "line": {"width": 0}}
        for a, b, _ in open_ones
    ]  # fmt: skip
    if not open_ones:
        return {"shapes": [], "annotations": []}
    words = {
        "text": f"{count(sum(n for _, _, n in open_ones))} not settled", "showarrow": False,
        "xref": "x", "x": open_ones[-1][1], "xanchor": "right", "yref": "paper", "y": 1,
        "yanchor": "top", "font": {"size": 11, "color": FAINT},
    }  # fmt: skip
    return {"shapes": shades, "annotations": [words]}


def _noise(rows: Sequence[Value], at: str) -> list[dict[str, Any]]:
    """The band in which 95 % of calibrations of a perfect model lie.

    Positives are a sum of Bernoulli draws: the standard error of calibration is at most
    sqrt((1 - rate) / positives), as sum p (1 - p) <= n rate (1 - rate).
    """
    rows = [row for row in rows if row.get("positives") and row.get("samples")]
    half = [
        1.96 * ((1 - row["positives"] / row["samples"]) / row["positives"]) ** 0.5 for row in rows
    ]
    x = [row[at] for row in rows]
    edge = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip",
            "line": {"width": 0, "color": FAINT}}  # fmt: skip
    return [
        edge | {"y": compact([1 - h for h in half]), "showlegend": False},
        edge
        | {"y": compact([1 + h for h in half]), "fill": "tonexty", "fillcolor": "@neutral/0.16",
           "name": "noise of a perfect model (95 %)"},
    ]  # fmt: skip
