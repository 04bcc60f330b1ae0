"""`linear_content`: the target's content vector through one linear head, straight to the logit.

The safe form of content in a short stream: no capacity to learn a stream by heart with.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional

from learners.feature_spec import FeatureSpec
from learners.modules.module import Addition, Module, ModuleConfig, zero_start
from learners.net_inputs import NetInputs


@dataclass(frozen=True, kw_only=True)
class LinearContentConfig(ModuleConfig):
    """`block`: which of the item vectors' blocks it reads; "" is the fused one.

    `scale`: size of the head's inputs. Adam moves every weight alike, so that with 100 numbers of
    size 1 the head runs ahead of the ranker: in a short stream .2 learns, 1 forgets.
    """

    block: str = ""
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.scale > 0:
            raise ValueError(f"linear_content: scale must be above 0, got {self.scale}")


class LinearContent(Module):
    """w . scale t with t the normalised vector, w = 0 first; a missing vector adds 0."""

    def __init__(self, spec: FeatureSpec, config: LinearContentConfig, hidden: int) -> None:
        super().__init__()
        if not spec.content_dim:
            raise ValueError("linear_content: there are no item vectors; set items.dim")
        self.block = spec.block(config.block)
        self.scale = config.scale
        self.head = zero_start(self.block.dim, 1)

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The head's logit."""
        target_BC = functional.layer_norm(x.target_BC[:, self.block.columns], (self.block.dim,))
        return Addition(logit_B=self.head(target_BC * self.scale).squeeze(1))
