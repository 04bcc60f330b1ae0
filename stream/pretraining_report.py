"""What a contrastive training is worth: recall on a later span against raw and control. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embeddings.pretrain.judge import alignment, by_users, hits, uniformity
from embeddings.pretrain.pairs import Pairs
from stream.pretraining import EncodedItems

RECALL_AT: Final = 10
_RESAMPLES: Final = 1_000
_SEED: Final = 0

F32 = NDArray[np.float32]


def judgement(
    items: EncodedItems,
    later: Pairs,
    trained_ND: F32,
    control_ND: F32 | None,
    competes_N: NDArray[np.bool_],
) -> dict[str, Any]:
    """Recall of the right items, its lift over the raw vectors with an interval, and geometry.

    `competes_N`: rows that are items; others, such as queries, are never an answer.

    Keys: `later_pairs`, `recall`, `lift` and `alignment` by name (raw, trained, control),
    `uniformity`, `trained_over_control`; without later pairs a `reason` instead.
    """
    if not len(later):
        return {"later_pairs": 0, "reason": "no pair of items with vectors from then on"}
    vectors: dict[str, F32] = {"raw": _unit(items.vectors_ND), "trained": trained_ND}
    if control_ND is not None:
        vectors["control"] = control_ND
    left_P, right_P = items.rows(later.left_P), items.rows(later.right_P)
    worth = {name: hits(v, left_P, right_P, RECALL_AT, competes_N) for name, v in vectors.items()}

    def over(name: str, base: str) -> dict[str, float]:
        difference = worth[name] - worth[base]
        return asdict(by_users(difference, later.user_P, resamples=_RESAMPLES, seed=_SEED))

    found: dict[str, Any] = {
        "later_pairs": len(later),
        "recall_at": RECALL_AT,
        "recall": {name: float(w.mean()) for name, w in worth.items()},
        "lift": {name: over(name, "raw") for name in vectors if name != "raw"},
        "alignment": {name: alignment(v, left_P, right_P) for name, v in vectors.items()},
        "uniformity": {name: uniformity(v) for name, v in vectors.items()},
    }
    if control_ND is not None:
        found["trained_over_control"] = over("trained", "control")
    return found


def _unit(raw_ND: F32) -> F32:
    norms_N1 = np.linalg.norm(raw_ND, axis=1, keepdims=True)
    unit_ND: F32 = (raw_ND / np.where(norms_N1 > 0, norms_N1, 1)).astype(np.float32)
    return unit_ND
