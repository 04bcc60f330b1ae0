"""The sections of a page in their order: which plots and tables answer which question."""

from __future__ import annotations

from collections.abc import Sequence

from stream.report import (
    difference_figures,
    score_figures,
    slice_figures,
    tables,
    time_figures,
)
from stream.report.layout import Card, Section
from stream.report.theme import Figure
from stream.report.words import (
    MINUS,
    MISSING,
    Value,
    count,
    escape,
    interval,
    number,
    short_name,
    signed,
)

_DAYS_BESIDE = 7


def sections_of(value: Value, *, offset_minutes: int, config_text: str) -> list[Section]:
    """The sections that have something to say about this evaluation."""
    arms, pairs = value.get("arms", ()), value.get("pairs", ())
    places = {arm["name"]: i for i, arm in enumerate(arms)}
    found = [
        _verdict(arms, pairs),
        _scores(arms),
        _over_time(arms, pairs, places, offset_minutes),
        _calibration(arms, offset_minutes),
        _cold_start(arms, pairs),
        _slices(arms, pairs),
        _freshness(value.get("freshness", ())),
        _placebo(value.get("placebo", ())),
        _health(value, offset_minutes),
        _notes(value.get("reasons", {})),
        _config(config_text),
    ]
    sections = []
    for section in found:
        cards = [card for card in section.cards if not card.empty]
        if cards or section.html or section.after:
            sections.append(
                Section(
                    name=section.name, title=section.title, lead=section.lead, html=section.html,
                    cards=cards, after=section.after, layout=section.layout,
                )
            )  # fmt: skip
    return sections


def _verdict(arms: Sequence[Value], pairs: Sequence[Value]) -> Section:
    if not pairs:
        html = "".join(
            (f"<h3>{tables.swatch(i)}{escape(arm['name'])}</h3>" if len(arms) > 1 else "")
            + tables.tiles(arm)
            for i, arm in enumerate(arms)
        )
        return Section(name="summary", title="Summary", html=html)
    if len(pairs) == 1:
        named = [("all impressions", pairs[0])]
        if len(pairs[0]["daily"]) <= _DAYS_BESIDE:
            named += [(escape(row["date"]), row) for row in pairs[0]["daily"]]
    else:
        named = [
            (f"{short_name(pair['a'], 22)}<br>{MINUS} {short_name(pair['b'], 22)}", pair)
            for pair in pairs
        ]
    alone = pairs[0] if len(pairs) == 1 else {"a": "first", "b": "second"}
    better = (f"{short_name(alone['a'], 20)} better", f"{short_name(alone['b'], 20)} better")
    verdicts = "".join(tables.verdict(pair, lead=len(pairs) == 1) for pair in pairs)
    return Section(
        name="verdict",
        title="Verdict",
        lead="Differences are paired, impression by impression; below zero, the first one is "
        "better. Intervals come from a bootstrap over blocks, so that a user's impressions count "
        "together.",
        html=verdicts if len(pairs) == 1 else "",
        cards=[
            Card(
                title="Difference in log loss",
                figures=[difference_figures.differences(named, better)],
            )
        ],
        after=f'<div class="verdicts">{verdicts}</div>' if len(pairs) > 1 else "",
        layout="beside" if len(pairs) == 1 else "wide",
    )


def _scores(arms: Sequence[Value]) -> Section:
    lead = "Bold: best value. Whether a difference is more than chance is said in the verdict."
    return Section(
        name="scores", title="Scores", html=tables.scores(arms) if arms else "",
        lead=lead if len(arms) > 1 else "",
    )  # fmt: skip


def _over_time(
    arms: Sequence[Value], pairs: Sequence[Value], places: dict[str, int], offset: int
) -> Section:
    names = ("ne", "log_loss", "auc")
    hours = time_figures.running_hours(arms[0]["hourly"]) if arms else 0
    cards = [
        Card(
            title="Scores over time",
            note=f"By hour: each hour a dot, the line is the mean of the last "
            f"{hours} hours, weighted by impressions.",
            choices=(
                ("score", [time_figures.METRICS[name][0] for name in names]),
                ("window", ("Day", "Hour")),
            ),
            figures=[
                figure
                for name in names
                for figure in (
                    time_figures.over_days(arms, name),
                    time_figures.over_hours(arms, name, offset),
                )
            ],
        )
    ]
    if pairs:
        cards.append(
            Card(
                title="Difference over time",
                note="By day: paired difference with its 95 % interval. Summed: all differences "
                "since the start; a straight line is a steady gain, a bend is a change.",
                choices=(("window", ("Day", "Summed by hour")),),
                figures=[
                    difference_figures.difference_by_day(pairs, places),
                    difference_figures.difference_by_hour(pairs, arms, offset),
                ],
            )
        )
    return Section(name="time", title="Over time", cards=cards, layout="two")


def _calibration(arms: Sequence[Value], offset: int) -> Section:
    cards = [
        Card(
            title="Reliability",
            note="Bins of equal mass. Deviation: observed minus predicted. Inside the band, a "
            "model cannot be told from a perfect one.",
            choices=(("view", ("Deviation", "Diagonal")),),
            figures=[
                score_figures.reliability(arms, deviation=True),
                score_figures.reliability(arms, deviation=False),
            ],
        ),
        Card(
            title="Calibration over time",
            note="Predicted over observed positives. The band holds 95 % of a perfect model's "
            "values.",
            choices=(("window", ("Day", "Hour")),),
            figures=[
                time_figures.over_days(arms, "calibration"),
                time_figures.over_hours(arms, "calibration", offset),
            ],
        ),
    ]
    return Section(name="calibration", title="Calibration", cards=cards, layout="two")


