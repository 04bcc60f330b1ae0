"""Plots of scores over whole runs: reliability, and the learning curve of new items.

Makes Plotly's JSON from an evaluation; differences, slices and plots over time are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stream.report.theme import (
    NEUTRAL,
    Figure,
    arm_colour,
    arm_dash,
    arm_symbol,
    axis,
    compact,
    figure,
    level,
)
from stream.report.words import Value, short_name

CURVES = {
    "log_loss": ("Log loss", "log loss (nats per impression)", ".3f"),
    "calibration": ("Calibration", "calibration (predicted / observed)", ".3f"),
    "n": ("Impressions", "impressions in the bin", "~s"),
}
_K_TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


def reliability(arms: Sequence[Value], *, deviation: bool) -> Figure:
    """Observed against predicted share of positives, in bins of equal mass.

    `deviation`: observed minus predicted instead, which shows what the diagonal hides. The band
    is of the first arm: where 95 % of a perfect model's bins lie.
    """
    data: list[dict[str, Any]] = []
    for i, arm in enumerate(arms):
        rows = [row for row in arm["reliability"] if row.get("predicted") is not None]
        x = compact([row["predicted"] for row in rows])

        def less(row: Value, key: str) -> float | None:
            value = row.get(key)
            return value if value is None or not deviation else value - row["predicted"]

        if i == 0 and all(row.get("low") is not None for row in rows):
            edge = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip",
                    "line": {"width": 0}}  # fmt: skip
            data += [
                edge | {"y": compact([less(row, "low") for row in rows]), "showlegend": False},
                edge | {"y": compact([less(row, "high") for row in rows]), "fill": "tonexty",
                        "fillcolor": "@neutral/0.16", "name": "noise of a perfect model (95 %)"},
            ]  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": short_name(arm["name"]), "x": x,
            "y": compact([less(row, "observed") for row in rows]),
            "customdata": [[row["n"], *compact([row.get("observed")])] for row in rows],
            "line": {"color": arm_colour(i, 0.5), "width": 1.2, "dash": arm_dash(i)},
            "marker": {"color": arm_colour(i), "size": 7, "symbol": arm_symbol(i)},
            "hovertemplate": "predicted %{x:.4f}, observed %{customdata[1]:.4f}"
            "<br>%{customdata[0]:,} impressions<extra>%{fullData.name}</extra>",
        })  # fmt: skip
    diagonal = {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "layer": "below",
                "line": {"color": NEUTRAL, "width": 1, "dash": "dash"}}  # fmt: skip
    title = "observed − predicted" if deviation else "observed share of positives"
    return figure(
        data,
        x=axis("predicted probability", rangemode="tozero"),
        y=axis(title, tickformat="+.3f" if deviation else ""),
        hovermode="closest",
        shapes=[level(0.0)] if deviation else [diagonal],
        showlegend=True,
    )


def learning_curve(arms: Sequence[Value], metric: str) -> Figure:
    """A score against the number of impressions that the item had before.

    `n`: how many impressions there are, which is the same for all arms.
    """
    data = []
    curves = [[row for row in arm["learning_curve"] if row.get("n")] for arm in arms]
    last = max((row["k_to"] + 1 for rows in curves for row in rows), default=1)
    for i, (arm, rows) in enumerate(zip(arms, curves, strict=True)):
        single = metric == "n"
        colour = "@neutral" if single else arm_colour(i)
        score = "%{y:,}" if single else "%{y:.4f}<br>%{customdata[1]:,}"
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": short_name(arm["name"]),
            "x": [_middle(row) for row in rows], "y": compact([row.get(metric) for row in rows]),
            "customdata": [[_range(row), row["n"]] for row in rows],
            "line": {"color": colour, "width": 2.2, "dash": arm_dash(i)},
            "marker": {"color": colour, "size": 7, "symbol": arm_symbol(i)},
            "hovertemplate": f"impressions %{{customdata[0]}} of an item: {score} impressions"
            f"<extra>{'' if single else '%{fullData.name}'}</extra>",
            "showlegend": not single and len(arms) > 1,
        })  # fmt: skip
        if single:
            break
    ticks = [k for k in _K_TICKS if k < last]
    return figure(
        data,
        x=axis("impressions of the item so far", type="log", tickvals=[k + 1 for k in ticks],
               ticktext=[str(k) for k in ticks]),
        y=axis(CURVES[metric][1], tickformat=CURVES[metric][2],
               rangemode="tozero" if metric == "n" else "normal"),
        hovermode="closest", shapes=[level(1.0)] if metric == "calibration" else [],
    )  # fmt: skip


def _middle(row: Value) -> float:
    """Geometric middle of a bin of exposures, plus one: the axis is logarithmic and has a 0."""
    return float(f"{((row['k_from'] + 1) * (row['k_to'] + 1)) ** 0.5:.6g}")


def _range(row: Value) -> str:
    low, high = row["k_from"], row["k_to"]
    return str(low) if low == high else f"{low}–{high}"
