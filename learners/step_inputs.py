"""A MiniBatch made ready for a step: padded, bad rows neutralised, content pooled, on the device.

It reads no weights, so it may be prepared in another thread with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from learners.batch import ContentRows, MiniBatch, RowKind
from learners.content_cosines import ContentCosines
from learners.feature_spec import FeatureSpec
from learners.id_kernels import I64, LEARN, LEARN_AND_COUNT, READ, U8
from learners.served import ServedRows

ROW_MULTIPLE = 8
"""Batches are padded to a multiple of this: else a logit's last bit depends on the length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What a net reads of B8 >= B rows; the rows beyond B are padding and are never learned from.

    `flag_B` says which rows are learned from (id_kernels.READ, LEARN, LEARN_AND_COUNT); rows with
    a number that is not finite are read only, with 0 in its place. `weight_B` is 0 where nothing
    is learned. `counted_B` 1 for rows that running moments count. `target_BC` and `pooled_BC` are
    zero where there is no vector. `repeats_BH`: log1p of how often the row's own item stands in
    each history (see `repeat_columns`). `clock_ms` is the newest event time.
    """

    rows: int
    ids_BF: I64
    bags_BL: tuple[I64, ...]
    flag_B: U8
    dense_BD: Tensor
    target_BC: Tensor
    pooled_BC: tuple[Tensor, ...]
    present_B1: Tensor
    repeats_BH: Tensor
    label_B: Tensor
    weight_B: Tensor
    counted_B: Tensor
    weight_sum: float
    learnable: int
    rejected: int
    """Rows that were to be learned from, but have a number that is not finite."""
    clock_ms: int
    nominal_size: int
    content: ContentRows | None
    """The batch's own, on the host: B rows, not padded. For modules that read single vectors."""
    label_mask_B: Tensor
    """1 where the trained label is known and the row is learned from."""
    ts_ms_B: I64
    """Of the impressions, on the host; 0 in padding."""
    cosines: ContentCosines
    """Of the batch's items with their histories; on the host, B rows, computed when asked for."""
    served: ServedRows | None = None
    """The batch's own, B rows."""
    incoming: StepInputs | None = None
    """The same with the vectors of the incoming encoder version alone."""


def trained_rows(batch: MiniBatch, spec: FeatureSpec) -> tuple[Tensor, Tensor]:
    """Rows that have the trained label, and those whose numbers are all finite; bool [B] each.

    Every learner learns from rows that are both, and counts the labelled others as skipped.
    """
    k = spec.trained_column
    sums_B = batch.dense_BD.sum(1) + batch.labels_BK[:, k] + batch.weight_B
    return batch.label_mask_BK[:, k] > 0, torch.isfinite(sums_B)


def repeat_columns(spec: FeatureSpec) -> list[tuple[int, int]]:
    """Each history with the id column whose rows it shares: (place in `bags`, place in `ids`)."""
    names = [f.name for f in spec.ids]
    return [
        (i, names.index(bag.field))
        for i, bag in enumerate(spec.bags)
        if bag.is_history and bag.field in names
    ]


def step_inputs(batch: MiniBatch, spec: FeatureSpec, device: torch.device) -> StepInputs:
    """Inputs of one batch; the batch itself is not changed."""
    b = len(batch)
    more = -b % ROW_MULTIPLE
    k = spec.trained_column
    dense_BD = _padded(batch.dense_BD, more)
    label_B, weight_B = _padded(batch.labels_BK[:, k], more), _padded(batch.weight_B, more)
    labelled_B, finite_B = trained_rows(batch, spec)
    clean, rejected = bool(finite_B.all()), int((labelled_B & ~finite_B).sum())
    labelled_B = _padded(labelled_B & finite_B, more)
    if not clean:
        dense_BD, label_B, weight_B = (
            torch.where(torch.isfinite(x), x, 0.0) for x in (dense_BD, label_B, weight_B)
        )
    sample_B = _padded(batch.row_kind_B, more) == int(RowKind.SAMPLE)
    flag_B = torch.where(sample_B, LEARN_AND_COUNT, LEARN).where(labelled_B, torch.tensor(READ))
    weight_B = weight_B * labelled_B
    target_BC, pooled_BC, present_B1 = _content(batch.content, spec, b + more, device)
    x = StepInputs(
        rows=b,
        ids_BF=_padded(batch.ids_BF, more).numpy(),
        bags_BL=tuple(_padded(bag, more).contiguous().numpy() for bag in batch.bags_BL),
        flag_B=flag_B.to(torch.uint8).numpy(),
        dense_BD=_put(dense_BD, device),
        target_BC=target_BC,
        pooled_BC=pooled_BC,
        present_B1=present_B1,
        repeats_BH=_put(_padded(_repeats(batch, spec), more), device),
        label_B=_put(label_B, device),
        weight_B=_put(weight_B, device),
        counted_B=_put((labelled_B & sample_B).float(), device),
        weight_sum=float(weight_B.sum()),
        learnable=int(labelled_B.sum()),
        rejected=rejected,
        clock_ms=int(batch.ts_ms_B.max()) if b else 0,
        nominal_size=batch.nominal_size,
        content=batch.content,
        label_mask_B=_put(labelled_B.float(), device),
        ts_ms_B=_padded(batch.ts_ms_B, more).numpy(),
        cosines=ContentCosines(batch.content, histories_of(batch, spec)),
        served=batch.served,
    )
    return x if batch.incoming is None else replace(x, incoming=_incoming(x, batch, spec, device))


