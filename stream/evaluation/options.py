"""What an evaluation is asked for; holds no rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from infra.errors import InputError

Block = Literal["user", "user_day", "hour"]
PredictAt = Literal["impression", "settle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """Protocol of an evaluation: what is left out, how labels settle, and how sure is measured."""

    label: str = "click"
    predict_at: PredictAt = "impression"
    window_ms: int = 0
    """Label window: an impression's label is known this long after it."""
    end_ms: int | None = None
    """End of the log; a row whose window ends later is flagged unsettled. None: the last row's."""
    evaluate_from_ms: int | None = None
    """Rows shown earlier are warm-up: predicted and learned, not scored."""
    warm_up_share: float = 0.0
    """The same as a share of the rows in order of time, where no time is given."""
    offset_ms: int = 0
    """Local clock against UTC: where days begin."""
    bins: int = 20
    """Reliability bins of equal mass."""
    slate_k: int = 10
    """NDCG counts this many places."""
    resamples: int = 1_000
    block: Block = "user"
    """What the bootstrap draws as a whole."""
    seed: int = 0
    reference: str | None = None
    """Arm that all others are compared with. None: every pair of arms, the earlier one first."""
    placebos: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Arm -> (arm whose content it permutes, number of the permutation)."""
    content_treatments: Collection[tuple[str, str]] | None = None
    """Pairs of arms that differ in nothing but content: only there a placebo that gains speaks
    against the better arm. None: every pair."""
    sync_ms: Mapping[str, int] = field(default_factory=dict)
    """Arm -> how long its weights wait for publication: a freshness curve of two or more."""
    throughput: Mapping[str, float | None] = field(default_factory=dict)
    """samples_per_s, events_per_s, seconds of the run; handed through."""

    def __post_init__(self) -> None:
        """Values are in range."""
        if not 0 <= self.warm_up_share < 1:
            raise InputError(
                f"evaluation: warm_up_share must lie in [0, 1), got {self.warm_up_share}"
            )
        if self.window_ms < 0:
            raise InputError(f"evaluation: window_ms must not be negative, got {self.window_ms}")
        for name in ("bins", "slate_k", "resamples"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"evaluation: {name} must be at least 1, got {getattr(self, name)}"
                )
