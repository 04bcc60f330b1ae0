"""Named parts of a snapshot, and the contract of everything that has state. Writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

PartClass = Literal["serve", "train"]
Meta = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One named piece of state: arrays and a msgpack-able map of scalars, strings and lists.

    `part_class` is `serve` for what scoring needs (weights, id tables, user state, counters)
    and `train` for the rest. A part with `delta=True` holds only what was touched since a mark.
    """

    name: str
    part_class: PartClass
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    meta: Meta = field(default_factory=dict)
    delta: bool = False

    def array(self, name: str, dtype: np.typing.DTypeLike | None = None) -> NDArray[Any]:
        """The array `name`, its dtype checked; raises KeyError or TypeError naming this part."""
        if name not in self.arrays:
            raise KeyError(f"part '{self.name}' has no array '{name}', only {sorted(self.arrays)}")
        value = self.arrays[name]
        if dtype is not None and value.dtype != np.dtype(dtype):
            raise TypeError(
                f"part '{self.name}', array '{name}': expected {np.dtype(dtype)}, got {value.dtype}"
            )
        return value


class StateContainer(Protocol):
    """State that snapshots hold. Exports are copies: what follows does not change them."""

    def export_full(self) -> Sequence[Part]:
        """Everything, such that `apply` on a fresh container continues bit for bit."""
        ...

    def export_since(self, mark: int) -> Sequence[Part]:
        """What changed since `mark` (a learn step), as delta parts; or full parts."""
        ...

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take state from parts, by name; raises KeyError, TypeError or ValueError on a misfit."""
        ...
