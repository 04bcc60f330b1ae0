"""`simtier`: a histogram of the target's cosines with the entries of each history.

SimTier (Taobao, arXiv 2407.19467, section 4.2): similarity alone, no coordinate of any vector, so
that there is nothing to learn by heart. Gradients do not flow into vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.state import Part
from learners.feature_spec import FeatureSpec
from learners.modules.module import Addition, Module, zero_start
from learners.modules.scopes import ScopesConfig, cosines_of, scopes_of
from learners.modules.tiers import count_tiers, equal_width
from learners.modules.tiers_file import read_tiers
from learners.net_inputs import NetInputs
from learners.step_inputs import StepInputs

PART = "simtier"


@dataclass(frozen=True, kw_only=True)
class SimTierConfig(ScopesConfig):
    """`tiers` of equal width over [-1, 1], or those of `tiers_file` (`millrace pretrain tiers`).

    `counts`: log1p of the counts go to the first hidden layer; `shares`: smoothed shares
    `share_scale` c / (sum c + `share_prior`) go to the logit.
    """

    tiers: int = 20
    tiers_file: str = ""
    counts: bool = True
    shares: bool = True
    share_scale: float = 4.0
    share_prior: float = 5.0

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
        self.scopes = scopes_of(spec, config, "simtier")
        self.block = spec.block(config.block)
        self.fitted = read_tiers(Path(config.tiers_file)) if config.tiers_file else None
        if self.fitted and self.fitted.block != config.block:
            raise ValueError(
                f"simtier: tiers_file {config.tiers_file} is for block '{self.fitted.block}' of "
                f"the item vectors, but block is '{config.block}'"
            )
        edges = self.fitted.edges_E if self.fitted else equal_width(config.tiers)
        self.edges_E: NDArray[np.float64] = edges
        width = len(self.scopes) * (len(edges) + 1)
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

        Raises InputError where the tiers were fitted to vectors of another version.
        """
        if self.fitted and x.cosines.encoder:
            self.fitted.check(x.cosines.encoder)
        rows = len(x.ids_BF)
        out_BSN = np.zeros((rows, len(self.scopes), len(self.edges_E) + 1), np.float32)
        for s, (cosines, recent) in enumerate(cosines_of(x.cosines, self.block, self.scopes)):
            count_tiers(cosines, recent, self.edges_E, out_BSN[:, s])
        return torch.from_numpy(out_BSN)

    def parts(self, mark: int | None) -> Sequence[Part]:
        """The edges: weights of tiers mean nothing with others."""
        del mark
        encoder = self.fitted.encoder if self.fitted else ""
        arrays = {"edges": self.edges_E.copy()}
        return [Part(name=PART, part_class="serve", arrays=arrays, meta={"encoder": encoder})]

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as in Module
        """Check that the weights belong to these tiers; raises ValueError where they do not."""
        part = parts.get(PART)
        if part is not None and not np.array_equal(part.array("edges"), self.edges_E):
            raise ValueError(
                f"part '{PART}': weights of {len(part.array('edges')) + 1} tiers with other edges "
                f"than the configured {len(self.edges_E) + 1}; use the tiers_file of the snapshot"
            )
