"""Features of item codes that a module of the ranker asks for. Reads no codebook.

With `items.codebook` set, a ranker with the module `qarm` needs no `[[feature]]` for codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from learners.modules.qarm_codes import NAME, CodeBag, QarmConfig, code_bags
from stream.config import CODES_PATH, Config, FeatureConfig, RankerConfig

T = TypeVar("T")


def wanted_bags(config: Config) -> list[CodeBag]:
    """Bags of codes that the ranker of a configuration reads; none without the module.

    Options that are no options are left for the learner to refuse.
    """
    options = _options(config)
    if options is None or not options.on:
        return []
    return code_bags(options, [(h.name, h.length) for h in config.history])


def code_features(config: Config) -> list[FeatureConfig]:
    """Several-valued features of the target's codes, in the order of its bags.

    Their fields give every code a row at once and never take it back: codes are few, and an item
    that nobody has seen lives on the rows of its codes.
    """
    options = _options(config)
    if options is None or not config.items.codebook:
        return []
    return [
        FeatureConfig(
            name=bag.name, path=f"{CODES_PATH}{bag.code}", kind="multi-id", dim=options.dim,
            length=bag.length, rows_max=options.rows_max,
        )
        for bag in wanted_bags(config) if not bag.history
    ]  # fmt: skip


def history_bags(config: Config) -> list[CodeBag]:
    """Bags of the codes of the histories' items."""
    if not config.items.codebook:
        return []
    return [bag for bag in wanted_bags(config) if bag.history]


def _options(config: Config) -> QarmConfig | None:
    return module_options(config.ranker, NAME, QarmConfig)


def module_options(ranker: RankerConfig, name: str, form: type[T]) -> T | None:
    """The options of a ranker's module; None where they are none, which the learner will say."""
    options: Mapping[str, Any] = ranker.options
    while isinstance(inner := options.get("options"), Mapping):  # of a published copy
        options = inner
    try:
        return msgspec.convert(options.get(name, {}), form)
    except (msgspec.ValidationError, ValueError):
        return None
