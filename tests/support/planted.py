"""A stream whose only signal is in vectors: whether the target is like what the user took."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from learners.batch import ContentRows, MiniBatch
from learners.feature_spec import FeatureSpec
from tests.support.batches import BatchMaker, small_spec

DIM, GROUPS, HISTORY = 8, 4, 7
CLICKED, NOT = 0.85, 0.15


class PlantedContent:
    """Batches of users who took items of one group; a click is likely for an item of that group.

    Every id of a user, an item or a history is new, so that nothing else tells. Vectors are the
    group's direction with noise, on `axes` where those are given (another encoder's space).
    """

    def __init__(self, seed: int = 0, *, noise: float = 0.3) -> None:
        """Start the stream; its groups' directions are always the same."""
        self.spec: FeatureSpec = small_spec(content_dim=DIM)
        self._maker = BatchMaker(self.spec, seed=seed)
        self._rng = np.random.default_rng(seed + 1)
        axes = np.random.default_rng(77).normal(size=(DIM, DIM))
        self._group_GC = np.linalg.qr(axes)[0][:GROUPS]
        self._noise = noise

    def batch(self, rows: int, *, ts_ms: int | None = None) -> MiniBatch:
        """The next rows, all shown at `ts_ms` if that is given."""
        rng, plain = self._rng, self._maker.batch(rows)
        own, shown = rng.integers(0, GROUPS, rows), rng.integers(0, GROUPS, rows)
        click = rng.random(rows) < np.where(own == shown, CLICKED, NOT)
        groups = np.concatenate([shown, np.repeat(own, HISTORY)])
        vectors = self._group_GC[groups] + rng.normal(0, self._noise, (len(groups), DIM))
        table = np.vstack([vectors, np.zeros((1, DIM))]).astype(np.float32)
        content = ContentRows(
            table_VC=torch.from_numpy(table),
            target_B=torch.arange(rows),
            missing_B=torch.zeros(rows, dtype=torch.bool),
            bags_BL=(torch.arange(rows, rows * (1 + HISTORY)).reshape(rows, HISTORY),),
            bag_inv_len_B=(torch.full((rows,), 1 / HISTORY),),
            encoder="synthetic",
        )
        new = torch.from_numpy(rng.integers(1, 2**62, (rows, 2 + HISTORY)))
        ids = torch.cat([new[:, :2], plain.ids_BF[:, 2:]], 1)
        dense = torch.zeros_like(plain.dense_BD)
        stamped = plain.ts_ms_B if ts_ms is None else torch.full_like(plain.ts_ms_B, ts_ms)
        return dataclasses.replace(
            plain,
            ids_BF=ids,
            bags_BL=(new[:, 2:].contiguous(), torch.zeros_like(plain.bags_BL[1])),
            dense_BD=dense,
            content=content,
            labels_BK=torch.from_numpy(np.stack([click, click], 1)).float(),
            ts_ms_B=stamped,
        )


def last_losses(learner: object, stream: PlantedContent, steps: int, rows: int = 64) -> float:
    """Mean loss of the last quarter of the steps."""
    losses = [float(learner.learn_many(stream.batch(rows)).loss) for _ in range(steps)]  # type: ignore[attr-defined]
    return float(np.mean(losses[-steps // 4 :]))
