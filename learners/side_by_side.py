"""Several learners on the same batches, for comparisons: their logits are columns.

Each learner sees exactly what it would see alone, so its logits are those of a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from infra.state import Part
from learners.batch import MiniBatch
from learners.learner import Learner, StepReport

T = TypeVar("T")


class SideBySide:
    """A `Learner` of A arms: logits are float32 [B, A], loss and skipped rows [A].

    Arms run in `threads` threads: they share nothing but the batch, which none of them changes,
    and torch and the compiled kernels let go of the interpreter while they work.
    """

    def __init__(self, arms: Mapping[str, Learner], *, threads: int = 1) -> None:
        """`arms` by name, at least one."""
        assert arms, "no arms"
        self.arms = dict(arms)
        self.device = getattr(next(iter(self.arms.values())), "device", torch.device("cpu"))
        threads = min(threads, len(self.arms))
        self._pool = ThreadPoolExecutor(threads, "arm") if threads > 1 else None

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _all(self, do: Callable[[Learner], T]) -> list[T]:
        arms = self.arms.values()
        return list(map(do, arms) if self._pool is None else self._pool.map(do, arms))

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Each arm's logits from before its update, then its update."""
        reports = self._all(lambda arm: arm.learn_many(batch))
        return StepReport(
            logits_B=torch.stack([r.logits_B.cpu() for r in reports], 1),
            loss=torch.stack([r.loss.cpu() for r in reports]),
            skipped=torch.stack([r.skipped.cpu() for r in reports]),
        )

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B, A]; changes nothing."""
        return torch.stack(self._all(lambda arm: arm.predict_many(batch).cpu()), 1)

    def export_full(self) -> Sequence[Part]:
        """All parts of all arms, named `ARM/PART`."""
        return self._named({name: arm.export_full() for name, arm in self.arms.items()})

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same, only what was touched since learn step `mark`."""
        return self._named({name: arm.export_since(mark) for name, arm in self.arms.items()})

    @staticmethod
    def _named(parts: Mapping[str, Sequence[Part]]) -> list[Part]:
        return [replace(p, name=f"{arm}/{p.name}") for arm, of in parts.items() for p in of]

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take the state of parts."""
        for name, arm in self.arms.items():
            mine = {
                part.name.removeprefix(f"{name}/"): part
                for part in parts.values()
                if part.name.startswith(f"{name}/")
            }
            arm.apply({key: replace(part, name=key) for key, part in mine.items()})

    def counts(self) -> Mapping[str, int]:
        """Counts of the first arm, and those of all arms as `ARM.COUNT`."""
        first, *_ = self.arms.values()
        named = {f"{n}.{k}": v for n, arm in self.arms.items() for k, v in arm.counts().items()}
        return {**first.counts(), **named}
