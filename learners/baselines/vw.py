"""`vw`: Vowpal Wabbit's logistic regression on hashed rows. Needs the extra `vw`.

Vowpal Wabbit makes every step; here are the lines that it reads. Its weights have no place for item
vectors, and it says nothing about what a step touched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infra.state import Part
from learners.baselines.hashed_rows import F32, I32, HashedRowsConfig, rows_as_dicts
from learners.baselines.row_learner import F64, RowLearner
from learners.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from vowpalwabbit import Workspace


@dataclass(frozen=True, kw_only=True)
class VwConfig:
    """Step size, decay of step sizes, L2 penalty, and further arguments as on its command line."""

    rows: HashedRowsConfig = field(default_factory=HashedRowsConfig)
    lr: float = 0.15
    power_t: float = 0.5
    l2: float = 0.0
    arguments: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and self.power_t >= 0 and self.l2 >= 0):
            raise ValueError(
                f"vw: lr > 0, power_t and l2 >= 0, got {self.lr}, {self.power_t}, {self.l2}"
            )


def lines(index_BN: I32, value_BN: F32) -> list[str]:
    """The features of each row in Vowpal Wabbit's text format; the constant is left to it."""
    return [
        "|f " + " ".join([f"{i}" if v == 1 else f"{i}:{v:.6g}" for i, v in row.items()])
        for row in rows_as_dicts(index_BN, value_BN)
    ]


def labelled(line: str, label: float, weight: float) -> str:
    """The line of a row to learn: labels are -1 and 1."""
    return f"{1 if label else -1} {weight:.6g} {line}"


class Vw(RowLearner):
    """A workspace of Vowpal Wabbit; adaptive, normalized, invariant updates, which are its own."""

    def __init__(self, spec: FeatureSpec, config: VwConfig) -> None:
        super().__init__(spec, config.rows)
        self.config = config
        self.workspace = self._open("")

    def arguments(self) -> str:
        """The command line of this configuration."""
        c = self.config
        return (
            f"--quiet --loss_function logistic --bit_precision {c.rows.bits} "
            f"--learning_rate {c.lr} --power_t {c.power_t} --l2 {c.l2} {c.arguments}".strip()
        )

    def _open(self, more: str) -> Workspace:
        try:
            from vowpalwabbit import Workspace
        except ImportError:
            raise ValueError(
                "vw: the package vowpalwabbit is not installed; pip install 'millrace[vw]'"
            ) from None
        try:
            return Workspace(f"{self.arguments()} {more}".strip())
        except RuntimeError as error:
            raise ValueError(f"vw: arguments '{self.config.arguments}': {error}") from error

    def score_rows(self, index_BN: I32, value_BN: F32) -> F64:
        """Logits, float64 [B]; no more than ±50, as Vowpal Wabbit bounds them."""
        # An example that is not handed to finish_example leaves the counters in the model's file
        # alone, so predicting changes no byte of it.
        predict, example = self.workspace.predict, self.workspace.example
        return np.array([predict(example(line)) for line in lines(index_BN, value_BN)], float)

    def learn_rows(self, index_BN: I32, value_BN: F32, label_B: F64, weight_B: F64) -> int:
        """One update for each row."""
        text = lines(index_BN, value_BN)
        for line, label, weight in zip(text, label_B.tolist(), weight_B.tolist(), strict=True):
            self.workspace.learn(labelled(line, label, weight))
        return 0

    def weight_parts(self, mark: int | None) -> list[Part]:
        """The bytes of its own model file, with what its updates keep."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            self.workspace.save(path)
            model = np.frombuffer(path.read_bytes(), np.uint8).copy()
        meta = {"arguments": self.arguments()}
        return [Part(name="vw", part_class="serve", arrays={"model": model}, meta=meta)]

    def apply_weights(self, parts: Mapping[str, Part]) -> None:
        """Take the model file; raises ValueError where it was written with other arguments."""
        part = parts["vw"]
        if part.meta["arguments"] != self.arguments():
            raise ValueError(
                f"part 'vw': written with '{part.meta['arguments']}', configured is "
                f"'{self.arguments()}'; use the configuration of the snapshot"
            )
        self.workspace.finish()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            path.write_bytes(part.array("model", np.uint8).tobytes())
            self.workspace = self._open(f"--preserve_performance_counters -i {path}")
