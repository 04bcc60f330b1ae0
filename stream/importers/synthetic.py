"""A synthetic stream whose click probabilities are known: users, items, drift, positions, delays.

Makes columns of impressions and items; writes nothing (`synthetic_log` does). The click model is
position-based (Craswell et al. 2008, section 3.3): an item is examined with a probability that
depends on its position alone, and an examined item is clicked with a probability that depends on
user, item and context alone:

    P(click) = (1 + position)^-exponent * sigmoid(base + user + item(t) + device + hour
                                                  + affinity * taste(t) . factors)

Tastes and items' popularity are stationary autoregressive processes that move once an hour. All
draws come from one generator: equal configurations give equal columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stream.importers.synthetic_config import HOUR_MS, SyntheticConfig

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FACTORS = 8
SEGMENTS = 4
TOPICS = 20
AUTHORS = 100
DEVICES = 3
ANNOUNCED_MS = 900_000
"""How long before its hour a new item is announced: its content is known before it is shown."""
_BASE = -1.4
_AFFINITY = 1.3
_DEVICE = np.array([-0.3, 0.0, 0.3])
"""Effects of the context's device on the logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemColumns:
    """One row an item: `born_ms` its announcement, attributes, and its content as vectors.

    `vectors_ID` float32, cosine-like signal about factors and quality; content belongs to the item
    of the row, or, as a placebo, to another one.
    """

    item_id: I64
    born_ms: I64
    topic: I64
    author: I64
    vectors_ID: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpressionColumns:
    """One row an item shown, in order of time; neighbouring rows of one request share its id.

    `probability` is that of a click at any time, `probability_without_position` the same if the
    item is examined for sure, `propensity` that of this item at this position given those above
    it. `click_delay_ms` is 0 where there is no click.
    """

    request_id: I64
    user_id: I64
    item_id: I64
    ts_ms: I64
    position: I64
    segment: I64
    device: I64
    propensity: F64
    probability: F64
    probability_without_position: F64
    click_delay_ms: I64

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.request_id)


def simulate(config: SyntheticConfig) -> tuple[ItemColumns, ImpressionColumns]:
    """All items and all impressions of a stream; about 2 µs and 90 bytes an impression."""
    rng = np.random.default_rng(config.seed)
    world = _World(config, rng)
    hours = list(_hours(world, config, rng))
    return world.items, ImpressionColumns(
        **{f.name: np.concatenate([h[f.name] for h in hours]) for f in fields(ImpressionColumns)}
    )


