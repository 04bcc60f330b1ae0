"""`id_content`: ids, pooled histories, content vectors and counters through DCN v2 and an MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.feature_spec import FeatureSpec
from learners.net_learner import NetInputs, NetLearner, StepConfig
from learners.rankers.cross_mlp import CrossMlp
from learners.step_inputs import repeat_columns

WIDTH_MULTIPLE = 16
"""The net's input is padded with zeros to a multiple of this: odd widths slow the products down."""


@dataclass(frozen=True, kw_only=True)
class IdContentConfig(StepConfig):
    """Sizes of the net; low capacity is enough for one pass over a stream."""

    cross_layers: int = 2
    cross_rank: int = 32
    hidden: tuple[int, ...] = (64, 32)
    content_projection: int = 16
    """Columns that each content vector is projected to."""
    repeats: bool = True
    """How often the item itself stands in each history is an input."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.cross_layers < 0 or self.cross_rank < 1 or self.content_projection < 1:
            raise ValueError(
                "id_content: cross_layers >= 0, cross_rank and content_projection >= 1, got "
                f"{self.cross_layers}, {self.cross_rank}, {self.content_projection}"
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"id_content: hidden: one layer of one unit at least, got {self.hidden}"
            )


class IdContentNet(nn.Module):
    """Residual logits from NetInputs; 0 for every input before the first update."""

    def __init__(self, spec: FeatureSpec, config: IdContentConfig) -> None:
        super().__init__()
        histories = sum(bag.is_history for bag in spec.bags) if spec.content_dim else 0
        width = sum(f.dim for f in spec.ids) + len(spec.dense)
        self.repeats = config.repeats
        width += len(repeat_columns(spec)) * config.repeats
        width += sum(spec.fields[spec.field_of(bag.field)].dim for bag in spec.bags)
        p = config.content_projection
        self.content_dim = spec.content_dim
        if spec.content_dim:
            # No bias and LayerNorm without affine: a missing vector adds exactly 0, and no
            # gradient depends on the number of threads.
            self.target = nn.Linear(spec.content_dim, p, bias=False)
            self.history = nn.ModuleList(
                nn.Linear(spec.content_dim, p, bias=False) for _ in range(histories)
            )
            width += p * (1 + histories) + 1 + histories
        self.padding = -width % WIDTH_MULTIPLE
        self.cross_mlp = CrossMlp(
            width + self.padding,
            layers=config.cross_layers,
            rank=config.cross_rank,
            hidden=config.hidden,
        )

    def forward(self, x: NetInputs) -> Tensor:
        """Residual logits, float32 [B]."""
        parts = [e.flatten(1) for e in x.embedded_BFD]
        parts += [p for table in x.pooled_BD for p in table]
        parts += [x.dense_BD, x.repeats_BH] if self.repeats else [x.dense_BD]
        parts += self._content(x)
        if self.padding:
            parts.append(x.dense_BD.new_zeros(len(x.dense_BD), self.padding))
        logits_B: Tensor = self.cross_mlp(torch.cat(parts, 1))
        return logits_B

    def _content(self, x: NetInputs) -> list[Tensor]:
        """Projections of the target's and the histories' vectors, their cosines, presence."""
        if not self.content_dim:
            return []
        shape = (self.content_dim,)
        target_BC = functional.layer_norm(x.target_BC, shape)
        parts = [self.target(target_BC), x.present_B1]
        for project, pooled_BC in zip(self.history, x.pooled_BC, strict=True):
            history_BC = functional.layer_norm(pooled_BC, shape)
            parts.append(project(history_BC))
            parts.append((target_BC * history_BC).mean(1, keepdim=True))
        return parts


class IdContent(NetLearner):
    """The ranker `id_content`; weights start as a function of the configured seed alone."""

    def __init__(self, spec: FeatureSpec, config: IdContentConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = IdContentNet(spec, config)
        super().__init__(spec, config, net)
