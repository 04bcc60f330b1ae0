"""Contrastive training of a projection on pairs of items. Mines no pairs and writes no files.

Shapes: N items with raw vectors, P pairs, B pairs a step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from embeddings.pretrain.adam import Adam
from embeddings.pretrain.contrast import (
    KeyQueue,
    follow,
    in_batch_nce,
    info_nce,
    momentum_copy,
    triplet,
)
from embeddings.pretrain.head import ProjectionHead, composed, principal_axes
from infra.errors import InputError

I64 = NDArray[np.int64]
_PLACE = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastConfig:
    """How the projection is trained.

    `objective`: `queue` contrasts with the last `keys` keys of a momentum copy, `batch` with the
    batch's other pairs. `hidden` 0: a linear projection. `axes`: it reads the raw vectors' first
    principal axes alone, 0 for all; fewer learn less of single items by heart, which is what items
    without any pair need. `triplet_weight` counts where a pair has a hard negative.
    """

    dim: int = 128
    hidden: int = 0
    axes: int = 0
    objective: Literal["queue", "batch"] = "queue"
    keys: int = 4_096
    momentum: float = 0.99
    temperature: float = 0.2
    triplet_weight: float = 0.5
    triplet_margin: float = 0.1
    batch_size: int = 256
    epochs: int = 40
    lr: float = 1e-3
    weight_decay: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.dim, self.keys, self.epochs) < 1 or self.batch_size < 2 or self.hidden < 0:
            raise ValueError("contrast: dim, keys, epochs must be at least 1, batch_size 2")
        if self.objective not in ("queue", "batch"):
            raise ValueError(f"contrast: objective must be queue or batch, got '{self.objective}'")
        if not (self.temperature > 0 and self.lr > 0 and 0 <= self.momentum < 1):
            raise ValueError("contrast: temperature and lr must be positive, momentum in [0, 1)")
        numbers = (self.triplet_weight, self.triplet_margin, self.weight_decay, self.seed)
        if min(*numbers, self.axes) < 0:
            raise ValueError("contrast: weights, margin, seed and axes must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """Pairs as rows of the raw vectors; `hard_P` -1 where a pair has no hard negative."""

    left_P: I64
    right_P: I64
    hard_P: I64

    def shuffled(self, seed: int) -> PairRows:
        """The same lefts with other pairs' rights and hard negatives: a placebo."""
        order = np.random.default_rng(seed).permutation(len(self.right_P))
        return PairRows(left_P=self.left_P, right_P=self.right_P[order], hard_P=self.hard_P[order])


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochFacts:
    """Means over one epoch. `ln_keys`: the contrast's loss if all keys looked alike."""

    epoch: int
    loss: float
    contrast: float
    triplet: float
    ln_keys: float


