"""Predictions of open impressions, by slot of the join, until they settle. Pure.

Holds what was predicted and how fresh the weights were; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.state import Part

I64 = NDArray[np.int64]


class Predicted(NamedTuple):
    """Predictions of n rows by A arms.

    `batch_n` is the number of the learn step before which the row was predicted, so rows of one
    number saw the same weights; these hold no label settled after `weights_ms_n`. `has_vector_n`:
    whether the item had a vector then.
    """

    logit_nA: NDArray[np.float32]
    batch_n: I64
    weights_ms_n: I64
    has_vector_n: NDArray[np.bool_]

    def of(self, rows: I64) -> Predicted:
        """The predictions of these rows."""
        return Predicted(
            self.logit_nA[rows], self.batch_n[rows], self.weights_ms_n[rows],
            self.has_vector_n[rows],
        )  # fmt: skip


class PredictionMemory:
    """One place a slot, NaN where nothing was predicted; grows with the slots in use."""

    def __init__(self, arms: int) -> None:
        """Nothing predicted yet, by `arms` learners side by side."""
        self._held = _empty(0, arms)

    def put(
        self, slots: I64, logit_nA: NDArray[np.float32], batch: int, weights_ms: int,
        has_vector_n: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Keep predictions of slots, made by weights of one version; shapes as in Predicted."""
        if len(slots) and slots.max() >= len(self._held.batch_n):
            self._grow(2 * int(slots.max()) + 1)
        self._held.logit_nA[slots] = logit_nA
        self._held.batch_n[slots] = batch
        self._held.weights_ms_n[slots] = weights_ms
        self._held.has_vector_n[slots] = has_vector_n

    def get(self, slots: I64) -> Predicted:
        """Predictions of slots, copied out."""
        if len(slots) and slots.max() >= len(self._held.batch_n):
            self._grow(int(slots.max()) + 1)
        return self._held.of(slots)

    def _grow(self, n: int) -> None:
        old = self._held
        new = _empty(n, old.logit_nA.shape[1])
        columns: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(new, old, strict=True))
        for target, source in columns:
            target[: len(source)] = source
        self._held = new

    def export(self, slots: I64) -> Part:
        """The part `predicted`: places of slots in use."""
        held = self.get(slots)
        arrays = {"slots": slots, **held._asdict()}
        return Part(name="predicted", part_class="train", arrays=arrays)

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the part `predicted`; raises ValueError where it holds another number of arms."""
        part = parts["predicted"]
        logit_nA = part.array("logit_nA", np.float32)
        arms = self._held.logit_nA.shape[1]
        if logit_nA.ndim != 2 or logit_nA.shape[1] != arms:
            raise ValueError(f"part 'predicted': expected {arms} columns, got {logit_nA.shape}")
        slots = part.array("slots", np.int64)
        self._held = _empty(int(slots.max()) + 1 if len(slots) else 0, arms)
        for name in Predicted._fields:
            getattr(self._held, name)[slots] = part.array(name)


def _empty(n: int, arms: int) -> Predicted:
    return Predicted(
        np.full((n, arms), np.nan, np.float32), np.zeros(n, np.int64), np.zeros(n, np.int64),
        np.zeros(n, np.bool_),
    )  # fmt: skip
