"""Content of one batch with each distinct vector once, for modules that attend over histories.

What depends on an item alone is then computed once an item and not once a place. Reads single
vectors; pools nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from learners.batch import ContentRows

T = TypeVar("T")
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
ROW_MULTIPLE = 8
"""As of batches: else the last bit of a product depends on how many rows it has."""
_NOT_KEPT = -(2.0**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentView:
    """`rows_UC` float32: U vectors, the last of them all zeros, which stands for "no vector".

    `target_B` and each of `bags_BL` are int64 rows of it.
    """

    rows_UC: Tensor
    target_B: Tensor
    bags_BL: tuple[Tensor, ...]

    @property
    def none(self) -> int:
        """Row of "no vector"."""
        return len(self.rows_UC) - 1

    def kept(self, history: int) -> Tensor:
        """Which places of a history have a vector, bool [B, L]."""
        return self.bags_BL[history] != self.none

    def some(self, chosen: I64) -> ContentView:
        """The view of some of its rows, in their order, padded."""
        parts = [part.numpy()[chosen] for part in (self.target_B.unsqueeze(1), *self.bags_BL)]
        return _view_of(self.rows_UC, parts, len(chosen) + -len(chosen) % ROW_MULTIPLE)

    def to(self, device: torch.device) -> ContentView:
        """The same on a device."""
        if device.type == "cpu":
            return self
        return ContentView(
            rows_UC=self.rows_UC.to(device),
            target_B=self.target_B.to(device),
            bags_BL=tuple(bag.to(device) for bag in self.bags_BL),
        )


def content_view(
    content: ContentRows | None,
    *,
    rows: int,
    dim: int,
    lengths: Sequence[int],
    chosen: I64 | None = None,
    start: int = 0,
) -> ContentView:
    """The view of a batch, `rows` long: rows beyond its own have no vector anywhere.

    `chosen`: rows of the batch to take, in order; None: all. `start` and `dim`: the columns of the
    vectors. `lengths`: of the histories, for a batch without content.
    """
    if content is None:
        return ContentView(
            rows_UC=torch.zeros(ROW_MULTIPLE, dim),
            target_B=torch.full((rows,), ROW_MULTIPLE - 1),
            bags_BL=tuple(torch.full((rows, n), ROW_MULTIPLE - 1) for n in lengths),
        )
    parts = [content.target_B.unsqueeze(1), *content.bags_BL]
    places = [part.numpy() if chosen is None else part.numpy()[chosen] for part in parts]
    return _view_of(content.table_VC[:, start : start + dim], places, rows)


def _view_of(table_VC: Tensor, places: Sequence[I64], rows: int) -> ContentView:
    """`places`: of the targets [B, 1] and of each history [B, L], the last row for "no vector"."""
    none = len(table_VC) - 1
    own, order = _distinct(np.concatenate([p.ravel() for p in places]), none)
    u = len(own) + 1 + -(len(own) + 1) % ROW_MULTIPLE
    order[order < 0] = u - 1
    padded = torch.from_numpy(np.append(own, np.full(u - len(own), none)))
    out, at = [], 0
    for place in places:
        rest = rows - len(place)
        part = torch.from_numpy(order[at : at + place.size].reshape(place.shape))
        out.append(functional.pad(part, [0, 0, 0, rest], value=u - 1))
        at += place.size
    return ContentView(
        rows_UC=table_VC.index_select(0, padded).float(),
        target_B=out[0].squeeze(1),
        bags_BL=tuple(out[1:]),
    )


class PerStep(Generic[T]):
    """Something of the step at hand, made once however often it is asked for.

    For one `StepInputs` object alone: what a table holds at a place may be another item later. A
    net's copies share it, so what is made must not depend on weights that they have apart.
    """

    def __init__(self) -> None:
        self._kept: tuple[object, T] | None = None

    def __deepcopy__(self, memo: object) -> PerStep[T]:
        return self

    def of(self, step: object, make: Callable[[], T]) -> T:
        """What `make` gave for this step."""
        kept = self._kept
        if kept is None or kept[0] is not step:
            self._kept = kept = (step, make())
        return kept[1]

    def forget(self) -> None:
        """The step is over."""
        self._kept = None


@numba.njit(cache=True, nogil=True)
def _distinct(places: I64, none: int) -> tuple[I64, I64]:
    """Distinct rows in order of first occurrence without `none`, and each place's (-1: none)."""
    seen = np.zeros(none + 1, np.int32)
    own = np.empty(len(places), np.int64)
    order = np.empty(len(places), np.int64)
    n = 0
    for i in range(len(places)):
        row = places[i]
        if row == none:
            order[i] = -1
            continue
        if seen[row] == 0:
            own[n] = row
            n += 1
            seen[row] = n
        order[i] = seen[row] - 1
    return own[:n].copy(), order


