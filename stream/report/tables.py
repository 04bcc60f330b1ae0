"""Tables and lists of a page as HTML: verdicts, scores, slices, notes. Draws no plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stream.report.difference_figures import verdict_colour
from stream.report.theme import BAD, GOOD, arm_colour
from stream.report.words import (
    MISSING,
    Value,
    count,
    escape,
    interval,
    number,
    percent,
    ratio,
    signed,
)

# Beside more arms, meanings would be a narrow column of many lines: they show on pointing then.
MEANINGS_ARMS_MAX = 4
Best = Literal["low", "high", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A row of the table of scores; `best`: which value of the arms is set in bold."""

    key: str
    name: str
    best: Best
    says: str
    digits: int = 4


SCORES: tuple[tuple[str, tuple[Score, ...]], ...] = (
    ("Probabilities", (
        Score(key="log_loss", name="Log loss", best="low",
              says="nats per impression; decides between models"),
        Score(key="ne", name="NE", best="low",
              says="log loss over that of the span's base rate; 1 = no better than the rate"),
        Score(key="ne_causal", name="NE, causal", best="low",
              says="over that of the base rate of the window before"),
    )),
    ("Calibration", (
        Score(key="calibration", name="Calibration", best="none",
              says="sum of predictions over sum of labels; 1 = right on average"),
        Score(key="ece", name="ECE", best="none",
              says="mean gap between predicted and observed share, in bins of equal mass"),
        Score(key="ece_floor", name="ECE, noise floor", best="none",
              says="what a perfect model would show on as many impressions"),
        Score(key="ece_z", name="ECE, z", best="none", digits=1,
              says="standard errors above the floor; under 3: no evidence of mis-calibration"),
    )),
    ("Ranking", (
        Score(key="auc", name="AUC", best="high", says="all impressions together"),
        Score(key="auc_daily_mean", name="AUC, mean of days", best="high",
              says="ranking without credit for following the level from day to day"),
        Score(key="gauc_request", name="GAUC by request", best="high",
              says="within what was shown together"),
        Score(key="gauc_user_batch", name="GAUC by user × batch", best="high",
              says="within a user's impressions predicted by the same weights"),
        Score(key="gauc_user_day", name="GAUC by user-day", best="none",
              says="only beside the others: an online model reacts to labels inside the group"),
        Score(key="ndcg", name="nDCG", best="high", says="of slates as shown"),
        Score(key="mrr", name="MRR", best="high", says="of slates as shown"),
        Score(key="hit1", name="Hit at 1", best="high", says="of slates as shown"),
    )),
    ("Labels", (
        Score(key="ctr", name="Positive rate", best="none", says="share of impressions"),
    )),
)  # fmt: skip


def scores(arms: Sequence[Value]) -> str:
    """Table of every score of every arm; scores that no arm has are left to the notes."""
    heads = "".join(
        f'<th scope="col" class="num">{swatch(i)}{escape(arm["name"])}</th>'
        for i, arm in enumerate(arms)
    )
    told = '<th scope="col" class="says">meaning</th>' if len(arms) <= MEANINGS_ARMS_MAX else ""
    columns = len(arms) + (2 if told else 1)
    body = []
    for title, group in SCORES:
        rows = [_score_row(score, arms) for score in group if _defined(score, arms)]
        if rows:
            head = f'<th scope="rowgroup" colspan="{columns}">{title}</th>'
            body.append(f'<tr class="group">{head}</tr>{"".join(rows)}')
    return _scrolling(
        f'<thead><tr><th scope="col">score</th>{heads}{told}'
        f"</tr></thead><tbody>{''.join(body)}</tbody>",
        kind="scores",
    )


def _defined(score: Score, arms: Sequence[Value]) -> bool:
    return any(arm["metrics"].get(score.key) is not None for arm in arms)


def _score_row(score: Score, arms: Sequence[Value]) -> str:
    best = _best(score, [arm["metrics"].get(score.key) for arm in arms])
    cells = []
    for i, arm in enumerate(arms):
        shown = number(arm["metrics"].get(score.key), score.digits)
        if i in best:
            shown = f"<b>{shown}</b>"
        if group := arm.get("groups", {}).get(score.key):
            shown += f'<span class="sub">{_skipped(group)}</span>'
        cells.append(f'<td class="num">{shown}</td>')
    told = f'<td class="says">{score.says}</td>' if len(arms) <= MEANINGS_ARMS_MAX else ""
    return f'<tr><th scope="row" title="{score.says}">{score.name}</th>{"".join(cells)}{told}</tr>'


def _best(score: Score, values: Sequence[float | None]) -> set[int]:
    """Places of the best value, to the digits that are shown; none where all are alike."""
    known = {i: value for i, value in enumerate(values) if value is not None}
    match score.best:
        case "low":
            ranks = known
        case "high":
            ranks = {i: -value for i, value in known.items()}
        case "none":
            return set()
    shown = {i: round(rank, score.digits) for i, rank in ranks.items()}
    best = {i for i, rank in shown.items() if rank == min(shown.values())}
    return set() if len(best) == len(shown) else best


def _skipped(group: Value) -> str:
    """What a GAUC leaves out: groups of one class, and their impressions."""
    groups, impressions = group["used"] + group["skipped"], group["impressions"]
    left_out = impressions - group["impressions_used"]
    return (
        f"skipped {percent(ratio(group['skipped'], groups), 0)} of groups, "
        f"{percent(ratio(left_out, impressions), 0)} of impressions"
    )


