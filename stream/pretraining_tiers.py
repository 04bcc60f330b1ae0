"""A record log to the cosines of what was shown with what its user took before (shell).

The very pipeline of a replay freezes the histories, so that the cosines are those that a ranker
sees. Reads no label and fits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from learners.batch import MiniBatch
from learners.feature_spec import FeatureSpec
from learners.modules.scopes import Scope, ScopesConfig, cosines_of, scopes_of
from learners.modules.tiers import count_fine
from learners.onlooker import Onlooker
from learners.step_inputs import step_inputs
from stream.config import Config
from stream.feature_plan import plan
from stream.pretraining_past import Tell, look_through

FINE = 20_000
"""Tiers of equal width in which cosines are counted: .0001 wide."""


@dataclass(slots=True, kw_only=True)
class CosineCounts:
    """Cosines counted in `FINE` tiers, and the version of the vectors."""

    counts_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(FINE, np.int64))
    encoder: str = ""


class CosineKeeper(Onlooker):
    """A learner that counts the cosines of what it is taught before a time, and predicts 0."""

    def __init__(
        self, found: CosineCounts, spec: FeatureSpec, scopes: Sequence[Scope], *,
        block: str, until_ms: int,
    ) -> None:  # fmt: skip
        self._found, self._spec, self._scopes = found, spec, scopes
        self._block, self._until_ms = spec.block(block), until_ms
        super().__init__()

    def look(self, batch: MiniBatch) -> None:
        """Count the rows that are old enough."""
        cosines = step_inputs(batch, self._spec, self.device).cosines
        self._found.encoder = cosines.encoder
        old_B = batch.ts_ms_B.numpy() < self._until_ms
        for history, _ in cosines_of(cosines, self._block, self._scopes):
            known_BL = history.known_BL * old_B[:, None]
            count_fine(history._replace(known_BL=known_BL), self._found.counts_K)

    def counts(self) -> Mapping[str, int]:
        """Cosines counted."""
        return {"cosines": int(self._found.counts_K.sum())}


def cosine_counts(
    logs: Sequence[Path],
    config: Config,
    *,
    until_ms: int,
    histories: tuple[str, ...] = (),
    block: str = "",
    on_progress: Tell = lambda _done, _total: None,
) -> CosineCounts:
    """Cosines of impressions before `until_ms` with their whole histories.

    Raises InputError for unknown histories or blocks, and as replay and the configuration do.
    """
    found = CosineCounts()
    spec = plan(config).spec
    try:
        wanted = ScopesConfig(histories=histories, recent=(), block=block)
        scopes = scopes_of(spec, wanted, "tiers")
        keeper = CosineKeeper(found, spec, scopes, block=block, until_ms=until_ms)
    except ValueError as error:
        raise InputError(str(error)) from error
    look_through(logs, config, keeper, on_progress)
    return found
