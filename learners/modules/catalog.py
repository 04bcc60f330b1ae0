"""Modules by name, each with its configuration; which of them a ranker has. Builds them only."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from learners.feature_spec import FeatureSpec, IdField
from learners.modules.em3 import Em3, Em3Config
from learners.modules.fgcnn import Fgcnn, FgcnnConfig, own_fields
from learners.modules.flip import Flip, FlipConfig
from learners.modules.linear_content import LinearContent, LinearContentConfig
from learners.modules.make import Make, MakeConfig
from learners.modules.module import Module
from learners.modules.qarm import Qarm
from learners.modules.qarm_codes import QarmConfig
from learners.modules.simscore import SimScore, SimScoreConfig
from learners.modules.simtier import SimTier, SimTierConfig

Builder = Callable[[FeatureSpec, Any, int], Module]
"""Makes a module of a spec, its configuration and the width of the first hidden layer."""

BUILDERS: Mapping[str, Builder] = {
    "linear_content": LinearContent,
    "make": Make,
    "em3": Em3,
    "simtier": SimTier,
    "simscore": SimScore,
    "qarm": Qarm,
    "fgcnn": Fgcnn,
    "flip": Flip,
}
"""In the order in which they add to the ranker."""

OWN_FIELDS: Mapping[str, Callable[[FeatureSpec, Any], tuple[IdField, ...]]] = {
    "fgcnn": own_fields,
}
"""Id fields that a module has besides those of the configuration: other rows of the same ids."""


@dataclass(frozen=True, kw_only=True)
class ModulesConfig:
    """One field a module, named as in `BUILDERS`."""

    linear_content: LinearContentConfig = field(default_factory=LinearContentConfig)
    make: MakeConfig = field(default_factory=MakeConfig)
    em3: Em3Config = field(default_factory=Em3Config)
    simtier: SimTierConfig = field(default_factory=SimTierConfig)
    simscore: SimScoreConfig = field(default_factory=SimScoreConfig)
    qarm: QarmConfig = field(default_factory=QarmConfig)
    fgcnn: FgcnnConfig = field(default_factory=FgcnnConfig)
    flip: FlipConfig = field(default_factory=FlipConfig)


def modules_on(config: ModulesConfig) -> list[str]:
    """Names of the modules that are on, in the order of `BUILDERS`."""
    return [name for name in BUILDERS if getattr(config, name).on]


def module_spec(spec: FeatureSpec, config: ModulesConfig) -> FeatureSpec:
    """What a ranker with these modules reads: without other modules' inputs, with own fields."""
    own = spec.read_by(modules_on(config))
    more = [
        OWN_FIELDS[name](own, getattr(config, name))
        for name in modules_on(config)
        if name in OWN_FIELDS
    ]
    return replace(own, ids=own.ids + sum(more, ()))


def build_modules(
    spec: FeatureSpec, config: ModulesConfig, *, hidden: Sequence[int], seed: int
) -> list[tuple[str, Module]]:
    """The modules that are on; raises ValueError where one does not fit the spec.

    `hidden`: sizes of the ranker's hidden layers. Each module starts from a seed of its own name:
    adding one changes no other's weights.
    """
    built = []
    for name in modules_on(config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            try:
                module = BUILDERS[name](spec, getattr(config, name), hidden[0])
                module.deepen(hidden[1:])
            except ValueError as error:
                text = str(error)
                raise ValueError(
                    text if text.startswith(f"{name}: ") else f"{name}: {text}"
                ) from error
            built.append((name, module))
    return built
