"""How far the change from one encoder version to another is, in a file (shell). Changes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from infra.errors import InputError

FILE = "migration.json"
Phase = Literal["backfill", "ready", "adopted", "done"]
"""backfill: vectors are being made; ready: every item has one, the worker may read both; adopted:
a snapshot of the new version alone was made; done: the rows before are off the topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationState:
    """`covered` of `items` had a row of the new version when it was last looked."""

    before: str
    version: str
    to: str
    phase: Phase = "backfill"
    items: int = 0
    covered: int = 0
    removed: int = 0
    snapshot: str = ""

    @property
    def coverage(self) -> float:
        """The covered share; 1 where there are no items."""
        return self.covered / self.items if self.items else 1.0

    def to_map(self) -> dict[str, Any]:
        """All of it, and the coverage, for JSON."""
        return {**asdict(self), "coverage": self.coverage}

    def at(self, phase: Phase, **changes: Any) -> MigrationState:
        """The state in that phase, or in its own where that is a later one."""
        order = get_args(Phase)
        return replace(self, phase=max(phase, self.phase, key=order.index), **changes)


def read_state(folder: Path) -> MigrationState | None:
    """The state in `folder`, None where no migration was begun; raises InputError for damage."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data)
        found.pop("coverage", None)
        return msgspec.convert(found, MigrationState)
    except (msgspec.MsgspecError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: is no state of a migration ({error}); remove it") from error


def write_state(folder: Path, state: MigrationState) -> None:
    """Write it, whole or not at all, durable when this returns; raises InputError."""
    path = folder / FILE
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump(state.to_map(), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
