"""Learners by name, each with its configuration. Builds them; runs nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import msgspec

from infra.config import explained
from learners.baselines.base_rate import BaseRate, BaseRateConfig
from learners.baselines.dcn import Dcn, DcnConfig
from learners.baselines.ftrl import Ftrl, FtrlConfig
from learners.baselines.river_fm import RiverFm, RiverFmConfig
from learners.baselines.river_logistic import RiverLogistic, RiverLogisticConfig
from learners.baselines.smoothed_rates import SmoothedRates, SmoothedRatesConfig
from learners.baselines.vw import Vw, VwConfig
from learners.feature_spec import FeatureSpec
from learners.learner import Learner
from learners.published import FrozenConfig, Published, PublishedConfig
from learners.rankers.fgcnn import FgcnnRanker, FgcnnRankerConfig
from learners.rankers.id_content import IdContent, IdContentConfig

_OF_MSGSPEC = ("Expected ", "Invalid ", "Object ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A learner's configuration class and its constructor."""

    config: type[Any]
    builder: Callable[[FeatureSpec, Any], Learner]


def _published(spec: FeatureSpec, config: PublishedConfig) -> Learner:
    return Published(spec, config, lambda: build(config.learner, spec, config.options))


ENTRIES: Mapping[str, Entry] = {
    "id_content": Entry(config=IdContentConfig, builder=IdContent),
    "fgcnn": Entry(config=FgcnnRankerConfig, builder=FgcnnRanker),
    "smoothed_rates": Entry(config=SmoothedRatesConfig, builder=SmoothedRates),
    "base_rate": Entry(config=BaseRateConfig, builder=BaseRate),
    "ftrl": Entry(config=FtrlConfig, builder=Ftrl),
    "river_logistic": Entry(config=RiverLogisticConfig, builder=RiverLogistic),
    "river_fm": Entry(config=RiverFmConfig, builder=RiverFm),
    "vw": Entry(config=VwConfig, builder=Vw),
    "dcn": Entry(config=DcnConfig, builder=Dcn),
    "published": Entry(config=PublishedConfig, builder=_published),
    "frozen": Entry(config=FrozenConfig, builder=_published),
}


def entry(name: str) -> Entry:
    """The learner `name`; raises ValueError with the nearest name."""
    if name not in ENTRIES:
        raise ValueError(f"learner: unknown name '{name}'{_nearest(name, list(ENTRIES))}")
    return ENTRIES[name]


def config_of(name: str, options: Mapping[str, Any]) -> Any:
    """Configuration of the learner `name` from options as TOML gives them.

    Raises ValueError for an unknown option (naming the nearest), wrong type or bad value.
    """
    cls = entry(name).config
    _check_names(cls, options, f"learner {name}")
    try:
        return msgspec.convert(options, cls)
    except msgspec.ValidationError as error:
        place, text = explained(error, cls)
        # What a table of options says itself begins with the table's name.
        named = f"{place}: {text}" if text.startswith(_OF_MSGSPEC) else text
        raise ValueError(f"learner {name}: {named}") from None


def build(name: str, spec: FeatureSpec, options: Mapping[str, Any]) -> Learner:
    """A learner for `spec`; raises ValueError for a wrong name, option or misfit with the spec."""
    return entry(name).builder(spec, config_of(name, options))


def _check_names(cls: type[Any], options: Mapping[str, Any], where: str) -> None:
    hints, known = get_type_hints(cls), [f.name for f in fields(cls)]
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{where}: unknown option '{key}'{_nearest(key, known)}")
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _check_names(hints[key], value, f"{where}.{key}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"
