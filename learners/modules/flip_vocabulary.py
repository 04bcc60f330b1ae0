"""FLIP's output rows by id, and noise ids that follow the stream. Computes no loss.

The vocabulary is what the stream has shown: a row starts at zero with the first sample that has
the id, and is freed by nothing but the bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.state import Part
from learners.embedding_table import EmbeddingTable, Lookup, TableConfig
from learners.feature_spec import FeatureSpec, IdField
from learners.id_kernels import LEARN_AND_COUNT
from learners.modules.module import Kept

I64 = NDArray[np.int64]
NOISE_PART = "flip.noise"
PREFIX = "flip."
"""Before the names of the table's parts, which would be those of the ranker's own tables."""


class Vocabulary(Kept):
    """Rows [o_v, d_v] of F fields, and a sample of past rows that noise ids are drawn from.

    The sample holds `size` rows of F keys; each learned row takes the place of a random one. What
    is in it is then the stream's frequency with weights that fall by the factor 1 - 1/size a row:
    drawing a row is drawing from decayed counts, without counting.
    """

    def __init__(
        self, names: tuple[str, ...], dim: int, *, rows_max: int, size: int, lr: float, seed: int
    ) -> None:
        spec = FeatureSpec(
            ids=tuple(IdField(name=name, dim=dim, rows_max=rows_max) for name in names),
            bag_fields=(), bags=(), dense=(), labels=("none",), trained_label="none",
            content_dim=0,
        )  # fmt: skip
        # All zero: NCE starts where the noise is as likely as the id. Rows stay on the host, as
        # few of them are read in a step.
        self.table = EmbeddingTable(
            spec, dim, TableConfig(lr=lr, init_sigma=0.0), seed=seed, device=torch.device("cpu")
        )
        self.sample_SF = np.zeros((size, len(names)), np.int64)
        self.filled = 0
        self.step = 0
        self.seed = seed
        self._pending: tuple[Lookup, I64] | None = None

    def rng(self, purpose: int) -> np.random.Generator:
        """Of this step: the same for the same seed, step and purpose."""
        return np.random.default_rng((self.seed, self.step, purpose))

    def noise(self, rng: np.random.Generator, k: int) -> I64:
        """int64 [k, F] keys: field by field, each with its probability in the sample."""
        at = rng.integers(0, self.filled, (k, self.sample_SF.shape[1]))
        return np.take_along_axis(self.sample_SF[: self.filled], at, 0)

    def rows(self, keys_nF: I64) -> Tensor:
        """float32 [n, F, D]: leaves whose gradient `learned` applies; changes nothing."""
        lookup = self.table.predict(keys_nF, ())
        lookup.embedded_BFD.requires_grad_()
        self._pending = (lookup, keys_nF)
        return lookup.embedded_BFD

    def learned(self, keys_nF: I64, *, clock_ms: int, ok: bool) -> None:
        """Update the rows that were read, and take the step's ids into the sample, where `ok`."""
        pending, self._pending = self._pending, None
        if ok and pending is not None:
            lookup, keys = pending
            flags = np.full(len(keys), LEARN_AND_COUNT, np.uint8)
            planned = self.table.learn(keys, (), flags, clock_ms=clock_ms, step=self.step + 1)
            whole = replace(lookup, plan=planned.plan)
            self.table.update(whole, whole.gradient(), torch.tensor(data=True))
        if ok:
            self._take(keys_nF)
        self.step += 1

    def _take(self, keys_nF: I64) -> None:
        size = len(self.sample_SF)
        fresh = min(size - self.filled, len(keys_nF))
        self.sample_SF[self.filled : self.filled + fresh] = keys_nF[:fresh]
        self.filled += fresh
        rest = keys_nF[fresh:]
        self.sample_SF[self.rng(1).integers(0, size, len(rest))] = rest

    def parts(self, mark: int | None) -> list[Part]:
        """Of class `train` all: scoring needs none of it."""
        noise = Part(
            name=NOISE_PART,
            part_class="train",
            arrays={"keys": self.sample_SF[: self.filled].copy()},
        )
        rows = [
            replace(part, name=PREFIX + part.name, part_class="train")
            for part in self.table.parts(mark)
        ]
        return [noise, *rows]

    def apply(self, parts: Mapping[str, Part], *, step: int) -> None:
        """Take the parts; `step` of the learner, which this one's follows."""
        self.step = step
        noise = parts.get(NOISE_PART)
        if noise is None:
            return
        keys = noise.array("keys", np.int64)
        if keys.shape[1] != self.sample_SF.shape[1] or len(keys) > len(self.sample_SF):
            raise ValueError(
                f"part '{NOISE_PART}': {keys.shape} ids, but the configuration has room for "
                f"{self.sample_SF.shape}; noise_rows and fields must be as they were"
            )
        self.filled = len(keys)
        self.sample_SF[: self.filled] = keys
        own = {name.removeprefix(PREFIX): part for name, part in parts.items() if _own(name)}
        self.table.apply(own)


def _own(name: str) -> bool:
    return name.startswith(f"{PREFIX}ids.")
