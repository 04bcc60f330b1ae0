"""What a codebook is worth on given vectors: energy, usage, uniqueness. Decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.codes.codebook import Codebook, Codes, normalised


def measures(book: Codebook, codes: Codes, vectors_BD: NDArray[Any]) -> dict[str, Any]:
    """Figures of the items that have codes, of `vectors_BD`; a figure without items is None.

    `energy_left`: share of the squared length that is left after each level. `perplexity`: the
    number of evenly used codes that would be as uncertain, by level. `unused`: codes of no item.
    `unique`: share of items alone with their path down to each level. `far`: share beyond the
    book's radius at level 1.
    """
    some = codes.rq_BL[:, 0] > 0
    rq_BL, residual_BL = codes.rq_BL[some], codes.residual_BL[some]
    found: dict[str, Any] = {"items": len(rq_BL), "without_vector": int((~some).sum())}
    if not len(rq_BL):
        names = ("energy_left", "perplexity", "unused", "unique", "far")
        return found | dict.fromkeys(names)
    whole = float((normalised(vectors_BD[some], book.normalisation) ** 2).sum())
    usage = [
        np.bincount(rq_BL[:, level] - 1, minlength=len(centroids))
        for level, centroids in enumerate(book.levels)
    ]
    return found | {
        "energy_left": [float(left) / whole if whole else None for left in residual_BL.sum(axis=0)],
        "perplexity": [_perplexity(counts) for counts in usage],
        "unused": [int((counts == 0).sum()) for counts in usage],
        "unique": [_unique(rq_BL[:, :length]) for length in range(1, len(book.levels) + 1)],
        "far": float((residual_BL[:, 0] > book.radius**2).mean()),
    }


def _perplexity(counts_K: NDArray[Any]) -> float:
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _unique(path_BL: NDArray[Any]) -> float:
    _, counts = np.unique(path_BL, axis=0, return_counts=True)
    return float((counts == 1).sum() / len(path_BL))
