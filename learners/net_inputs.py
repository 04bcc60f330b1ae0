"""What a ranker's net reads of a batch, and what it must be. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from learners.step_inputs import StepInputs

if TYPE_CHECKING:
    from learners.modules.module import Module


@dataclass(frozen=True, slots=True, kw_only=True)
class NetInputs:
    """What a net reads; T tables, each with its id columns and bags.

    `embedded_BFD` and `pooled_BD` one entry a table; of a sequence `pooled_BD` has the rows [U, D]
    of its distinct ids, and `index_BL` the places of its entries among them (see `Lookup`).
    `dense_BD` standardised, `raw_BD` not.
    `target_BC` and `pooled_BC` content vectors, zero where missing. `repeats_BH` as in StepInputs.
    `step`: all the rest of the batch, keys and single vectors among it; its labels are for losses
    only. `incoming`: the same with the vectors of another encoder version, while one comes in;
    `present_share` is then what the present version's inputs still count, 1 to 0.
    """

    embedded_BFD: tuple[Tensor, ...]
    pooled_BD: tuple[tuple[Tensor, ...], ...]
    dense_BD: Tensor
    raw_BD: Tensor
    target_BC: Tensor
    pooled_BC: tuple[Tensor, ...]
    present_B1: Tensor
    repeats_BH: Tensor
    step: StepInputs
    learn_step: int = 0
    """Number of the learn step, from 1 on; when scoring, of the last one."""
    incoming: NetInputs | None = None
    present_share: float = 1.0
    index_BL: tuple[tuple[Tensor | None, ...], ...] = ()


class RankerNet(nn.Module):
    """A net of a `NetLearner`: logits for scoring, and logits with a loss of its own for learning.

    `modules` are methods whose state and figures the learner carries.
    """

    modules_on: Sequence[tuple[str, Module]] = ()
    takes_incoming: bool = False
    """Whether it can read the vectors of an incoming encoder version."""
    incoming_on: Sequence[tuple[str, Module]] = ()
    """The modules that read item vectors once more, for the incoming encoder version."""
    own_losses: Mapping[str, Tensor] = {}
    """Of the last learn step, by module: its own loss a row, as weighted; no state, for people."""

    def forward(self, x: NetInputs) -> Tensor:
        """Residual logits, float32 [B]."""
        raise NotImplementedError

    def learn(self, x: NetInputs) -> tuple[Tensor, Tensor | None]:
        """The same logits, and what is to be added to the summed loss, if anything."""
        return self(x), None
