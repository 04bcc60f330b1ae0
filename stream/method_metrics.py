"""What the methods of a learner tell the telemetry seam. Measures nothing: methods count anyway.

A learner without modules, or with others, tells nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infra.telemetry import Telemetry
from learners.learner import Learner
from stream import metric_table as t


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Where a count of a learner goes. `scale`: how many of it are 1 of the metric's unit.

    `only_with`: the name of a count that must be above 0, or there is nothing to tell.
    """

    row: t.Row
    attributes: Mapping[str, str]
    scale: float = 1.0
    only_with: str = ""


def _plain(row: t.Row) -> Figure:
    return Figure(row=row, attributes={})


FIGURES: Mapping[str, Figure] = {
    "make_replayed": _plain(t.MAKE_REPLAYED),
    "make_refused": _plain(t.MAKE_WITHIN),
    "make_releases": Figure(row=t.MAKE_RELEASES, attributes={t.OUTCOME: "configured"}),
    "make_passed": Figure(row=t.MAKE_RELEASES, attributes={t.OUTCOME: "passed"}),
    "make_reverted": Figure(row=t.MAKE_RELEASES, attributes={t.OUTCOME: "reverted"}),
    "make_trial_rows": _plain(t.MAKE_TRIAL),
    "make_trial_micronats": Figure(
        row=t.MAKE_DIFFERENCE, attributes={}, scale=1e6, only_with="make_trial_rows"
    ),
    "simtier_served_rows": Figure(row=t.SERVED, attributes={t.OUTCOME: "read"}),
    "simtier_served_differing": Figure(row=t.SERVED, attributes={t.OUTCOME: "differing"}),
    "simtier_served_other_version": Figure(row=t.SERVED, attributes={t.OUTCOME: "other_version"}),
    "em3_memory_rows": _plain(t.EM3_MEMORY),
    **{
        f"em3_memory_cosine_{age}": Figure(
            row=t.EM3_COSINE, attributes={t.AGE: age}, scale=1e3,
            only_with=f"em3_memory_rewritten_{age}",
        )
        for age in ("hour", "day", "more")
    },
    "flip_vocabulary": _plain(t.FLIP_VOCABULARY),
}  # fmt: skip
"""By the names that `Learner.counts` has for them."""


def publish_methods(to: Telemetry, learner: Learner, counts: Mapping[str, int]) -> None:
    """Totals and gauges of the learner's methods as they stand, and their losses of a step.

    `counts`: those of the learner.
    """
    for name, figure in FIGURES.items():
        if name not in counts or (figure.only_with and not counts[figure.only_with]):
            continue
        tell = to.total if figure.row.metric.kind == "counter" else to.gauge
        tell(figure.row.name, counts[name] / figure.scale, figure.attributes)
    losses: Callable[[], Mapping[str, float]] | None = getattr(learner, "method_losses", None)
    for method, loss in losses().items() if losses else ():
        to.gauge(t.METHOD_LOSS.name, loss, {t.METHOD: method})
