"""Module: what a method must be to join `id_content`, and what it may add there.

A module reads the same inputs as the ranker and adds to the first hidden layer's sum and to the
logit, through weights that start at 0: turning a module on changes no score. Holds no method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from infra.state import Part
from learners.net_inputs import NetInputs

if TYPE_CHECKING:
    from learners.embedding_table import EmbeddingTable, Lookup


@dataclass(frozen=True, kw_only=True)
class ModuleConfig:
    """`on`: the ranker has this module; without it nothing of the module is built."""

    on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What a module adds for B rows; None adds nothing.

    `hidden_BH`: to the sums before the first hidden layer's ReLU; `deeper`: to those of the layers
    after it, as many as there are, or none. `logit_B`: to the logit.
    `loss`: to the summed loss of the rows, weighted already; only where the batch is learned from.
    """

    hidden_BH: Tensor | None = None
    logit_B: Tensor | None = None
    loss: Tensor | None = None
    deeper: tuple[Tensor | None, ...] = ()


class Module(nn.Module):
    """A method. Its dense parameters are learned, averaged and kept by the ranker's Adam.

    A net predicts with a second copy of itself (averaged weights): state that is no parameter must
    be in an object that `copy.deepcopy` gives back as it is (see `Kept`), so that both share it.
    """

    reads: frozenset[str] = frozenset()
    """Names of features and bags that are there for this module and that the base does not read."""

    reads_vectors: bool = True
    """Whether item vectors matter to it: then it is there twice while a new encoder version comes
    in, once with the vectors of each, so that no weight ever meets vectors of both."""

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The addition for a batch; `learning` False: for scoring, and no state may change."""
        raise NotImplementedError

    def deepen(self, sizes: Sequence[int]) -> None:
        """Told the sizes of the hidden layers after the first, before anything is learned."""

    def check_content(self, encoder: str) -> None:
        """Raises ValueError where a file of the module is of another encoder's item vectors."""

    def has_rival(self, x: NetInputs) -> bool:
        """Whether these rows are to be scored by another form of the module as well."""
        return False

    @contextmanager
    def rival(self) -> Iterator[None]:
        """Within, `forward` gives the other form's addition."""
        yield

    def judged(self, x: NetInputs, logits_B: Tensor, rival_B: Tensor) -> None:
        """Logits of a step with the module as it is and with its other form, before `learned`."""

    def learned(self, x: NetInputs, *, ok: bool) -> None:
        """Called after each step, without gradients, with what `forward` saw; `ok`: it was taken.

        The place where state that is no parameter changes, and the only one.
        """

    def rows_given(self, tables: Sequence[EmbeddingTable], lookups: Sequence[Lookup]) -> None:
        """Called after `learned` where the step was taken: ids that it gave rows may begin anew."""

    def parts(self, mark: int | None) -> Sequence[Part]:
        """Parts of the state that is no parameter; with a mark, what changed since that step."""
        return ()

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as containers do
        """Take the state back; a part that is not there leaves its state as it began."""

    def counts(self) -> Mapping[str, int]:
        """Figures of the method, for reports; names without the module's own."""
        return {}


def total(given: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of those that are there, from left to right; None where none is."""
    there = [one for one in given if one is not None]
    return sum(there[1:], there[0]) if there else None


class Kept:
    """State that a net's copies share."""

    def __deepcopy__(self, memo: object) -> Kept:
        return self


def zero_start(width: int, out: int) -> nn.Linear:
    """A linear map without bias whose weights are 0."""
    layer = nn.Linear(width, out, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
