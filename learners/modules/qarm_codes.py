"""Which code features the module `qarm` reads: its configuration, and the bags it stands for.

Shared by the plan of columns and the module, so that both mean the same bags. Moves no data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from learners.modules.module import ModuleConfig

NAME = "qarm"
Use = Literal["item", "sequence", "cross"]
_CODE = re.compile(r"rq[1-9]|prefix[2-9]")


@dataclass(frozen=True, kw_only=True)
class QarmConfig(ModuleConfig):
    """Codes as trainable ids (QARM, arXiv 2411.11739, section "in the ranker").

    `uses`: `item`, the target's codes; `sequence`, target attention over the histories' codes;
    `cross`, the entries of a history that share a code with the target, pooled and counted.
    """

    uses: tuple[Use, ...] = ("item", "sequence", "cross")
    codes: tuple[str, ...] = ("rq1", "rq2", "rq3", "prefix2")
    """Codes of the target: `rqN` of a level, `prefixN` of the path down to a level."""
    history_codes: tuple[str, ...] = ("rq1", "prefix2")
    """Codes of the histories' items, some of `codes`; those of `cross` are `rq1` and `prefixN`."""
    anchors: int = 10
    """Nearest anchors of the target that are read, for `item`; 0: none. (The paper: 25.)"""
    histories: tuple[str, ...] = ()
    """Histories that are read; empty: all."""
    dim: int = 8
    """Columns of a code's row."""
    rows_max: int = 1_000_000
    """Rows of each kind of code, at most; a row is never given up."""
    trained: bool = True
    """False leaves the rows of codes as they start: what remains is the worth of codes alone."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.uses or not set(self.uses) <= {"item", "sequence", "cross"}:
            raise ValueError(f"qarm: uses: some of item, sequence, cross; got {list(self.uses)}")
        if bad := [c for c in (*self.codes, *self.history_codes) if not _CODE.fullmatch(c)]:
            raise ValueError(f"qarm: codes: expected rq1, rq2, …, prefix2, …; got '{bad[0]}'")
        if not self.codes or len(set(self.codes)) < len(self.codes):
            raise ValueError("qarm: codes: one or more names, each once")
        if missing := set(self.history_codes) - set(self.codes):
            raise ValueError(f"qarm: history_codes: {sorted(missing)} must be among codes, too")
        if self.reads_histories and not self.history_codes:
            raise ValueError("qarm: history_codes: sequence and cross need one at least")
        if "cross" in self.uses and not self.shared:
            raise ValueError("qarm: history_codes: cross needs rq1 or a prefix")
        if min(self.dim, self.rows_max) < 1 or self.anchors < 0:
            raise ValueError(
                f"qarm: dim, rows_max >= 1, anchors >= 0, got {self.dim}, {self.rows_max}, "
                f"{self.anchors}"
            )

    @property
    def reads_histories(self) -> bool:
        """Whether anything of a history is read."""
        return bool({"sequence", "cross"} & set(self.uses))

    @property
    def shared(self) -> tuple[str, ...]:
        """Codes of a history by which it is matched with the target: those that mean a cluster.

        `rq2` alone means nothing without the code above it.
        """
        return tuple(c for c in self.history_codes if c == "rq1" or c.startswith("prefix"))

    def blocks(self) -> tuple[tuple[int, int], ...]:
        """What is pooled of a history: (form, place in `history_codes`).

        Form -1 is attention, over each code; form c the entries that share `shared[c]`, over the
        codes that this does not settle: entries of one path have one `rq1`, the target's own.
        """
        attention = [(-1, s) for s in range(len(self.history_codes))]
        cross = [
            (c, s)
            for c, shared in enumerate(self.shared)
            for s, code in enumerate(self.history_codes)
            if _depth(code) > _depth(shared)
        ]
        found = attention if "sequence" in self.uses else []
        return (*found, *(cross if "cross" in self.uses else []))


def _depth(code: str) -> int:
    return int(code.removeprefix("rq").removeprefix("prefix"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBag:
    """A bag of code keys: `length` entries of the attribute `codes.CODE`.

    `field` has the rows; bags of the target and of histories share them. `history` names the
    history whose items' codes it holds, one an item; empty: the target's.
    """

    name: str
    field: str
    code: str
    length: int
    history: str


def code_bags(config: QarmConfig, histories: Sequence[tuple[str, int]]) -> list[CodeBag]:
    """All bags of a configuration with the given histories (name, length), the target's first."""
    found = [_bag(code, 1, "") for code in config.codes]
    if config.anchors and "item" in config.uses:
        found.append(_bag("vq", config.anchors, ""))
    if config.reads_histories:
        for history, length in histories:
            if not config.histories or history in config.histories:
                found += [_bag(code, length, history) for code in config.history_codes]
    return found


def _bag(code: str, length: int, history: str) -> CodeBag:
    field = f"{NAME}.{code}"
    name = f"{field}.{history}" if history else field
    return CodeBag(name=name, field=field, code=code, length=length, history=history)
