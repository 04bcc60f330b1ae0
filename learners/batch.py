"""MiniBatch: the tensors that every learner reads. Built by `stream/assemble` only.

Shapes: B rows (impressions of items), F id fields, G bags, L bag length, D dense inputs, K label
kinds, V content rows of this batch, C content dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from learners.served import ServedRows

PADDING_KEY = 0
"""Key of an empty place in a bag; never the key of an id."""


class RowKind(IntEnum):
    """Why a row is in the batch; metrics and admission counts use samples only."""

    SAMPLE = 0
    CORRECTION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRows:
    """Item vectors of one batch: each distinct item once, then places that point to it.

    `table_VC` float32 or float16; its last row is all zeros and stands for "no vector".
    `target_B` and each of `bags_BL` are int64 rows of the table; `missing_B` is True where the
    target has no vector. `encoder` is the version of the vectors.
    """

    table_VC: Tensor
    target_B: Tensor
    missing_B: Tensor
    bags_BL: tuple[Tensor, ...]
    bag_inv_len_B: tuple[Tensor, ...]
    encoder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """What a learner sees of B samples, on the CPU.

    `ids_BF` int64 keys, one column a field of the spec, already salted by field name (equal ids of
    two fields differ; a missing id is the field's own key for "missing", never 0). `bags_BL` int64
    keys of several-valued fields and histories, padded with 0 at the right, salted with the field
    whose rows they share. `dense_BD` float32 as assembled, neither standardised nor clipped.
    `labels_BK` float32 0/1, `label_mask_BK` float32 1 where the label is known. `weight_B` float32
    (1 / sample rate where negatives were dropped). `age_ms_B` int64: emission minus impression.
    `request_row_B` int64: rows of one request have the same number, counted from 0.
    `sample_id_B` int64: hash of (request id, item id).
    `nominal_size` divides the summed loss, so that a step does not depend on traffic.
    `incoming`: vectors of another encoder version, in a table of their own: they never mix.
    `served`: what a server logged with the impressions, where a module of the ranker asks for it.
    """

    ids_BF: Tensor
    bags_BL: tuple[Tensor, ...]
    dense_BD: Tensor
    content: ContentRows | None
    labels_BK: Tensor
    label_mask_BK: Tensor
    weight_B: Tensor
    row_kind_B: Tensor
    age_ms_B: Tensor
    request_row_B: Tensor
    sample_rate_B: Tensor
    ts_ms_B: Tensor
    sample_id_B: Tensor
    nominal_size: int
    incoming: ContentRows | None = None
    served: ServedRows | None = None

    def __len__(self) -> int:
        """Number of rows B."""
        return int(self.ids_BF.shape[0])

    def check(self) -> None:
        """Assert shapes and dtypes: a fault here is ours, not the world's."""
        b = len(self)
        assert self.ids_BF.dtype == torch.int64, self.ids_BF.dtype
        assert self.dense_BD.dtype == torch.float32, self.dense_BD.dtype
        assert self.labels_BK.shape == self.label_mask_BK.shape
        for name in (
            "dense_BD",
            "labels_BK",
            "weight_B",
            "row_kind_B",
            "age_ms_B",
            "ts_ms_B",
            "request_row_B",
            "sample_rate_B",
            "sample_id_B",
        ):
            assert getattr(self, name).shape[0] == b, (name, getattr(self, name).shape, b)
        for bag in self.bags_BL:
            assert bag.shape[0] == b
            assert bag.dtype == torch.int64
