"""Histograms of cosines as SimTier reads them and as a server logs them. Holds no weight."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.content_cosines import ContentCosines
from learners.feature_spec import FeatureSpec
from learners.modules.scopes import ScopesConfig, cosines_of, scopes_of
from learners.modules.tiers import count_tiers, equal_width
from learners.modules.tiers_file import read_tiers
from learners.served import ServedLayout

NAME = "simtier"


class Histograms:
    """h_SN of S scopes and N tiers, of one block of the item vectors."""

    def __init__(
        self, spec: FeatureSpec, scopes: ScopesConfig, *, tiers: int, tiers_file: str
    ) -> None:
        """`tiers` of equal width, or those of a file.

        Raises ValueError where they do not fit the spec, InputError where the file is none.
        """
        self.scopes = scopes_of(spec, scopes, NAME)
        self.block = spec.block(scopes.block)
        self.fitted = read_tiers(Path(tiers_file)) if tiers_file else None
        if self.fitted and self.fitted.block != scopes.block:
            raise ValueError(
                f"simtier: tiers_file {tiers_file} is for block '{self.fitted.block}' of "
                f"the item vectors, but block is '{scopes.block}'"
            )
        self.edges_E: NDArray[np.float64] = (
            self.fitted.edges_E if self.fitted else equal_width(tiers)
        )

    @property
    def width(self) -> int:
        """Numbers a row."""
        return len(self.scopes) * (len(self.edges_E) + 1)

    @property
    def layout(self) -> ServedLayout:
        """Under which they are logged: the digest is of scopes, block and edges."""
        meaning = [[scope.name, scope.recent] for scope in self.scopes]
        text = json.dumps([meaning, self.block.name, self.edges_E.tolist()])
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return ServedLayout(name=NAME, width=self.width, digest=digest)

    def counts(self, cosines: ContentCosines, rows: int) -> NDArray[np.float32]:
        """Histograms float32 [rows, S, N]; rows beyond those of the batch are 0.

        Raises InputError where the tiers were fitted to vectors of another version.
        """
        if self.fitted and cosines.encoder:
            self.fitted.check(cosines.encoder)
        out_BSN = np.zeros((rows, len(self.scopes), len(self.edges_E) + 1), np.float32)
        for s, (found, recent) in enumerate(cosines_of(cosines, self.block, self.scopes)):
            count_tiers(found, recent, self.edges_E, out_BSN[:, s])
        return out_BSN
