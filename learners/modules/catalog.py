"""Modules by name, each with its configuration; which of them a ranker has. Builds them only."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from learners.feature_spec import FeatureSpec
from learners.modules.linear_content import LinearContent, LinearContentConfig
from learners.modules.module import Module

Builder = Callable[[FeatureSpec, Any, int], Module]
"""Makes a module of a spec, its configuration and the width of the first hidden layer."""

BUILDERS: Mapping[str, Builder] = {
    "linear_content": LinearContent,
}
"""In the order in which they add to the ranker."""


@dataclass(frozen=True, kw_only=True)
class ModulesConfig:
    """One field a module, named as in `BUILDERS`."""

    linear_content: LinearContentConfig = field(default_factory=LinearContentConfig)


def modules_on(config: ModulesConfig) -> list[str]:
    """Names of the modules that are on, in the order of `BUILDERS`."""
    return [name for name in BUILDERS if getattr(config, name).on]


def build_modules(
    spec: FeatureSpec, config: ModulesConfig, *, hidden: int, seed: int
) -> list[tuple[str, Module]]:
    """The modules that are on; raises ValueError where one does not fit the spec.

    Each starts from a seed of its own name: adding a module changes no other's weights.
    """
    built = []
    for name in modules_on(config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            built.append((name, BUILDERS[name](spec, getattr(config, name), hidden)))
    return built