def _incoming(
    x: StepInputs, batch: MiniBatch, spec: FeatureSpec, device: torch.device
) -> StepInputs:
    rows = x.rows + -x.rows % ROW_MULTIPLE
    target_BC, pooled_BC, present_B1 = _content(batch.incoming, spec.of_incoming, rows, device)
    return replace(
        x, target_BC=target_BC, pooled_BC=pooled_BC, present_B1=present_B1,
        content=batch.incoming, served=None,
        cosines=ContentCosines(batch.incoming, histories_of(batch, spec)),
    )  # fmt: skip


def histories_of(batch: MiniBatch, spec: FeatureSpec) -> list[I64]:
    """Keys of the histories, [B, L] each."""
    bags = zip(spec.bags, batch.bags_BL, strict=True)
    return [keys_BL.numpy() for bag, keys_BL in bags if bag.is_history]


def _repeats(batch: MiniBatch, spec: FeatureSpec) -> Tensor:
    """What a user watched before is another matter than what looks like it: log1p counts."""
    columns = repeat_columns(spec)
    if not columns:
        return torch.zeros(len(batch), 0)
    keys_BF = batch.ids_BF
    counts = [(batch.bags_BL[bag] == keys_BF[:, at : at + 1]).sum(1) for bag, at in columns]
    return torch.stack(counts, 1).float().log1p_()


def _padded(x: Tensor, more: int, value: int = 0) -> Tensor:
    if more == 0:
        return x
    return functional.pad(x, [0, 0] * (x.dim() - 1) + [0, more], value=value)


def _put(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True)


def _content(
    content: ContentRows | None, spec: FeatureSpec, rows: int, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Vectors of the targets, mean vectors of the histories, and where a target has one.

    Gathered and pooled on the host, because the table may be a whole cache: only what the batch
    reads goes to the device. A batch without content has no vector anywhere.
    """
    if content is None:
        histories = sum(bag.is_history for bag in spec.bags)
        zeros_BC = torch.zeros(rows, spec.content_dim, device=device)
        return zeros_BC, (zeros_BC,) * histories, torch.zeros(rows, 1, device=device)
    table, none = content.table_VC, len(content.table_VC) - 1
    more = rows - len(content.target_B)
    target_BC = functional.embedding(_padded(content.target_B, more, none), table).float()
    pooled = []
    for bag_BL, inv_len_B in zip(content.bags_BL, content.bag_inv_len_B, strict=True):
        sum_BC = functional.embedding_bag(_padded(bag_BL, more, none), table, mode="sum").float()
        pooled.append(_put(sum_BC.mul_(_padded(inv_len_B, more).float().unsqueeze(1)), device))
    present_B = _padded(~content.missing_B.bool(), more).float()
    return _put(target_BC, device), tuple(pooled), _put(present_B.unsqueeze(1), device)


def narrowed(batch: MiniBatch, whole: FeatureSpec, own: FeatureSpec) -> MiniBatch:
    """The batch of `whole` with the columns and bags of `own` only; itself where they are equal.

    A field that has another's ids (`IdField.of`) gets its column, each key mixed with its salt.
    """
    if whole == own:
        return batch
    places = {f.name: i for i, f in enumerate(whole.ids)}
    ids_BF = batch.ids_BF[:, [places[f.of or f.name] for f in own.ids]].contiguous()
    salts = [f.salt if f.of else 0 for f in own.ids]
    if any(salts):
        ids_BF ^= torch.tensor(salts)
    bags = {b.name for b in own.bags}
    return replace(
        batch,
        ids_BF=ids_BF,
        bags_BL=tuple(x for b, x in zip(whole.bags, batch.bags_BL, strict=True) if b.name in bags),
    )


def checked_keys(batch: MiniBatch, spec: FeatureSpec) -> None:
    """Assert that a batch has the columns of the spec: a misfit is our own mistake."""
    assert batch.ids_BF.shape[1] == len(spec.ids), (batch.ids_BF.shape, len(spec.ids))
    assert len(batch.bags_BL) == len(spec.bags), (len(batch.bags_BL), len(spec.bags))
    assert batch.dense_BD.shape[1] == len(spec.dense), (batch.dense_BD.shape, len(spec.dense))
    assert batch.labels_BK.shape[1] == len(spec.labels), (batch.labels_BK.shape, spec.labels)
    if batch.content is not None:
        histories = sum(bag.is_history for bag in spec.bags)
        assert len(batch.content.bags_BL) == histories, (len(batch.content.bags_BL), histories)
    assert np.dtype(np.int64) == batch.ids_BF.numpy().dtype
