"""Plots over event time: scores by day and hour, differences, calibration, what is missing.

Makes Plotly's JSON from an evaluation; chooses nothing about where a plot stands.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from stream.report.theme import (
    FAINT,
    NEUTRAL,
    Figure,
    arm_colour,
    arm_dash,
    arm_symbol,
    axis,
    compact,
    figure,
    holding,
    level,
)
from stream.report.words import MINUS, Value, local_time, ratio, short_name, zone

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
    shapes = []
    if metric == "calibration":
        data = [*_noise([row for arm in arms[:1] for row in arm["daily"]], "date"), *data]
        shapes = [level(1.0)]
    return figure(
        data,
        x=day_axis(days),
        y=axis(METRICS[metric][1], tickformat=".3f"),
        hovermode="x unified",
        shapes=shapes,
    )


def over_hours(arms: Sequence[Value], metric: str, offset_minutes: int) -> Figure:
    """A score of each arm by hour: every hour as a dot, their running mean as a line."""
    data: list[dict[str, Any]] = []
    shapes = []
    first = [row for arm in arms[:1] for row in arm["hourly"]]
    if metric == "calibration":
        data = _noise(
            [row | {"at": local_time(row["ts_ms"], offset_minutes)} for row in first], "at"
        )
        shapes = [level(1.0)]
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
        shapes=shapes,
    )


def difference_by_day(pairs: Sequence[Value], places: Mapping[str, int]) -> Figure:
    """Paired difference in log loss of each pair and day, with its interval."""
    data, ends = [], []
    for i, pair in zip(pair_places(pairs, places), pairs, strict=True):
        rows = [row for row in pair["daily"] if row.get("mean") is not None]
        ends += [row.get(key) for row in rows for key in ("mean", "low", "high")]
        data.append({
            "type": "scatter", "mode": "markers",
            "name": f"{short_name(pair['a'])} {MINUS} {short_name(pair['b'])}",
            "x": [row["date"] for row in rows],
            "y": compact([row["mean"] for row in rows]),
            "error_y": whiskers(rows, arm_colour(i)),
            "customdata": [[row.get("low"), row.get("high")] for row in rows],
            "offsetgroup": str(i),
            "marker": {"symbol": arm_symbol(i), "size": 9, "color": arm_colour(i)},
            "hovertemplate": "%{y:+.4f} [%{customdata[0]:+.4f}, %{customdata[1]:+.4f}] nats",
        })  # fmt: skip
    days = sorted({row["date"] for pair in pairs for row in pair["daily"]})
    return figure(
        data,
        x=day_axis(days),
        y=axis("difference in log loss (nats)", tickformat=".4~f", range=holding(ends, 0.0)),
        hovermode="x unified", shapes=[level(0.0, color=NEUTRAL, dash="solid", width=1.5)],
        scattermode="group", scattergap=0.7, showlegend=len(pairs) > 1,
    ) | _sides(pairs)  # fmt: skip


def difference_by_hour(
    pairs: Sequence[Value], arms: Sequence[Value], offset_minutes: int
) -> Figure:
    """Summed difference in log loss of each pair since the start, by hour, in nats.

    Its slope is the difference: a straight line is a steady gain, a bend is a change.
    """
    by_name = {arm["name"]: i for i, arm in enumerate(arms)}
    data, ends = [], [0.0]
    for i, pair in zip(pair_places(pairs, by_name), pairs, strict=True):
        if pair["a"] not in by_name or pair["b"] not in by_name:
            continue
        losses = [
            {row["ts_ms"]: row for row in arms[by_name[pair[side]]]["hourly"]} for side in "ab"
        ]
        step_ms = window_ms(arms[by_name[pair["a"]]]["hourly"])
        total, times, sums = 0.0, [], []
        for ts_ms in sorted(losses[0].keys() & losses[1].keys()):
            a, b = losses[0][ts_ms], losses[1][ts_ms]
            if a.get("log_loss") is None or b.get("log_loss") is None:
                continue
            total += (a["log_loss"] - b["log_loss"]) * a["samples"]
            times.append(local_time(ts_ms + step_ms, offset_minutes))
            sums.append(total)
        ends += sums
        data.append({
            "type": "scatter", "mode": "lines", "x": times, "y": compact(sums),
            "name": f"{short_name(pair['a'])} {MINUS} {short_name(pair['b'])}",
            "line": {"color": arm_colour(i), "width": 2.2, "dash": arm_dash(i)},
            "hovertemplate": "%{y:+,.1f} nats",
        })  # fmt: skip
    return figure(
        data,
        x=time_axis(offset_minutes),
        y=axis("summed difference (nats)", tickformat="~s", range=holding(ends)),
        hovermode="x unified", shapes=[level(0.0, color=NEUTRAL, dash="solid", width=1.5)],
        showlegend=len(pairs) > 1,
    ) | _sides(pairs)  # fmt: skip


def pair_places(pairs: Sequence[Value], places: Mapping[str, int]) -> list[int]:
    """Places in the row of colours: of the first arms, or of the pairs where these repeat."""
    first = [pair["a"] for pair in pairs]
    if len(set(first)) == len(first):
        return [places.get(name, 0) for name in first]
    return list(range(len(pairs)))


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


def whiskers(rows: Sequence[Value], colour: str | None = None) -> dict[str, Any]:
    """Error bars from `mean` to `low` and `high`; none where an end is null."""

    def reach(row: Value, end: str, sign: int) -> float:
        return 0.0 if row.get(end) is None else max(sign * (row[end] - row["mean"]), 0.0)

    bars = {
        "type": "data", "symmetric": False, "thickness": 1.6, "width": 4,
        "array": compact([reach(row, "high", 1) for row in rows]),
        "arrayminus": compact([reach(row, "low", -1) for row in rows]),
    }  # fmt: skip
    return bars | ({"color": colour} if colour else {})


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


def _sides(pairs: Sequence[Value]) -> dict[str, Any]:
    alone = pairs[0] if len(pairs) == 1 else {"a": "first", "b": "second"}
    a, b = short_name(alone["a"], 20), short_name(alone["b"], 20)
    return {"sides": (f"▼ {a} better", f"{b} better ▲")}


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
