"""A snapshot of a ranker to the form that the same ranker with other modules takes. Pure.

What both have stays bit for bit; a module that is new keeps its starting weights, with moments of
zero and an age of its own; one that is gone is dropped. Another base net is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.state import Part
from learners.embedding_table import EmbeddingTable
from learners.table_growth import grown_table

F32 = NDArray[np.float32]

MODULES = "methods."
"""Names of modules' parameters begin so."""
INCOMING: Final = "incoming"
"""Parameters of an encoder version that comes in: a module of this name."""
_PARAMETER = re.compile(r"(.+)\[([\d, ]*)\]")


class Run(NamedTuple):
    """The place of a parameter among all, as it lies in the flat arrays."""

    start: int
    size: int
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a restored ranker has that its snapshot had not, and the other way round: modules."""

    begun: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def runs_of(layout: Sequence[str]) -> dict[str, Run]:
    """Parameters of a layout by name, in order; other entries have no brackets."""
    found: dict[str, Run] = {}
    at = 0
    for entry in layout:
        if match := _PARAMETER.fullmatch(entry):
            size = int(np.prod([int(n) for n in match[2].split(",") if n.strip()]))
            found[match[1]] = Run(at, size, match[2])
            at += size
    return found


def module_of(parameter: str) -> str:
    """The module that a parameter belongs to; empty for the base net."""
    if parameter.startswith(f"{INCOMING}."):
        return INCOMING
    return parameter.split(".")[1] if parameter.startswith(MODULES) else ""


def change_of(was: Sequence[str], now: Sequence[str]) -> Change:
    """Which modules are begun and dropped; raises ValueError where more than modules differs."""

    def split(layout: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
        base: list[str] = []
        modules: dict[str, list[str]] = {}
        for entry in layout:
            name = module_of(entry)
            (modules.setdefault(name, []) if name else base).append(entry)
        return base, modules

    (base_was, were), (base_now, are) = split(was), split(now)
    other = [*(set(base_was) ^ set(base_now))]
    other += [e for name in were.keys() & are.keys() for e in set(were[name]) ^ set(are[name])]
    if other or base_was != base_now:
        raise ValueError(
            f"part 'dense': another net or other inputs ({', '.join(sorted(other)[:8])}); only "
            "whole modules can be begun or dropped, so use the configuration of the snapshot for "
            "all else"
        )
    return Change(
        begun=tuple(name for name in are if name not in were),
        dropped=tuple(name for name in were if name not in are),
    )


def grown(
    parts: Mapping[str, Part], now: Sequence[str], fresh: F32, tables: Sequence[EmbeddingTable], *,
    any_module: bool,
) -> tuple[Mapping[str, Part], Change]:  # fmt: skip
    """The parts as a ranker of layout `now` would have written them, and what that changes.

    `fresh`, `tables`: its weights and id tables as they start. Without `any_module` nothing but an
    encoder version may come in: else the parts stay as they are, to be refused. Raises ValueError
    as `change_of` and `grown_table` do.
    """
    dense = parts["dense"]
    change = change_of(dense.meta["layout"], now)
    if not any_module and ({*change.begun, *change.dropped} - {INCOMING}):
        return parts, change
    out = dict(parts)
    both = grown_dense(dense, parts.get("dense.train"), now, fresh)
    out |= {part.name: part for part in both if part is not None}
    for table in tables:
        own = {part.name: part for part in table.parts(None)}
        serve, _ = own.values()
        if serve.name not in parts:
            if set(serve.meta["fields"]) == set(serve.meta["owned"]):
                out |= own
            continue
        moved = grown_table(
            parts[serve.name], parts.get(f"{serve.name}.train"), serve.meta["fields"],
            serve.meta["owned"], table.weight_RD[: len(table.fields)].cpu().numpy(),
        )  # fmt: skip
        out |= {part.name: part for part in moved if part is not None}
    return out, change


def grown_dense(
    dense: Part, train: Part | None, now: Sequence[str], fresh: F32
) -> tuple[Part, Part | None]:
    """The dense parts in the layout `now`; `fresh`: all weights as they start.

    Raises ValueError as `change_of` does.
    """
    change_of(dense.meta["layout"], now)
    return _moved(dense, train, now, fresh, runs_of(dense.meta["layout"]))


def adopted(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts of a ranker that reads the new encoder version alone: as one that always did.

    Raises ValueError while the present version still counts.
    """
    dense = parts["dense"]
    share = dense.meta.get("present_share", 1.0)
    if share > 0:
        raise ValueError(
            f"the encoder version before still counts {share:.1%} in this snapshot: let it learn "
            "with both versions (items.next) until it has faded"
        )
    names = runs_of(dense.meta["layout"])
    before = {
        name: names.get(f"{INCOMING}.{name}", run)
        for name, run in names.items()
        if module_of(name) != INCOMING
    }
    now = [
        f"{name}[{before[name].shape}]" if name in before else name
        for name in (_name(entry) for entry in dense.meta["layout"])
        if module_of(name) != INCOMING
    ]
    size = sum(run.size for run in runs_of(now).values())
    both = _moved(dense, parts.get("dense.train"), now, np.zeros(size, np.float32), before)
    out = {n: part for n, part in parts.items() if module_of(n) != INCOMING}
    for name, part in parts.items():
        if module_of(name) == INCOMING:
            own = name.removeprefix(f"{INCOMING}.")
            out[own] = replace(part, name=own)
    return out | {part.name: part for part in both if part is not None}


