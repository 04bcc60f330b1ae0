"""How the vectors of a new encoder version come in beside the present ones, and those go. Pure.

The new version's inputs begin at weights of zero, so that no score changes. While the present
version's inputs fade, the new ones take over the very columns that they were, so that the net in
the end is one that has never known another version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from learners.feature_spec import FeatureSpec
from learners.modules.module import Addition, Module, zero_start
from learners.net_inputs import NetInputs

PREFIX = "incoming."
"""Names of the new version's parameters and parts begin so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fading:
    """How long both versions are inputs, in learned samples, and how long the present one fades."""

    beside_samples: int = 50_000
    fade_samples: int = 200_000

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.beside_samples < 0 or self.fade_samples < 1:
            raise ValueError(
                "items: next_beside_samples must be at least 0 and next_fade_samples 1, got "
                f"{self.beside_samples} and {self.fade_samples}"
            )

    def present_share(self, samples: int) -> float:
        """What the present version counts after so many samples with both: 1, falling to 0."""
        faded = (samples - self.beside_samples) / self.fade_samples
        return 1.0 - min(max(faded, 0.0), 1.0)


class IncomingNet(nn.Module):
    """The weights that read the new version: as those of the present one, but all begin at 0."""

    def __init__(
        self,
        spec: FeatureSpec,
        projection: int,
        histories: int,
        modules: Sequence[tuple[str, Module]],
    ) -> None:
        super().__init__()
        self.block = spec.of_incoming.block()
        if projection:
            self.target = zero_start(self.block.dim, projection)
            self.history = nn.ModuleList(
                zero_start(self.block.dim, projection) for _ in range(histories)
            )
        self.methods = nn.ModuleDict(dict(modules))


def blended(present: Sequence[Tensor], new: Sequence[Tensor], share: float) -> list[Tensor]:
    """Columns of both versions as one: projections add up, cosines and presence are mixed.

    Both lists: projection and scalar by turns. At share 1 with new projections of 0 these are the
    present columns bit for bit, at share 0 the new ones.
    """
    out: list[Tensor] = []
    for place, (a, b) in enumerate(zip(present, new, strict=True)):
        out.append(a * share + (b if place % 2 == 0 else b * (1.0 - share)))
    return out


def faded(addition: Addition, share: float) -> Addition:
    """The addition of a module that reads the present version, times `share`."""

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor * share

    return replace(
        addition, hidden_BH=of(addition.hidden_BH), logit_B=of(addition.logit_B),
        loss=of(addition.loss), deeper=tuple(of(one) for one in addition.deeper),
    )  # fmt: skip


def both_inputs(x: NetInputs, share: float) -> NetInputs:
    """The inputs with those of the incoming version beside, where the batch has them."""
    new = x.step.incoming
    if new is None:
        return x
    incoming = replace(
        x, target_BC=new.target_BC, pooled_BC=new.pooled_BC, present_B1=new.present_B1, step=new
    )
    return replace(x, incoming=incoming, present_share=share)