def masked_softmax(scores_BL: Tensor, kept_BL: Tensor) -> Tensor:
    """Softmax over the kept places; 0 at the others, and all 0 where none is kept."""
    return scores_BL.masked_fill(~kept_BL, _NOT_KEPT).softmax(1) * kept_BL


def picked_dots(rows_UA: Tensor, query_BA: Tensor, bag_BL: Tensor) -> Tensor:
    """rows[bag_bl] . query_b, float32 [B, L], without writing the rows of all places out.

    On the host compiled, a fifth of the time of the torch operations that a device is given.
    """
    if rows_UA.device.type == "cpu":
        dots_BL: Tensor = _PickedDots.apply(rows_UA, query_BA, bag_BL)
        return dots_BL
    return (functional.embedding(bag_BL, rows_UA) * query_BA.unsqueeze(1)).sum(2)


class _PickedDots(torch.autograd.Function):
    """Gradients are summed in order of the places, whatever the number of threads."""

    @staticmethod
    def forward(ctx: Any, rows_UA: Tensor, query_BA: Tensor, bag_BL: Tensor) -> Tensor:
        rows, query = rows_UA.detach().contiguous(), query_BA.detach().contiguous()
        ctx.save_for_backward(rows, query, bag_BL)
        out_BL = torch.empty(bag_BL.shape)
        _dots(rows.numpy(), query.numpy(), bag_BL.numpy(), out_BL.numpy())
        return out_BL

    @staticmethod
    def backward(ctx: Any, g_BL: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, query, bag_BL = ctx.saved_tensors
        wants_rows = ctx.needs_input_grad[0]
        d_rows = torch.zeros_like(rows) if wants_rows else rows.new_zeros(1, 1)
        d_query = torch.zeros_like(query)
        _dots_back(
            rows.numpy(), query.numpy(), bag_BL.numpy(), g_BL.contiguous().numpy(), d_rows.numpy(),
            d_query.numpy(), wants_rows,
        )  # fmt: skip
        return d_rows if wants_rows else None, d_query, None


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dots(rows_UA: F32, query_BA: F32, bag_BL: I64, out_BL: F32) -> None:
    for b in range(bag_BL.shape[0]):
        for place in range(bag_BL.shape[1]):
            row = bag_BL[b, place]
            total = np.float32(0)
            for a in range(rows_UA.shape[1]):
                total += rows_UA[row, a] * query_BA[b, a]
            out_BL[b, place] = total


@numba.njit(cache=True, nogil=True)
def _dots_back(
    rows_UA: F32, query_BA: F32, bag_BL: I64, g_BL: F32, d_rows_UA: F32, d_query_BA: F32,
    wants_rows: bool,
) -> None:  # fmt: skip
    for b in range(bag_BL.shape[0]):
        for place in range(bag_BL.shape[1]):
            g = g_BL[b, place]
            if g == 0:
                continue
            row = bag_BL[b, place]
            for a in range(rows_UA.shape[1]):
                d_query_BA[b, a] += g * rows_UA[row, a]
            if wants_rows:
                for a in range(rows_UA.shape[1]):
                    d_rows_UA[row, a] += g * query_BA[b, a]


def weighted_sum(rows_UC: Tensor, bag_BL: Tensor, weight_BL: Tensor) -> Tensor:
    """sum_l weight_l * rows[bag_l], without writing the vectors of all places out.

    Rows without a gradient, on the host: that of the weights is then a tenth of torch's time.
    """
    if rows_UC.device.type != "cpu" or rows_UC.requires_grad:
        return functional.embedding_bag(bag_BL, rows_UC, mode="sum", per_sample_weights=weight_BL)
    sums_BC: Tensor = _WeightedSum.apply(rows_UC, bag_BL, weight_BL)
    return sums_BC


class _WeightedSum(torch.autograd.Function):
    """d loss / d weight_l = rows[bag_l] . d loss / d sum."""

    @staticmethod
    def forward(ctx: Any, rows_UC: Tensor, bag_BL: Tensor, weight_BL: Tensor) -> Tensor:
        rows = rows_UC.contiguous()
        ctx.save_for_backward(rows, bag_BL)
        return functional.embedding_bag(bag_BL, rows, mode="sum", per_sample_weights=weight_BL)

    @staticmethod
    def backward(ctx: Any, d_BC: Tensor) -> tuple[None, None, Tensor]:
        rows, bag_BL = ctx.saved_tensors
        d_weight_BL = torch.empty(bag_BL.shape)
        _dots(rows.numpy(), d_BC.contiguous().numpy(), bag_BL.numpy(), d_weight_BL.numpy())
        return None, None, d_weight_BL