def _cold_start(arms: Sequence[Value], pairs: Sequence[Value]) -> Section:
    regrets = [
        f"<li>{escape(pair['a'])} against {escape(pair['b'])}: "
        f"<b>{signed(pair['cold_start_regret'], 3)} nats</b></li>"
        for pair in pairs
        if pair.get("cold_start_regret") is not None
    ]
    after = (
        "<p class='sub'>Cold-start regret, the area between two curves over an item's first 100 "
        f"impressions; below zero, the first one is better:</p><ul>{''.join(regrets)}</ul>"
        if regrets
        else ""
    )
    return Section(
        name="cold",
        title="New items",
        lead="How good predictions are for an item's first impressions, and how fast they improve.",
        cards=[
            Card(
                title="Learning curve by impression of the item",
                choices=(("score", [name for name, _, _ in score_figures.CURVES.values()]),),
                figures=[score_figures.learning_curve(arms, key) for key in score_figures.CURVES],
            )
        ],
        after=after,
    )


def _slices(arms: Sequence[Value], pairs: Sequence[Value]) -> Section:
    cards = [
        Card(
            title="Difference by slice",
            note="With 95 % intervals; the larger the square, the larger the slice's share of "
            "impressions (named beside it). Slices under 0.2 % are in the table only; intervals "
            "of those under 1 % may leave the plot.",
            choices=(
                (("pair", [f"{short_name(p['a'], 20)} − {short_name(p['b'], 20)}" for p in pairs]),)
                if len(pairs) > 1
                else ()
            ),
            figures=[slice_figures.pair_slices(pair) for pair in pairs],
        ),
        Card(
            title="Scores by slice",
            note="States are those at the moment of the impression. Lines: 95 % intervals of "
            "calibration and log loss. An open triangle lies beyond the axis.",
            choices=(("score", [name for name, _ in slice_figures.METRICS.values()]),),
            figures=[slice_figures.arm_slices(arms, key) for key in slice_figures.METRICS],
        ),
    ]
    numbers = tables.slices(arms, pairs) if any(arm["slices"] for arm in arms) else ""
    after = f"<details><summary>Slices in numbers</summary>{numbers}</details>" if numbers else ""
    return Section(name="slices", title="Slices", cards=cards, after=after, layout="two")


def _freshness(rows: Sequence[Value]) -> Section:
    return Section(
        name="freshness",
        title="Freshness",
        lead="What predictions lose when weights are published less often.",
        cards=[
            Card(
                title="Log loss by time between publications",
                note="Paired difference to the freshest, with its 95 % interval.",
                figures=[difference_figures.freshness(rows)],
            )
        ]
        if rows
        else (),
    )


def _placebo(rows: Sequence[Value]) -> Section:
    paired = [row for row in rows if row.get("pair")]
    against = {
        "the same arm": [row for row in paired if row["pair"].get("b") == row["arm"]],
        "other arms": [row for row in paired if row["pair"].get("b") != row["arm"]],
    }
    against = {name: some for name, some in against.items() if some}
    body = [
        (
            f"{escape(row['arm'])}, permutation {escape(row['permutation'])}",
            [
                *(number(row["metrics"].get(key)) for key in ("log_loss", "ne", "auc")),
                escape((row.get("pair") or {}).get("b", MISSING)),
                signed((row.get("pair") or {}).get("mean"), 5),
                interval(row.get("pair") or {}, 5),
            ],
        )
        for row in rows
    ]
    heads = ("placebo of", "log loss (nats)", "NE", "AUC", "against", "difference (nats)",
             "95 % interval")  # fmt: skip
    return Section(
        name="placebo",
        title="Placebo",
        lead="Item vectors permuted among items: what stays of a gain does not come from content.",
        cards=[
            Card(
                title="Difference in log loss",
                choices=(("against", list(against)),) if len(against) > 1 else (),
                figures=[_placebo_figure(some) for some in against.values()],
            )
        ]
        if against
        else (),
        after=tables.table(heads, body) if body else "",
    )


def _placebo_figure(rows: Sequence[Value]) -> Figure:
    named = []
    for row in rows:
        who = f"{short_name(row['arm'], 22)}, permuted {escape(row['permutation'])}"
        named.append((f"{who}<br>{MINUS} {short_name(row['pair']['b'], 22)}", row["pair"]))
    return difference_figures.differences(named, ("placebo better", "placebo worse"))


def _health(value: Value, offset: int) -> Section:
    throughput = value.get("throughput") or {}
    seconds = throughput.get("seconds")
    return Section(
        name="run",
        title="The run",
        html=tables.facts(
            (
                ("samples per second", count(throughput.get("samples_per_s"))),
                ("events per second", count(throughput.get("events_per_s"))),
                ("duration", MISSING if seconds is None else f"{seconds:,.1f} s"),
                ("impressions evaluated", count(value.get("rows"))),
                ("left out as warm-up", count(value.get("warm_up_rows"))),
                ("not settled at the end", count(value.get("unsettled_rows"))),
            )
        ),
        cards=[
            Card(
                title="What impressions lacked",
                figures=[time_figures.missing_over_time(value.get("missing", ()), offset)],
            )
        ],
    )


def _notes(reasons: Value) -> Section:
    return Section(
        name="notes",
        title="Notes",
        html=f"<details><summary>{count(len(reasons))} notes: values without a number, rows left "
        f"out, and why</summary>{tables.notes(reasons)}</details>"
        if reasons
        else "",
    )


def _config(text: str) -> Section:
    return Section(
        name="config",
        title="Configuration",
        html=f"<details><summary>Settings of the run</summary><pre tabindex='0'>{escape(text)}"
        "</pre></details>"
        if text
        else "",
    )
