"""Rows of weights for all id fields of one dimension: look-up, update, snapshot parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.distinct_keys import Distinct, distinct_keys
from learners.feature_spec import FeatureSpec, IdField
from learners.id_kernels import I64, U8
from learners.id_table import IdTable, KeyBlock, Plan, noise_of_keys
from learners.sparse_optim import rowwise_adagrad_, rowwise_adagrad_host_, segment_sum

CACHE_LINE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """Learning rate and start of rows; sightings in bags; bounds of the bookkeeping."""

    lr: float = 0.04
    eps: float = 1e-8
    init_sigma: float = 0.02
    admit_from_bags: bool = True
    """May a sighting in a history or several-valued field give an id its row."""
    waiting_max: int = 1 << 18
    """Ids below `admit_after` sightings that are remembered."""
    sweep_rows: int = 4096
    """Rows looked at for expiry after each step."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and self.eps > 0 and self.init_sigma >= 0):
            raise ValueError(f"embedding: lr, eps > 0 and init_sigma >= 0, got {self}")
        if self.waiting_max < 1 or self.sweep_rows < 1:
            raise ValueError(f"embedding: waiting_max and sweep_rows >= 1, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What one table gives for a batch: leaves for autograd, and how to update their rows.

    `embedded_BFD` rows of the id columns; `pooled_BD` one mean of rows a bag, and of a sequence
    the rows [U, D] of its distinct ids, the first of them zeros; `inv_len_B1` of each bag, None of
    a sequence; `index_BL` int32 of each sequence: places among its rows, 0 for none; None of a
    bag. `plan` is None for predictions.
    """

    embedded_BFD: Tensor
    pooled_BD: tuple[Tensor, ...]
    inv_len_B1: tuple[Tensor | None, ...]
    index_BL: tuple[Tensor | None, ...]
    plan: Plan | None

    def gradient(self) -> Tensor:
        """Rows of gradient that the plan's sources point to, float32 [n, D].

        B F of the ids, then B of each bag or U of each sequence; zeros for what nobody read.
        """
        dim = self.embedded_BFD.shape[-1]
        parts = [_gradient_of(self.embedded_BFD).reshape(-1, dim)]
        for leaf, inv_len_B1 in zip(self.pooled_BD, self.inv_len_B1, strict=True):
            gradient = _gradient_of(leaf)
            parts.append(gradient.reshape(-1, dim) if inv_len_B1 is None else gradient * inv_len_B1)
        return torch.cat(parts)


def _gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


class EmbeddingTable:
    """One table for the fields of a spec that have dimension `dim`.

    Weights start as the field's shared row plus noise that depends on (key, seed) alone; a freed
    row's accumulator starts anew.
    """

    def __init__(
        self, spec: FeatureSpec, dim: int, config: TableConfig, *, seed: int, device: torch.device
    ) -> None:
        self.dim, self.config, self.seed, self.device = dim, config, seed, device
        numbers = [i for i, f in enumerate(spec.fields) if f.dim == dim]
        self.fields: tuple[IdField, ...] = tuple(spec.fields[i] for i in numbers)
        self.columns = [i for i in numbers if i < len(spec.ids)]
        self.bags = [i for i, b in enumerate(spec.bags) if spec.field_of(b.field) in numbers]
        self._column_field = np.array([numbers.index(i) for i in self.columns], np.int64)
        self._bag_field = [
            np.full(spec.bags[i].length, numbers.index(spec.field_of(spec.bags[i].field)), np.int64)
            for i in self.bags
        ]
        self._sequence = [spec.bags[i].sequence for i in self.bags]
        self._admit = [config.admit_from_bags or bool(spec.bags[i].reader) for i in self.bags]
        self.ids = IdTable(self.fields, waiting_max=config.waiting_max)
        self.weight_RD = self._zeros(0, dim)
        self.accumulator_R = self._zeros(0)
        self.grow()
        shared = np.arange(len(self.fields), dtype=np.int64)
        self.weight_RD[: len(shared)] = self._noise(shared)

    def _zeros(self, *shape: int) -> Tensor:
        # numpy's zeros commit memory when it is touched, torch's at once. A row of 16 floats is a
        # cache line where the first one starts a line.
        size = int(np.prod(shape)) * 4
        raw = np.zeros(size + CACHE_LINE, np.uint8)
        start = -raw.ctypes.data % CACHE_LINE
        zeros = torch.from_numpy(raw[start : start + size].view(np.float32).reshape(shape))
        return zeros if self.device.type == "cpu" else zeros.to(self.device)

    def _noise(self, keys_n: I64) -> Tensor:
        noise = noise_of_keys(keys_n, self.dim, sigma=self.config.init_sigma, seed=self.seed)
        return torch.from_numpy(noise).to(self.device)

    def grow(self) -> None:
        """Room for as many rows as the ids have."""
        old_weight, old_accumulator = self.weight_RD, self.accumulator_R
        if self.ids.capacity > len(old_weight):
            self.weight_RD = self._zeros(self.ids.capacity, self.dim)
            self.accumulator_R = self._zeros(self.ids.capacity)
            self.weight_RD[: len(old_weight)] = old_weight
            self.accumulator_R[: len(old_accumulator)] = old_accumulator

    def _sequences(self, bags_BL: Sequence[I64], flag_B: U8) -> list[Distinct | None]:
        return [
            distinct_keys(bags_BL[bag], flag_B) if sequence else None
            for bag, sequence in zip(self.bags, self._sequence, strict=True)
        ]

    def _blocks(
        self, ids_BF: I64, bags_BL: Sequence[I64], sequences: Sequence[Distinct | None]
    ) -> list[KeyBlock]:
        b, n = len(ids_BF), len(self.columns)
        blocks = [
            KeyBlock(
                keys_BN=np.ascontiguousarray(ids_BF[:, self.columns]),
                field_N=self._column_field,
                source=np.array([0, n, 1]),
                admit=True,
            )
        ]
        start = b * n
        for place, bag in enumerate(self.bags):
            few = sequences[place]
            blocks.append(
                KeyBlock(
                    keys_BN=bags_BL[bag] if few is None else few.keys_U1,
                    field_N=self._bag_field[place] if few is None else self._bag_field[place][:1],
                    source=np.array([start, 1, 0]),
                    admit=self._admit[place],
                    flag_B=None if few is None else few.flag_U,
                )
            )
            start += b if few is None else len(few.keys_U1)
        return blocks

    @torch.no_grad()
    def predict(self, ids_BF: I64, bags_BL: Sequence[I64]) -> Lookup:
        """Rows for scoring; changes nothing."""
        sequences = self._sequences(bags_BL, np.zeros(len(ids_BF), np.uint8))
        reads = [self.ids.predict(block) for block in self._blocks(ids_BF, bags_BL, sequences)]
        return self._lookup(reads, sequences, None)

    @torch.no_grad()
    def learn(
        self, ids_BF: I64, bags_BL: Sequence[I64], flag_B: U8, *, clock_ms: int, step: int
    ) -> Lookup:
        """The same rows, as leaves of autograd, and the plan; new ids get rows."""
        sequences = self._sequences(bags_BL, flag_B)
        blocks = self._blocks(ids_BF, bags_BL, sequences)
        reads, plan = self.ids.learn(blocks, flag_B, clock_ms=clock_ms, step=step)
        self.grow()
        lookup = self._lookup(reads, sequences, plan)
        if len(plan.new_n):
            self._start_rows(plan.new_n.astype(np.int64))
        for leaf in (lookup.embedded_BFD, *lookup.pooled_BD):
            leaf.requires_grad_()
        return lookup

    def _start_rows(self, rows_n: I64) -> None:
        field_n = torch.from_numpy(self.ids.field_R[rows_n].astype(np.int64)).to(self.device)
        rows = torch.from_numpy(rows_n).to(self.device)
        noise = self._noise(np.ascontiguousarray(self.ids.keys_of(rows_n)))
        self.weight_RD.index_copy_(0, rows, noise.add_(self.weight_RD.index_select(0, field_n)))
        self.accumulator_R.index_fill_(0, rows, 0.0)

    def _lookup(
        self,
        reads: Sequence[tuple[np.ndarray, np.ndarray]],
        sequences: Sequence[Distinct | None],
        plan: Plan | None,
    ) -> Lookup:
        (rows_BF, _), *bags = reads
        pooled: list[Tensor] = []
        inv_lens: list[Tensor | None] = []
        indices: list[Tensor | None] = []
        for (rows_BL, inv_len_B), few in zip(bags, sequences, strict=True):
            indices.append(None if few is None else self._put(few.index_BL))
            if few is not None:
                pooled.append(functional.embedding(self._put(rows_BL[:, 0]), self.weight_RD))
                inv_lens.append(None)
                continue
            inv_len_B1 = self._put(inv_len_B).unsqueeze(1)
            summed = functional.embedding_bag(self._put(rows_BL), self.weight_RD, mode="sum")
            pooled.append(summed.mul_(inv_len_B1))
            inv_lens.append(inv_len_B1)
        embedded = functional.embedding(self._put(rows_BF), self.weight_RD)
        return Lookup(
            embedded_BFD=embedded, pooled_BD=tuple(pooled), inv_len_B1=tuple(inv_lens),
            index_BL=tuple(indices), plan=plan,
        )  # fmt: skip

    def _put(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    @torch.no_grad()
    def update(self, lookup: Lookup, gradient_GD: Tensor, ok: Tensor) -> None:
        """Row-wise Adagrad on the planned rows where `ok` (bool, 0-dim); else their bits stay."""
        plan = lookup.plan
        assert plan is not None
        if len(plan.rows_U) == 0:
            return
        c = self.config
        if self.device.type == "cpu":
            if ok:
                rowwise_adagrad_host_(
                    self.weight_RD, self.accumulator_R, plan.rows_U, plan.offsets_U,
                    plan.sources_O, gradient_GD, lr=c.lr, eps=c.eps,
                )  # fmt: skip
            return
        gradient_UD = segment_sum(
            torch.where(ok, gradient_GD, 0.0), self._put(plan.sources_O), self._put(plan.offsets_U)
        )
        rowwise_adagrad_(
            self.weight_RD, self.accumulator_R, self._put(plan.rows_U), gradient_UD,
            lr=c.lr, eps=c.eps,
        )  # fmt: skip

    def expire(self, *, clock_ms: int, step: int) -> None:
        """Free rows that were not updated for too long, a bounded slice of the table a step."""
        self.ids.expire(self.config.sweep_rows, clock_ms=clock_ms, step=step)

    def parts(self, mark: int | None) -> list[Part]:
        """Full parts, or with a mark those of the rows changed after that step."""
        rows = np.arange(self.ids.high) if mark is None else self.ids.touched_rows(mark)
        rows = rows[rows != self.ids.padding_row]
        at = torch.from_numpy(rows).to(self.device)
        serve = self.ids.serve_arrays(rows) | {
            "weights": self.weight_RD.index_select(0, at).cpu().numpy()
        }
        train = self.ids.train_arrays(rows) | {
            "accumulator": self.accumulator_R.index_select(0, at).cpu().numpy()
        }
        meta = {
            "high": self.ids.high,
            "dim": self.dim,
            "fields": [f.name for f in self.fields],
            "owned": [f.name for f in self.fields if f.reader or f.of],
        }
        delta = mark is not None
        name = f"ids.{self.dim}"
        return [
            Part(name=name, part_class="serve", arrays=serve, meta=meta, delta=delta),
            Part(name=f"{name}.train", part_class="train", arrays=train, delta=delta),
        ]

    def apply(self, parts: Mapping[str, Part]) -> bool:
        """Take the table's parts; False if the one that learning needs is not there."""
        name = f"ids.{self.dim}"
        serve = parts[name]
        expected = [f.name for f in self.fields]
        if list(serve.meta["fields"]) != expected:
            raise ValueError(
                f"part '{name}': fields {list(serve.meta['fields'])}, but the configuration has "
                f"{expected}; use the configuration of the snapshot"
            )
        rows = self.ids.apply_serve(serve)
        if not serve.delta:
            self.weight_RD, self.accumulator_R = self._zeros(0, self.dim), self._zeros(0)
        self.grow()
        at = torch.from_numpy(rows).to(self.device)
        weights = torch.from_numpy(serve.array("weights", np.float32).copy()).to(self.device)
        self.weight_RD.index_copy_(0, at, weights)
        train = parts.get(f"{name}.train")
        if train is None:
            return False
        self.ids.apply_train(train)
        accumulator = torch.from_numpy(train.array("accumulator", np.float32).copy())
        self.accumulator_R.index_copy_(
            0, torch.from_numpy(train.array("rows", np.int64)).to(self.device),
            accumulator.to(self.device),
        )  # fmt: skip
        return True