def _name(entry: str) -> str:
    match = _PARAMETER.fullmatch(entry)
    return match[1] if match else entry


def _moved(
    dense: Part, train: Part | None, now: Sequence[str], fresh: F32, before: Mapping[str, Run]
) -> tuple[Part, Part | None]:
    """The parts in the layout `now`; `before`: where each parameter lay, if it did."""
    after = runs_of(now)

    def moved(array: NDArray[Any], start: F32) -> NDArray[Any]:
        out = start.astype(array.dtype)
        for name, run in after.items():
            if name in before:
                old = before[name].start
                out[run.start : run.start + run.size] = array[old : old + run.size]
        return out

    weights = {"weights": moved(dense.arrays["weights"], fresh)}
    new = replace(
        dense, arrays={**dense.arrays, **weights}, meta={**dense.meta, "layout": list(now)}
    )
    if train is None:
        return new, None
    zeros = np.zeros(len(fresh), np.float32)
    scale = _scale_of_counterparts(train.arrays["v"], before, after, zeros)
    moments = {"m": moved(train.arrays["m"], zeros), "v": moved(train.arrays["v"], scale)}
    moments["live"] = moved(train.arrays["live"], fresh)
    born = _born(train, before, after)
    return new, replace(
        train, arrays={**train.arrays, **moments}, meta={**train.meta, "born": born}
    )


def _scale_of_counterparts(
    v: NDArray[Any], before: Mapping[str, Run], after: Mapping[str, Run], zeros: F32
) -> F32:
    """Second moments to begin with: of an incoming weight the mean of those it will stand for.

    While the present version explains the clicks, its gradients are noise, and Adam with moments of
    zero would take steps of full length on noise.
    """
    out = zeros.copy()
    for name, run in after.items():
        own = _counterpart(name, before)
        if own is not None:
            out[run.start : run.start + run.size] = v[own.start : own.start + own.size].mean()
    return out


def _counterpart(name: str, before: Mapping[str, Run]) -> Run | None:
    """The present parameter whose place an incoming one takes, where it comes in now."""
    if name in before or module_of(name) != INCOMING:
        return None
    return before.get(name.removeprefix(f"{INCOMING}."))


def _born(train: Part, before: Mapping[str, Run], after: Mapping[str, Run]) -> list[list[int]]:
    """Runs of parameters of one age: kept ones have theirs, new ones begin at the step of now."""
    saved = train.meta.get("born", [[0, 0]])
    now = int(train.arrays["t"])

    def age(name: str) -> int:
        at = before.get(name) or _counterpart(name, before)
        if at is None:
            return now
        return int(next(b for start, b in reversed(saved) if start <= at.start))

    born: list[list[int]] = []
    for name, run in after.items():
        if not born or born[-1][1] != age(name):
            born.append([run.start, age(name)])
    return born
