"""`simtier`: a histogram of the target's cosines with the entries of each history.

SimTier (Taobao, arXiv 2407.19467, section 4.2): similarity alone, no coordinate of any vector, so
that there is nothing to learn by heart. Gradients do not flow into vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.state import Part
from learners.feature_spec import FeatureSpec
from learners.modules.histograms import Histograms
from learners.modules.module import Addition, Kept, Module, zero_start
from learners.modules.scopes import ScopesConfig
from learners.net_inputs import NetInputs
from learners.step_inputs import StepInputs

PART = "simtier"
SKEW = "simtier.skew"
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SimTierConfig(ScopesConfig):
    """`tiers` of equal width over [-1, 1], or those of `tiers_file` (`millrace pretrain tiers`).

    `counts`: log1p of the counts go to the first hidden layer; `shares`: smoothed shares
    `share_scale` c / (sum c + `share_prior`) go to the logit. `served`: histograms that a server
    logged with the impression are read in place of our own, where their version is ours.
    """

    tiers: int = 20
    tiers_file: str = ""
    counts: bool = True
    shares: bool = True
    share_scale: float = 4.0
    share_prior: float = 5.0
    served: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not 2 <= self.tiers <= 1_000:
            raise ValueError(f"simtier: tiers: 2 to 1000, got {self.tiers}")
        if not self.counts and not self.shares:
            raise ValueError("simtier: counts and shares are both off, so it would add nothing")
        if self.share_prior <= 0 or self.share_scale <= 0:
            raise ValueError("simtier: share_prior and share_scale must be above 0")


class SimTier(Module):
    """Histograms h_SN of S scopes, through zero-started maps to the hidden layer and the logit."""

    def __init__(self, spec: FeatureSpec, config: SimTierConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.histograms = histograms_of(spec, config)
        width = self.histograms.width
        self.skew = Skew()
        self.to_hidden = zero_start(width, hidden) if config.counts else None
        self.to_logit = zero_start(width, 1) if config.shares else None

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """W log1p(h) for the hidden layer, w . shares(h) for the logit."""
        del learning
        counts_BSN = self.counts_of(x.step).to(x.dense_BD.device)
        hidden_BH = logit_B = None
        if self.to_hidden is not None:
            hidden_BH = self.to_hidden(counts_BSN.log1p().flatten(1))
        if self.to_logit is not None:
            total_BS1 = counts_BSN.sum(2, keepdim=True) + self.config.share_prior
            shares_BSN = counts_BSN * self.config.share_scale / total_BS1
            logit_B = self.to_logit(shares_BSN.flatten(1)).squeeze(1)
        return Addition(hidden_BH=hidden_BH, logit_B=logit_B)

    def counts_of(self, x: StepInputs) -> Tensor:
        """Histograms float32 [B8, S, N] on the host; rows of padding are 0.

        Logged ones in the rows that have one. Raises InputError where the tiers were fitted to
        vectors of another version.
        """
        own_BSN = self.histograms.counts(x.cosines, len(x.ids_BF))
        if self._reads_served(x):
            own_BN = own_BSN.reshape(len(own_BSN), -1)
            own_BSN = x.served.instead_of(own_BN).reshape(own_BSN.shape)  # type: ignore[union-attr]  # it does
        return torch.from_numpy(own_BSN)

    def _reads_served(self, x: StepInputs) -> bool:
        served = x.served
        return self.config.served and bool(served and served.layout == self.histograms.layout)

    def learned(self, x: NetInputs, *, ok: bool) -> None:
        """Count how far what was logged is from our own, in rows that were learned from."""
        served = x.step.served
        if not ok or served is None or not self._reads_served(x.step):
            return
        rows = x.step.rows
        own_BN = self.histograms.counts(x.step.cosines, rows).reshape(rows, -1)
        self.skew.add(
            served.logged_B.numpy(), served.given_B.numpy(), served.values_BN.numpy(), own_BN
        )

    def counts(self) -> Mapping[str, int]:
        """Rows with a logged histogram, of which other versions, and the skew of the rest."""
        return self.skew.counts() if self.config.served else {}

    def parts(self, mark: int | None) -> Sequence[Part]:
        """The edges: weights of tiers mean nothing with others."""
        del mark
        fitted = self.histograms.fitted
        arrays = {"edges": self.histograms.edges_E.copy()}
        meta = {"encoder": fitted.encoder if fitted else ""}
        own = Part(name=PART, part_class="serve", arrays=arrays, meta=meta)
        if not self.config.served:
            return [own]
        return [own, Part(name=SKEW, part_class="train", meta=self.skew.counts())]

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as in Module
        """Check that the weights belong to these tiers; raises ValueError where they do not."""
        part, edges_E = parts.get(PART), self.histograms.edges_E
        if part is not None and not np.array_equal(part.array("edges"), edges_E):
            raise ValueError(
                f"part '{PART}': weights of {len(part.array('edges')) + 1} tiers with other edges "
                f"than the configured {len(edges_E) + 1}; use the tiers_file of the snapshot"
            )
        if SKEW in parts:
            self.skew.take(parts[SKEW].meta)


def histograms_of(spec: FeatureSpec, config: SimTierConfig) -> Histograms:
    """What the module counts; raises ValueError where it does not fit the spec."""
    return Histograms(spec, config, tiers=config.tiers, tiers_file=config.tiers_file)


class Skew(Kept):
    """How far logged histograms are from those that we would have made.

    `rows`: with one of our version; `other_version`: with one that is not read; `differing`: of
    `rows`, those that are not equal; `moved`: entries that stand in another tier, in all of them.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("rows", "other_version", "differing", "moved"), 0)

    def add(self, logged_B: Bools, given_B: Bools, served_BN: Floats, own_BN: Floats) -> None:
        """Count the rows of a batch."""
        gap_n = np.abs(served_BN[given_B] - own_BN[given_B]).sum(1)
        self._counts["rows"] += int(given_B.sum())
        self._counts["other_version"] += int((logged_B & ~given_B).sum())
        self._counts["differing"] += int(np.count_nonzero(gap_n))
        self._counts["moved"] += round(float(gap_n.sum()) / 2)

    def counts(self) -> dict[str, int]:
        """By name."""
        return {f"served_{name}": n for name, n in self._counts.items()}

    def take(self, counts: Mapping[str, int]) -> None:
        """Go on from these."""
        self._counts = {name.removeprefix("served_"): n for name, n in counts.items()}