class ContrastTrainer:
    """Trains one projection; stands at a step and can be saved there."""

    def __init__(
        self,
        raw_ND: NDArray[np.float32],
        pairs: PairRows,
        config: ContrastConfig,
        device: str = "cpu",
    ) -> None:
        """Raises InputError where there are fewer than two pairs."""
        if len(pairs.left_P) < 2:
            raise InputError(
                f"contrast: {len(pairs.left_P)} pairs of items with vectors, expected at least 2; "
                "give a longer log, a wider window, or an encoder that knows the items"
            )
        self.config = config
        self._raw_ND = torch.from_numpy(np.ascontiguousarray(raw_ND)).to(device)
        self._cut = self._cut_of(self._raw_ND, config.axes)
        if self._cut is not None:
            axes_AD, mean_D = self._cut
            self._raw_ND = (self._raw_ND - mean_D) @ axes_AD.T
        self._group_N = torch.from_numpy(content_groups(raw_ND)).to(device)
        self._pairs = torch.from_numpy(
            np.stack((pairs.left_P, pairs.right_P, pairs.hard_P), axis=1)
        ).to(device)
        head = ProjectionHead(self._raw_ND.cpu(), config.dim, config.hidden, config.seed)
        self.head = head.to(device)
        self._follower = momentum_copy(self.head)
        self._adam = Adam(self.head, config.lr, config.weight_decay)
        self._queue = self._first_queue()
        self._identity = _identity(raw_ND, pairs, config)
        self.step = 0

    @property
    def batch_size(self) -> int:
        """Pairs a step: the configured number, or all where there are fewer."""
        return min(self.config.batch_size, len(self._pairs))

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch; an incomplete batch at its end is left out."""
        return len(self._pairs) // self.batch_size

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epoch_steps * self.config.epochs

    def run_epoch(self, on_step: Callable[[int, int], None] = lambda _, __: None) -> EpochFacts:
        """Train to the end of the epoch in which the trainer stands."""
        epoch = self.step // self.epoch_steps
        generator = torch.Generator().manual_seed((self.config.seed << 20) + epoch)
        order_P = torch.randperm(len(self._pairs), generator=generator)
        sums = torch.zeros(4, dtype=torch.float64)
        first = self.step % self.epoch_steps
        for at in range(first, self.epoch_steps):
            rows = order_P[at * self.batch_size : (at + 1) * self.batch_size]
            sums += self._train(self._pairs[rows.to(self._pairs.device)])
            self.step += 1
            on_step(self.step, self.steps)
        loss, contrast, hard, ln_keys = (sums / (self.epoch_steps - first)).tolist()
        return EpochFacts(
            epoch=epoch + 1, loss=loss, contrast=contrast, triplet=hard, ln_keys=ln_keys
        )

    def vectors(self) -> NDArray[np.float32]:
        """All items' projected vectors, float32 [N, dim]."""
        with torch.no_grad():
            projected: NDArray[np.float32] = self.head(self._raw_ND).cpu().numpy()
        return projected

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Weights of the projection from the raw vectors, by name."""
        found = {name: p.detach() for name, p in self.head.named_parameters()}
        if self._cut is not None:
            found = composed(found, *self._cut)
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    @staticmethod
    def _cut_of(raw_ND: Tensor, axes: int) -> tuple[Tensor, Tensor] | None:
        if not axes:
            return None
        if axes > raw_ND.shape[1]:
            raise InputError(
                f"axes={axes}: the vectors have only {raw_ND.shape[1]} numbers; 0 reads all of them"
            )
        mean_D = raw_ND.mean(dim=0)
        return principal_axes(raw_ND.cpu(), mean_D.cpu(), axes).to(raw_ND.device), mean_D

    def _train(self, pairs_B3: Tensor) -> Tensor:
        """One step; the sums of `run_epoch`."""
        c = self.config
        left_B, right_B, hard_B = pairs_B3.unbind(dim=1)
        query_BD = self.head(self._raw_ND[left_B])
        groups = self._group_N[left_B], self._group_N[right_B]
        hard = query_BD.new_zeros(())
        if c.objective == "batch":
            contrast = in_batch_nce(
                query_BD, self.head(self._raw_ND[right_B]), *groups, c.temperature
            ).mean()
            ln_keys = torch.tensor(math.log(len(left_B)))
        else:
            with torch.no_grad():
                key_BD = self._follower(self._raw_ND[right_B])
                hard_BD = self._follower(self._raw_ND[hard_B.clamp(min=0)])
            masked_BK = self._queue.masked(groups)
            contrast = info_nce(
                query_BD, key_BD, self._queue.keys_KD, masked_BK, c.temperature
            ).mean()
            ln_keys = (len(self._queue) + 1 - masked_BK.sum(dim=1)).double().log().mean()
            if c.triplet_weight:
                each_B = triplet(query_BD, key_BD, hard_BD, c.triplet_margin)
                has_B = (hard_B >= 0).float()
                hard = (each_B * has_B).sum() / has_B.sum().clamp(min=1.0)
        loss = contrast + c.triplet_weight * hard
        self.head.zero_grad()
        loss.backward()
        self._adam.step()
        if c.objective == "queue":
            follow(self._follower, self.head, c.momentum)
            self._queue.push(key_BD, groups[1])
        return torch.stack([t.detach().double().cpu() for t in (loss, contrast, hard, ln_keys)])

    def _first_queue(self) -> KeyQueue:
        """Keys of random pairs, so that the loss has all its keys from the first step on."""
        generator = torch.Generator().manual_seed(self.config.seed)
        keys = self.config.keys if self.config.objective == "queue" else 1
        rows = torch.randint(len(self._pairs), (keys,), generator=generator)
        items = self._pairs[rows.to(self._pairs.device), 1]
        with torch.no_grad():
            return KeyQueue(self._follower(self._raw_ND[items]), self._group_N[items])

    def to_bytes(self) -> bytes:
        """Everything that a later `restore` needs, as a safetensors file."""
        tensors = {f"head.{n}": p.detach() for n, p in self.head.named_parameters()}
        tensors |= {f"follower.{n}": p for n, p in self._follower.named_parameters()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self._adam.state().items()}
        tensors |= {"queue.keys": self._queue.keys_KD, "queue.group": self._queue.group_K}
        # One entry: several would be written in an order that differs from run to run.
        place = {"step": self.step, "head": self._queue.head, "of": self._identity}
        meta = {_PLACE: json.dumps(place)}
        return save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, meta)

    def restore(self, state: bytes) -> None:
        """Stand where `to_bytes` was called. Raises InputError for another training's state."""
        meta = _place(state)
        if meta.get("of") != self._identity:
            raise InputError(
                "the saved training is of other pairs, vectors or settings: remove its file, or "
                "give the log and the options that it was begun with"
            )
        tensors = load(state)
        with torch.no_grad():
            for prefix, module in (("head", self.head), ("follower", self._follower)):
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"{prefix}.{name}"])
            for name, tensor in self._adam.state().items():
                tensor.copy_(tensors[f"adam.{name}"])
        self._queue.keys_KD.copy_(tensors["queue.keys"])
        self._queue.group_K.copy_(tensors["queue.group"])
        self._queue.head, self.step = meta["head"], meta["step"]


def content_groups(raw_ND: NDArray[np.float32]) -> I64:
    """One number for all items whose raw vectors are the same bits, int64 [N]."""
    rows = np.ascontiguousarray(raw_ND).view(np.void(raw_ND.dtype.itemsize * raw_ND.shape[1]).dtype)
    return np.unique(rows.ravel(), return_inverse=True)[1].astype(np.int64)


def _identity(raw_ND: NDArray[np.float32], pairs: PairRows, config: ContrastConfig) -> str:
    """A hash of everything that training depends on."""
    digest = xxhash.xxh3_128(json.dumps(asdict(config), sort_keys=True).encode())
    for array in (raw_ND, pairs.left_P, pairs.right_P, pairs.hard_P):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _place(state: bytes) -> dict[str, Any]:
    """Where a training stands, from a safetensors file's header; raises InputError."""
    try:
        size = int.from_bytes(state[:8], "little")
        place: dict[str, Any] = json.loads(json.loads(state[8 : 8 + size])["__metadata__"][_PLACE])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError("the saved training is no safetensors file of one: remove it") from error
    return place
