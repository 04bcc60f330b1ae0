"""Settings of the synthetic stream, and what follows from them alone. Draws nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from stream.events import EVENTS_PER_ENVELOPE_MAX

HOUR_MS: Final = 3_600_000
IMPRESSIONS_MAX: Final = 50_000_000
Content = Literal["true", "permuted", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """Sizes, drift and delays of a stream.

    `impressions` are items shown, `slate` of them a request. `items` are there at the start;
    `new_items_per_hour` join them, and are shown less with a mean life of `item_life_hours`.
    `drift`: tastes and popularity correlate by exp(-drift) after a day; 0: none. `trend`: spread of
    popularity on the logit. `break_at`: share of the span after which tastes and popularity are
    others, at the next full hour; 0: never. `position_exponent` 0: no position bias.

    Delays of clicks are exponential with mean `delay_mean_ms`; `tail_share` of them Lomax with
    `tail_shape` and `tail_scale_ms`, cut at `delay_max_ms`. `window_ms` is the label window for
    which the truth is given. `duplicates`: share of events sent twice. `disorder_ms`: how much
    later than others an event may be sent.

    `content`: `permuted` gives items the content of others (a placebo), `none` gives them none.
    """

    seed: int = 0
    users: int = 2_000
    items: int = 500
    impressions: int = 200_000
    days: float = 7.0
    slate: int = 4
    new_items_per_hour: int = 5
    item_life_hours: float = 72.0
    drift: float = 0.2
    trend: float = 0.4
    break_at: float = 0.0
    position_exponent: float = 0.5
    delay_mean_ms: float = 20_000.0
    tail_share: float = 0.05
    tail_shape: float = 1.2
    tail_scale_ms: float = 600_000.0
    delay_max_ms: int = 86_400_000
    window_ms: int = 600_000
    duplicates: float = 0.0
    disorder_ms: int = 0
    content: Content = "true"
    content_dim: int = 32
    content_noise: float = 0.5
    start_ms: int = 1_704_067_200_000
    partitions: int = 4
    envelope: int = 100

    def __post_init__(self) -> None:
        """Check ranges; every message names the setting."""
        for name in ("users", "slate", "content_dim", "partitions", "window_ms", "delay_max_ms"):
            _check(name, getattr(self, name), 1, 1 << 40)
        _check("items", self.items, 2 * self.slate, 10_000_000)
        _check("impressions", self.impressions, self.slate, IMPRESSIONS_MAX)
        _check("envelope", self.envelope, 1, EVENTS_PER_ENVELOPE_MAX)
        _check("days", self.days, 1 / 24, 3_650.0)
        for name in ("delay_mean_ms", "tail_shape", "tail_scale_ms", "item_life_hours"):
            _check(name, getattr(self, name), 1e-3, 1e12)
        for name in ("seed", "new_items_per_hour", "drift", "trend", "position_exponent",
                     "disorder_ms", "content_noise"):  # fmt: skip
            _check(name, getattr(self, name), 0, 1 << 40)
        for name in ("break_at", "duplicates", "tail_share"):
            _check(name, getattr(self, name), 0, 1)
        if self.content not in get_args(Content):
            raise ValueError(f"content: expected true, permuted or none, got '{self.content}'")

    @property
    def hours(self) -> int:
        """Hours of the stream, the last one perhaps not full."""
        return math.ceil(round(self.days * 24, 6))

    @property
    def requests(self) -> int:
        """Whole requests."""
        return self.impressions // self.slate

    @property
    def items_in_all(self) -> int:
        """Items at the start and those of every hour."""
        return self.items + self.new_items_per_hour * self.hours

    @property
    def end_ms(self) -> int:
        """End of the impressions, itself not included."""
        return self.start_ms + round(self.days * 24 * HOUR_MS)

    @property
    def break_hour(self) -> int:
        """The hour that begins with the break; -1: none."""
        return math.ceil(self.break_at * self.hours) if self.break_at else -1

    @property
    def break_ms(self) -> int:
        """Time of the break; meaningless without one."""
        return self.start_ms + self.break_hour * HOUR_MS

    @property
    def share_in_window(self) -> float:
        """Probability that a click comes within the label window, exactly.

        A delay is 1 + floor(X) ms, so it is at most the window iff X < window_ms.
        """
        if self.window_ms > self.delay_max_ms:
            return 1.0
        short = -math.expm1(-self.window_ms / self.delay_mean_ms)
        long = 1 - (1 + self.window_ms / self.tail_scale_ms) ** -self.tail_shape
        return float((1 - self.tail_share) * short + self.tail_share * long)

    def hour_ms(self, hour: int) -> int:
        """Length of an hour of the stream: the last one may be shorter."""
        return min(HOUR_MS, self.end_ms - self.start_ms - hour * HOUR_MS)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value:g}")
