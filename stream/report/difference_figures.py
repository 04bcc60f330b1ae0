"""Plots of paired differences: whole runs, days, summed by hour, and by freshness.

Makes Plotly's JSON from an evaluation; differences by slice are made with the slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stream.report.theme import (
    BAD,
    GOOD,
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
    upright,
)
from stream.report.time_figures import day_axis, time_axis, window_ms
from stream.report.words import MINUS, Value, duration, interval, local_time, short_name, signed


def verdict_colour(row: Value) -> str:
    """Good where the interval of a difference lies below 0, bad above, neutral across."""
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or low <= 0 <= high:
        return NEUTRAL
    return GOOD if high < 0 else BAD


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


def differences(rows: Sequence[tuple[str, Value]], better: tuple[str, str]) -> Figure:
    """A forest plot: for each name (as Plotly reads it) a paired difference with its interval.

    `better` says who is better to the left and to the right of 0.
    """
    title = "nats per impression"
    known = [(name, row) for name, row in rows if row.get("mean") is not None]
    places = [len(known) - 1 - i for i in range(len(known))]
    colours = [verdict_colour(row) for _, row in known]
    data = [
        {
            "type": "scatter", "mode": "markers", "x": compact([row["mean"]]), "y": [place],
            "error_x": whiskers([row], colour), "showlegend": False,
            "marker": {"size": 11, "color": colour, "symbol": "square"},
            "hovertemplate": f"<b>{name}</b><br>{signed(row['mean'], 5)} "
            f"{interval(row, 5)} nats per impression<extra></extra>",
        }
        for (name, row), place, colour in zip(known, places, colours, strict=True)
    ]  # fmt: skip
    return figure(
        data,
        x=axis(title, tickformat=".4~f", nticks=5, tickangle=0, range=holding(
            [row.get(key) for _, row in known for key in ("mean", "low", "high")], 0.0)),
        y=axis(tickvals=places, ticktext=[name for name, _ in known],
               range=[-0.7, len(known) - 0.3], showgrid=False, fixedrange=True),
        height=78 + 44 * max(len(known), 1), margin={"l": 40, "r": 20, "t": 8, "b": 48},
        shapes=[upright(0.0, color=NEUTRAL, dash="solid", width=1.5)],
        hovermode="closest",
    ) | {"sides": (f"◀ {better[0]}", f"{better[1]} ▶")}  # fmt: skip


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


def freshness(rows: Sequence[Value]) -> Figure:
    """Loss by the age of the weights that predict, against the freshest, with its interval."""
    known = sorted(
        (row for row in rows if row.get("mean") is not None), key=lambda row: row["sync_ms"]
    )
    names = [short_name(duration(row["sync_ms"]) if row["sync_ms"] else "at once", 20)
             for row in known]  # fmt: skip
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "x": list(range(len(known))),
            "y": compact([row["mean"] for row in known]), "error_y": whiskers(known, "@arm0"),
            "line": {"color": "@arm0/0.5", "width": 1.4}, "marker": {"color": "@arm0", "size": 9},
            "customdata": [
                [short_name(row["name"]), *compact([row.get("log_loss"), row.get("auc")]),
                 row.get("low"), row.get("high")]
                for row in known
            ],
            "hovertemplate": "<b>%{customdata[0]}</b><br>%{y:+.5f} [%{customdata[3]:+.5f}, "
            "%{customdata[4]:+.5f}] nats<br>log loss %{customdata[1]:.4f} nats, "
            "AUC %{customdata[2]:.4f}<extra></extra>",
            "showlegend": False,
        }
    ]  # fmt: skip
    return figure(
        data,
        x=axis("weights published every", tickvals=list(range(len(known))), ticktext=names,
               range=[-0.4, len(known) - 0.6], showgrid=False),
        y=axis(f"log loss {MINUS} that of the freshest (nats)", tickformat=".4~f",
               range=holding([row.get(k) for row in known for k in ("mean", "low", "high")], 0.0)),
        hovermode="closest", height=300,
        shapes=[level(0.0, color=NEUTRAL, dash="solid", width=1.5)],
    )  # fmt: skip


def _sides(pairs: Sequence[Value]) -> dict[str, Any]:
    alone = pairs[0] if len(pairs) == 1 else {"a": "first", "b": "second"}
    a, b = short_name(alone["a"], 20), short_name(alone["b"], 20)
    return {"sides": (f"▼ {a} better", f"{b} better ▲")}