class _World:
    """Users and items as they are at one hour; `step` lets an hour pass."""

    def __init__(self, config: SyntheticConfig, rng: np.random.Generator) -> None:
        self._config, self._rng = config, rng
        self.segment_U = rng.integers(SEGMENTS, size=config.users)
        self._centre_SF = rng.normal(size=(SEGMENTS, FACTORS))
        self.bias_U = rng.normal(scale=0.5, size=config.users)
        activity_U = rng.lognormal(sigma=1.0, size=config.users)
        self.activity_U = np.cumsum(activity_U) / activity_U.sum()
        self.taste_UF = self._tastes()
        self._make_items()

    def _tastes(self) -> F64:
        own_UF = self._rng.normal(size=(self._config.users, FACTORS))
        taste_UF: F64 = np.sqrt(0.5) * (self._centre_SF[self.segment_U] + own_UF)
        return taste_UF

    def _make_items(self) -> None:
        config, rng = self._config, self._rng
        n = config.items_in_all
        topic, author = rng.integers(TOPICS, size=n), rng.integers(AUTHORS, size=n)
        self.factors_IF = (
            0.75 * rng.normal(size=(TOPICS, FACTORS))[topic]
            + 0.45 * rng.normal(size=(AUTHORS, FACTORS))[author]
            + 0.48 * rng.normal(size=(n, FACTORS))
        ) / np.sqrt(FACTORS)
        self.quality_I = (
            rng.normal(scale=0.3, size=TOPICS)[topic]
            + rng.normal(scale=0.4, size=AUTHORS)[author]
            + rng.normal(scale=0.4, size=n)
        )
        self.trend_I = rng.normal(scale=config.trend, size=n)
        self.promotion_I = 0.5 * self.quality_I + rng.normal(scale=0.6, size=n)
        first = np.arange(n) < config.items
        late_hour = (np.arange(n) - config.items) // max(config.new_items_per_hour, 1)
        # The first items are of all ages, so that the stream begins in the middle of things.
        ages = rng.exponential(config.item_life_hours, size=n)
        self.born_hour_I = np.where(first, -ages, late_hour)
        born_ms = config.start_ms + late_hour * HOUR_MS - ANNOUNCED_MS
        self.items = ItemColumns(
            item_id=np.arange(1, n + 1),
            born_ms=np.where(first, config.start_ms - ANNOUNCED_MS, born_ms),
            topic=topic,
            author=author,
            vectors_ID=self._vectors(),
        )
        if config.content == "permuted":
            # A generator of its own: the placebo has the same clicks.
            other_I = np.random.default_rng([config.seed, 2]).permutation(n)
            self.items = _with_content_of(self.items, other_I)

    def _vectors(self) -> NDArray[np.float32]:
        """A random linear image of factors and quality, plus noise of the configured size."""
        dim = self._config.content_dim
        signal_IS = np.column_stack([self.factors_IF * np.sqrt(FACTORS), 2 * self.quality_I])
        image_SD = self._rng.normal(size=(signal_IS.shape[1], dim)) / np.sqrt(signal_IS.shape[1])
        noise_ID = self._rng.normal(scale=self._config.content_noise, size=(len(signal_IS), dim))
        vectors_ID: NDArray[np.float32] = (signal_IS @ image_SD + noise_ID).astype(np.float32)
        return vectors_ID

    def step(self, hour: int) -> None:
        """The changes from `hour` - 1 to `hour`: gradual ones, and the break if it is now."""
        config, rng = self._config, self._rng
        if hour == config.break_hour:
            self.taste_UF = self._tastes()
            self.trend_I = -self.trend_I - 1.5 * self.quality_I
        if config.drift > 0:
            # Correlation after a day: exp(-drift).
            keep = np.exp(-config.drift / 24)
            noise = np.sqrt(1 - keep**2)
            mean_UF = np.sqrt(0.5) * self._centre_SF[self.segment_U]
            own_UF = np.sqrt(0.5) * rng.normal(size=self.taste_UF.shape)
            self.taste_UF = mean_UF + keep * (self.taste_UF - mean_UF) + noise * own_UF
            fresh_I = rng.normal(scale=config.trend, size=len(self.trend_I))
            self.trend_I = keep * self.trend_I + noise * fresh_I

    def logits(self, user_n: I64, item_n: I64, device_n: I64, hour_of_day: int) -> F64:
        """Log-odds of a click on an examined item, by places in the tables."""
        affinity_n = np.einsum("nf,nf->n", self.taste_UF[user_n], self.factors_IF[item_n])
        day = 0.3 * np.sin(2 * np.pi * hour_of_day / 24)
        logits_n: F64 = (
            _BASE
            + day
            + self.bias_U[user_n]
            + self.quality_I[item_n]
            + self.trend_I[item_n]
            + _DEVICE[device_n]
            + _AFFINITY * affinity_n
        )
        return logits_n


def _with_content_of(items: ItemColumns, other_I: I64) -> ItemColumns:
    return ItemColumns(
        item_id=items.item_id,
        born_ms=items.born_ms,
        topic=items.topic[other_I],
        author=items.author[other_I],
        vectors_ID=items.vectors_ID[other_I],
    )