def verdict(pair: Value, *, lead: bool) -> str:
    """A pair's decision in words, its difference with interval, and the rules behind it."""
    decision = pair.get("decision") or {}
    state, label = _badge(decision)
    colour = {GOOD: "good", BAD: "bad"}.get(verdict_colour(pair), "neutral")
    tag = "h3" if not lead else "h3 class='lead'"
    facts = [
        f"{count(pair.get('blocks'))} blocks, {count(pair.get('resamples'))} resamples",
        f"better on {count(pair.get('days_better'))} of {count(pair.get('days'))} days",
    ]
    if pair.get("cold_start_regret") is not None:
        facts.append(f"cold-start regret {signed(pair['cold_start_regret'], 3)} nats per item")
    return f"""<article class="verdict {state}">
<p class="badge {state}">{label}</p>
<{tag}>{escape(decision.get("words", "No decision was made."))}</h3>
<p class="difference"><span class="big {colour}">{signed(pair.get("mean"), 5)}</span>
<span class="unit">nats per impression<br>95 % interval {interval(pair, 5)}</span></p>
<p class="facts">log loss of <b>{escape(pair["a"])}</b> minus log loss of
<b>{escape(pair["b"])}</b>, paired; {"; ".join(facts)}</p>
{_rules(decision.get("rules", ()))}</article>"""


def _badge(decision: Value) -> tuple[str, str]:
    """How a decision is marked: its winner, or that the better one failed a rule, or neither."""
    if decision.get("winner") is not None:
        return "good", f"winner: {escape(decision['winner'])}"
    if decision.get("accept") is False:
        return "bad", "not accepted"
    return "neutral", "no difference shown"


def _rules(rules: Iterable[Value]) -> str:
    marks = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"),
             None: ("neutral", "–", "not decided")}  # fmt: skip
    items = []
    for rule in rules:
        state, mark, word = marks[rule.get("passed")]
        items.append(
            f'<li class="{state}"><span class="mark" role="img" aria-label="{word}">{mark}</span>'
            f'<span>{escape(rule["rule"])} <span class="sub">{escape(rule.get("detail") or "")}'
            "</span></span></li>"
        )
    return f'<ul class="rules">{"".join(items)}</ul>' if items else ""


def tiles(arm: Value) -> str:
    """The figures of one arm, large: what a run without a comparison begins with."""
    scores_of = arm["metrics"]
    shown = (
        ("log loss", number(scores_of.get("log_loss")), "nats per impression"),
        ("NE", number(scores_of.get("ne")), "1 = base rate"),
        ("AUC", number(scores_of.get("auc")), "all impressions"),
        ("calibration", number(scores_of.get("calibration"), 3), "predicted / observed"),
        ("positive rate", percent(scores_of.get("ctr")), "of impressions"),
    )
    return "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}<span class="sub">{unit}</span></dd></div>'
        for name, value, unit in shown
    ).join(('<dl class="tiles">', "</dl>"))


def slices(arms: Sequence[Value], pairs: Sequence[Value]) -> str:
    """Every slice in numbers: impressions, positives, then scores by arm, then differences."""
    heads = ["slice", "impressions", "share", "positives"]
    heads += [
        f"{escape(arm['name'])}: {what}"
        for arm in arms
        for what in ("log loss ± s.e. (nats)", "NE", "calibration", "AUC")
    ]
    heads += [f"{escape(p['a'])} − {escape(p['b'])} (nats)" for p in pairs]
    of_arms = [{(r["by"], r["value"]): r for r in arm["slices"]} for arm in arms]
    of_pairs = [{(r["by"], r["value"]): r for r in pair["slices"]} for pair in pairs]
    body = []
    for row in arms[0]["slices"] if arms else ():
        key = row["by"], row["value"]
        cells = [count(row.get("n")), percent(row.get("share")), count(row.get("positives"))]
        for rows in of_arms:
            one = rows.get(key, {})
            cells += [
                f"{number(one.get('log_loss'))} ± {number(one.get('standard_error'))}",
                number(one.get("ne_slice")),
                number(one.get("calibration"), 3),
                number(one.get("auc")),
            ]
        cells += [
            f"{signed(rows.get(key, {}).get('mean'))} {interval(rows.get(key, {}))}"
            for rows in of_pairs
        ]
        body.append((f"{escape(row['by'])}: {escape(row['value'])}", cells))
    return table(heads, body)


def table(heads: Sequence[str], body: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of ready HTML: the first column names the row, all others are numbers."""
    head = "".join(
        f'<th scope="col"{" class=num" if i else ""}>{text}</th>' for i, text in enumerate(heads)
    )
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f'<td class="num">{cell}</td>' for cell in cells)
        + "</tr>"
        for name, cells in body
    )
    return _scrolling(f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")


def notes(reasons: Value) -> str:
    """What is undefined, and why."""
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(path)}</code></th><td>{escape(reason)}</td></tr>'
        for path, reason in sorted(reasons.items())
    )
    return _scrolling(
        '<thead><tr><th scope="col">value</th><th scope="col">why it is undefined</th></tr>'
        f"</thead><tbody>{rows}</tbody>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; a value that is missing is left out."""
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
        for name, value in pairs
        if value != MISSING
    )
    return f'<dl class="facts-list">{items}</dl>'


def swatch(place: int) -> str:
    """The colour of an arm beside its name."""
    token = arm_colour(place).removeprefix("@")
    return f'<span class="swatch" style="background:var(--{token})"></span>'


def _scrolling(content: str, kind: str = "") -> str:
    return (
        f'<div class="scroll" tabindex="0"><table{f" class={kind}" if kind else ""}>{content}'
        "</table></div>"
    )
