"""Arms of a comparison: configurations by name, and which of them one pipeline can feed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra import config as loader
from infra.errors import InputError
from stream.code_features import code_features, history_bags
from stream.config import Config

MINUTE_MS = 60_000
_UNITS_MS = {"s": 1_000, "m": MINUTE_MS, "h": 60 * MINUTE_MS, "d": 1_440 * MINUTE_MS}
NEVER = "never"
ARMS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration of a comparison.

    `permutation`: seed by which item vectors are permuted, for a placebo. `sync_ms`: how often the
    weights that predict are published, 0 for once only; None for weights that are always fresh.
    """

    name: str
    config: Config
    permutation: int | None = None
    sync_ms: int | None = None


def groups(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that agree in everything but the learner and its options, in order (rule 9).

    The arms of a group read one pipeline: the same samples, order, frozen features and vectors.
    Raises InputError where labels differ, as losses of different labels cannot be compared, or
    where there are too many arms.
    """
    if len(arms) > ARMS_MAX:
        raise InputError(f"compare: at most {ARMS_MAX} arms, got {len(arms)}")
    first = arms[0]
    for arm in arms[1:]:
        if _label(arm.config) != _label(first.config):
            raise InputError(
                f"compare: arm '{arm.name}' learns {_described(arm.config)}, '{first.name}' learns "
                f"{_described(first.config)}; give all arms the same ranker.label and window"
            )
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(f"{front(arm.config)} {arm.permutation}", []).append(arm)
    return list(found.values())


def front(config: Config) -> Any:
    """All that the pipeline reads, as plain tables: the configuration without the learner.

    Of the learner's options those count that add columns.
    """
    plain = loader.to_dict(config)
    codes = [[f.name, f.dim, f.length, f.rows_max] for f in code_features(config)]
    bags = [[bag.name, bag.length] for bag in history_bags(config)]
    return plain | {"ranker": {"label": config.ranker.label, "codes": [codes, bags]}}


def _label(config: Config) -> tuple[str, int]:
    return config.ranker.label, config.label[config.ranker.label].window_ms


def _described(config: Config) -> str:
    label, window_ms = _label(config)
    return f"'{label}' within {window_ms} ms"


def placebos(arms: Iterable[Arm], permutations: int) -> list[Arm]:
    """For each arm that reads item vectors, `permutations` arms with permuted ones."""
    return [
        replace(arm, name=f"{arm.name} placebo {seed}", permutation=seed)
        for arm in arms
        if arm.config.items.dim
        for seed in range(1, permutations + 1)
    ]


def differ_in_content_only(a: Arm, b: Arm) -> bool:
    """Whether two arms differ in their item vectors, if at all."""
    changed = loader.differences(loader.to_dict(a.config), loader.to_dict(b.config))
    return all(line.startswith("items.") for line in changed)


def published(arm: Arm, sync: str, *, start_ms: int, offset_ms: int) -> Arm:
    """The arm with weights that are published every `sync` (`10m`, `1h`, `1d`, `never`).

    From `start_ms` on, and at multiples of the interval in the time of `offset_ms` ahead of UTC.
    Raises InputError.
    """
    every_ms = 0 if sync == NEVER else interval_ms(sync)
    ranker = arm.config.ranker
    options = {
        "learner": ranker.name, "options": dict(ranker.options), "every_ms": every_ms,
        "offset_ms": -offset_ms % every_ms if every_ms else 0, "start_ms": start_ms,
    }  # fmt: skip
    config = replace(arm.config, ranker=replace(ranker, name="published", options=options))
    return Arm(name=f"{arm.name} sync {sync}", config=config, sync_ms=every_ms)


def interval_ms(text: str) -> int:
    """Milliseconds of `30s`, `10m`, `1h`, `1d`. Raises InputError."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise InputError(f"interval '{text}': expected a number and s, m, h or d, such as 10m")
    return int(match[1]) * _UNITS_MS[match[2]]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, later ones of equal names numbered."""
    out: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in out:
            number += 1
            unique = f"{name} {number}"
        out.append(unique)
    return out