def _hours(
    world: _World, config: SyntheticConfig, rng: np.random.Generator
) -> Iterator[dict[str, NDArray[np.generic]]]:
    hour_H = np.arange(config.hours)
    share_H = 1 + 0.6 * np.sin(2 * np.pi * (hour_H % 24 - 9) / 24)
    requests_H = rng.multinomial(config.requests, share_H / share_H.sum())
    first = 1
    for hour, n in enumerate(requests_H.tolist()):
        if hour:
            world.step(hour)
        yield _hour(world, config, rng, hour, first, n)
        first += n


def _hour(
    world: _World, config: SyntheticConfig, rng: np.random.Generator, hour: int, first: int, n: int
) -> dict[str, NDArray[np.generic]]:
    """Columns of the `n` requests of one hour; the first has the id `first`."""
    slate, length_ms = config.slate, config.hour_ms(hour)
    user_R = np.searchsorted(world.activity_U, rng.random(n), side="right")
    user_R = np.minimum(user_R, config.users - 1)
    ts_R = config.start_ms + hour * HOUR_MS + np.sort(rng.integers(length_ms, size=n))
    device_R = rng.integers(DEVICES, size=n)
    item_RS, propensity_RS = _slates(world, config, rng, hour, n)
    position_n = np.tile(np.arange(slate), n)
    user_n, device_n = np.repeat(user_R, slate), np.repeat(device_R, slate)
    item_n = item_RS.ravel()
    examined_n = expit(world.logits(user_n, item_n, device_n, hour % 24))
    probability_n = examined_n * (1.0 + position_n) ** -config.position_exponent
    clicked_n = rng.random(len(item_n)) < probability_n
    return {
        "request_id": np.repeat(np.arange(first, first + n), slate),
        "user_id": user_n + 1,
        "item_id": world.items.item_id[item_n],
        "ts_ms": np.repeat(ts_R, slate),
        "position": position_n,
        "segment": world.segment_U[user_n],
        "device": device_n,
        "propensity": propensity_RS.ravel(),
        "probability": probability_n,
        "probability_without_position": examined_n,
        "click_delay_ms": np.where(clicked_n, _delays(config, rng, len(item_n)), 0),
    }


def _slates(
    world: _World, config: SyntheticConfig, rng: np.random.Generator, hour: int, n: int
) -> tuple[I64, F64]:
    """Items [n, slate] and their propensities: a Plackett-Luce draw among the items born.

    Drawing again where an item is taken already is the conditional draw: w_j / (1 - those above).
    """
    live = np.flatnonzero(world.born_hour_I <= hour)
    age_L = hour - world.born_hour_I[live]
    weight_L = np.exp(world.promotion_I[live] - age_L / config.item_life_hours)
    share_L = weight_L / weight_L.sum()
    edges_L = np.cumsum(share_L)
    place_RS = np.empty((n, config.slate), np.int64)
    propensity_RS = np.empty((n, config.slate))
    left_R = np.ones(n)
    for s in range(config.slate):
        rest = np.arange(n)
        while len(rest):
            drawn = np.searchsorted(edges_L, rng.random(len(rest)), side="right")
            drawn = np.minimum(drawn, len(live) - 1)
            fresh = (place_RS[rest, :s] != drawn[:, None]).all(axis=1)
            place_RS[rest[fresh], s] = drawn[fresh]
            rest = rest[~fresh]
        chosen_R = share_L[place_RS[:, s]]
        propensity_RS[:, s] = chosen_R / left_R
        left_R = left_R - chosen_R
    return live[place_RS], propensity_RS


def _delays(config: SyntheticConfig, rng: np.random.Generator, n: int) -> I64:
    """Click delays in ms, at least 1: exponential, a share of them with a Lomax tail."""
    short_n = rng.exponential(config.delay_mean_ms, size=n)
    long_n = rng.pareto(config.tail_shape, size=n) * config.tail_scale_ms
    delay_n = np.where(rng.random(n) < config.tail_share, long_n, short_n)
    return 1 + np.minimum(delay_n, config.delay_max_ms).astype(np.int64)
