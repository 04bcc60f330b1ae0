"""Scopes: which part of which history a similarity module looks at. Computes no similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learners.content_cosines import ContentCosines, Cosines
from learners.feature_spec import ContentBlock, FeatureSpec
from learners.modules.module import ModuleConfig


@dataclass(frozen=True, kw_only=True)
class ScopesConfig(ModuleConfig):
    """Each history whole, and the last `recent` entries of it; order inside a scope is lost.

    `histories`: names of those that are read; empty: all. `whole` False: the recent entries alone.
    `block`: of the item vectors; "" is the fused one.
    """

    histories: tuple[str, ...] = ()
    recent: tuple[int, ...] = (10,)
    whole: bool = True
    block: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if any(n < 1 for n in self.recent):
            raise ValueError(f"recent: at least one entry each, got {list(self.recent)}")
        if not self.recent and not self.whole:
            raise ValueError("recent is empty and whole is false: there is nothing to look at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The last `recent` entries (0: all) of the history at `place`; `name` for reports."""

    name: str
    place: int
    recent: int


def scopes_of(spec: FeatureSpec, config: ScopesConfig, module: str) -> tuple[Scope, ...]:
    """The scopes of a configuration; raises ValueError where the spec has no such history."""
    bags = [bag for bag in spec.bags if bag.is_history]
    names = [bag.name for bag in bags]
    if not spec.content_dim:
        raise ValueError(f"{module}: there are no item vectors; set items.dim")
    if not bags:
        raise ValueError(f"{module}: there is no history to compare with; add a [[history]]")
    if unknown := sorted(set(config.histories) - set(names)):
        raise ValueError(f"{module}: no history '{unknown[0]}', expected some of {names}")
    found = []
    for place, bag in enumerate(bags):
        if config.histories and bag.name not in config.histories:
            continue
        found += [Scope(name=bag.name, place=place, recent=0)] * config.whole
        found += [
            Scope(name=f"{bag.name}.{n}", place=place, recent=n)
            for n in config.recent
            if n < bag.length or not config.whole
        ]
    return tuple(found)


def cosines_of(
    cosines: ContentCosines, block: ContentBlock, scopes: Sequence[Scope]
) -> list[tuple[Cosines, int]]:
    """For each scope the cosines of its history, and how many of the last entries count."""
    histories = cosines.histories(block)
    return [(histories[scope.place], scope.recent) for scope in scopes]
