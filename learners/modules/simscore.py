"""`simscore`: the target's mean cosine with the entries of each history. No gradient flows back.

With histories of positive and of negative events this is the ladder's SimScore: one number each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learners.feature_spec import FeatureSpec
from learners.modules.module import Addition, Module, zero_start
from learners.modules.scopes import ScopesConfig, cosines_of, scopes_of
from learners.net_inputs import NetInputs
from learners.step_inputs import StepInputs

PER_SCOPE = 2


@dataclass(frozen=True, kw_only=True)
class SimScoreConfig(ScopesConfig):
    """`hidden`, `logit`: where the scores go. `scale` brings cosines to the size of other inputs.

    `prior`: a mean over n entries counts n / (n + prior), so that one entry does not weigh as 50.
    """

    hidden: bool = True
    logit: bool = True
    scale: float = 4.0
    prior: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not self.hidden and not self.logit:
            raise ValueError("simscore: hidden and logit are both off, so it would add nothing")
        if self.scale <= 0 or self.prior < 0:
            raise ValueError("simscore: scale must be above 0, prior at least 0")


class SimScore(Module):
    """Scores of S scopes through zero-started maps to the hidden layer and the logit."""

    def __init__(self, spec: FeatureSpec, config: SimScoreConfig, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.scopes = scopes_of(spec, config, "simscore")
        self.block = spec.block(config.block)
        width = PER_SCOPE * len(self.scopes)
        self.to_hidden = zero_start(width, hidden) if config.hidden else None
        self.to_logit = zero_start(width, 1) if config.logit else None

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The scores' sums, each with weights of its own."""
        del learning
        scores_BS = self.scores_of(x.step).to(x.dense_BD.device)
        return Addition(
            hidden_BH=None if self.to_hidden is None else self.to_hidden(scores_BS),
            logit_B=None if self.to_logit is None else self.to_logit(scores_BS).squeeze(1),
        )

    def scores_of(self, x: StepInputs) -> Tensor:
        """`scale` sum(r) / (n + prior) of each scope, then n / (n + prior); float32 [B8, 2 S].

        On the host; rows of padding, and rows without any cosine, are 0.
        """
        out_BS2 = np.zeros((len(x.ids_BF), len(self.scopes), PER_SCOPE), np.float32)
        for s, (cosines, recent) in enumerate(cosines_of(x.cosines, self.block, self.scopes)):
            known_BL = cosines.known_BL.astype(np.float64)
            if recent:
                places_L = np.arange(known_BL.shape[1])
                known_BL *= places_L >= cosines.length_B[:, None] - recent
            n_B = known_BL.sum(1)
            whole_B = np.maximum(n_B + self.config.prior, 1e-9)
            b = len(n_B)
            out_BS2[:b, s, 0] = self.config.scale * (cosines.r_BL * known_BL).sum(1) / whole_B
            out_BS2[:b, s, 1] = n_B / whole_B
        return torch.from_numpy(out_BS2).flatten(1)
