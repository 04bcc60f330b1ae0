"""Training an extractor by itself: epochs over a window of labelled rows, and how it scores others.

Step 1 of MAKE (section 5.2): cross-entropy on clicks, no id anywhere. Reads no log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embeddings.pretrain.adam import Adam
from learners.batch import ContentRows, MiniBatch
from learners.content_view import ROW_MULTIPLE, ContentView, content_view
from learners.feature_spec import ContentBlock, FeatureSpec
from learners.metrics import LossSums, Score, Undefined, auc_exact, gauc
from learners.modules.make_net import ExtractorConfig, MakeNet, normalised
from learners.modules.make_release import MakeRelease, load_net
from learners.step_inputs import trained_rows

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeTrainingConfig:
    """`epochs` passes in steps of `batch_size` rows with Adam's rate `lr`; `decay`: of weights."""

    epochs: int = 4
    batch_size: int = 512
    lr: float = 1e-3
    decay: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0 or self.decay < 0:
            raise ValueError(
                "make: epochs and batch_size at least 1, lr > 0, decay >= 0, got "
                f"{self.epochs}, {self.batch_size}, {self.lr}, {self.decay}"
            )


@dataclass(slots=True, kw_only=True)
class ContentSamples:
    """Labelled rows with the vectors of target and histories; the newest `rows_max` of them.

    A vector is kept once, by its value: rows of a table that is a cache mean another item later.
    """

    block: ContentBlock
    lengths: tuple[int, ...]
    trained_column: int
    rows_max: int = 1_000_000
    encoders: set[str] = field(default_factory=set)
    dropped: int = 0
    _places: dict[bytes, int] = field(default_factory=dict)
    _vectors: list[F32] = field(default_factory=list)
    _parts: list[tuple[I64, tuple[NDArray[np.int32], ...], F32, I64, I64]] = field(
        default_factory=list
    )
    _rows: int = 0

    @classmethod
    def of(cls, spec: FeatureSpec, *, block: str = "", rows_max: int = 1_000_000) -> ContentSamples:
        """Empty. Raises ValueError where the spec has no vectors or no history."""
        lengths = tuple(bag.length for bag in spec.bags if bag.is_history)
        if not lengths:
            raise ValueError("make: there is no history; configure a [[history]]")
        return cls(
            block=spec.block(block), lengths=lengths, trained_column=spec.trained_column,
            rows_max=rows_max,
        )  # fmt: skip

    def __len__(self) -> int:
        """Rows that are kept."""
        return self._rows

    def add(self, batch: MiniBatch, spec: FeatureSpec, *, from_ms: int, before_ms: int) -> None:
        """Take the rows that a learner would learn from and that were shown within the span."""
        labelled_B, finite_B = trained_rows(batch, spec)
        own_B = (batch.ts_ms_B >= from_ms) & (batch.ts_ms_B < before_ms) & (batch.weight_B > 0)
        chosen = np.flatnonzero((labelled_B & finite_B & own_B).numpy())
        if batch.content is None or not len(chosen):
            return
        self.encoders.add(batch.content.encoder)
        view = content_view(
            batch.content, rows=len(chosen), dim=self.block.dim, lengths=self.lengths,
            chosen=chosen, start=self.block.start,
        )  # fmt: skip
        own = np.array([self._place(vector) for vector in view.rows_UC.numpy()], np.int64)
        own[view.none] = -1
        self._parts.append((
            own[view.target_B.numpy()],
            tuple(own[bag.numpy()].astype(np.int32) for bag in view.bags_BL),
            batch.labels_BK[chosen, self.trained_column].numpy().astype(np.float32),
            batch.ts_ms_B.numpy()[chosen],
            batch.ids_BF[chosen, 0].numpy(),
        ))  # fmt: skip
        self._rows += len(chosen)
        while self._rows - len(self._parts[0][0]) >= self.rows_max:
            self.dropped += len(self._parts[0][0])
            self._rows -= len(self._parts.pop(0)[0])

    def _place(self, vector: F32) -> int:
        key = vector.tobytes()
        if key not in self._places:
            self._places[key] = len(self._vectors)
            self._vectors.append(vector.copy())
        return self._places[key]

    def rows(self) -> ContentTable:
        """All of it as arrays, in order of learning."""
        target_N, bags, label_N, ts_ms_N, group_N = zip(*self._parts, strict=True)
        return ContentTable(
            rows=ContentRows(
                table_VC=torch.from_numpy(
                    np.concatenate([np.stack(self._vectors), np.zeros((1, self.block.dim))])
                ).float(),
                target_B=_places(np.concatenate(target_N), len(self._vectors)),
                missing_B=torch.from_numpy(np.concatenate(target_N) < 0),
                bags_BL=tuple(
                    _places(np.concatenate(bag), len(self._vectors))
                    for bag in zip(*bags, strict=True)
                ),
                bag_inv_len_B=(),
                encoder=next(iter(self.encoders), ""),
            ),
            label_N=np.concatenate(label_N),
            ts_ms_N=np.concatenate(ts_ms_N),
            group_N=np.concatenate(group_N),
        )


def _places(rows: NDArray[np.signedinteger], none: int) -> Tensor:
    return torch.from_numpy(np.where(rows < 0, none, rows).astype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentTable:
    """N labelled rows in order of learning. `group_N`: key of the first id field, for GAUC."""

    rows: ContentRows
    label_N: F32
    ts_ms_N: I64
    group_N: I64

    def __len__(self) -> int:
        """N."""
        return len(self.label_N)

    def view(self, chosen: I64) -> ContentView:
        """Some rows as the net takes them, padded."""
        content = self.rows
        view = content_view(
            content, rows=len(chosen) + -len(chosen) % ROW_MULTIPLE,
            dim=content.table_VC.shape[1], lengths=[bag.shape[1] for bag in content.bags_BL],
            chosen=chosen,
        )  # fmt: skip
        return normalised(view)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochScore:
    """How an extractor predicts rows that it was not trained on; None where it is undefined."""

    epoch: int
    train_loss: float
    log_loss: float | None
    auc: float | None
    gauc: float | None


def new_net(table: ContentTable, config: ExtractorConfig, seed: int) -> MakeNet:
    """An extractor for these rows, as the seed alone says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MakeNet(table.rows.table_VC.shape[1], len(table.rows.bags_BL), config)


def train(
    table: ContentTable,
    net: MakeNet,
    config: MakeTrainingConfig,
    *,
    last: int,
    on_progress: Tell = lambda _done, _total: None,
) -> Iterator[EpochScore]:
    """Train `net` on the rows before number `last`; after each epoch, how it scores the others."""
    rng = np.random.default_rng(config.seed)
    adam = Adam(net, config.lr, config.decay)
    steps = -(-last // config.batch_size)
    for epoch in range(1, config.epochs + 1):
        order, total = rng.permutation(last), 0.0
        for step in range(steps):
            chosen = np.sort(order[step * config.batch_size : (step + 1) * config.batch_size])
            logit_B = net(table.view(chosen)).logit_B[: len(chosen)]
            loss = functional.binary_cross_entropy_with_logits(
                logit_B, torch.from_numpy(table.label_N[chosen]), reduction="sum"
            )
            net.zero_grad()
            (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
            adam.step()
            total += float(loss.detach())
            on_progress((epoch - 1) * steps + step + 1, config.epochs * steps)
        yield scored(table, net, epoch, total / max(last, 1), np.arange(last, len(table)))


def logits(table: ContentTable, net: MakeNet, chosen: I64) -> F32:
    """What the net makes of some rows."""
    with torch.no_grad():
        parts = [
            net(table.view(chosen[i : i + 4_096])).logit_B[: len(chosen[i : i + 4_096])].numpy()
            for i in range(0, len(chosen), 4_096)
        ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def scored(
    table: ContentTable, net: MakeNet, epoch: int, train_loss: float, chosen: I64
) -> EpochScore:
    """Scores on some rows; all None where there are none."""
    if not len(chosen):
        return EpochScore(epoch=epoch, train_loss=train_loss, log_loss=None, auc=None, gauc=None)
    z, y = logits(table, net, chosen), table.label_N[chosen]
    return EpochScore(
        epoch=epoch,
        train_loss=train_loss,
        log_loss=_value(LossSums.of(z, y).log_loss),
        auc=_value(auc_exact(z, y)),
        gauc=_value(gauc(z, y, table.group_N[chosen]).score),
    )


def _value(score: Score) -> float | None:
    return None if isinstance(score, Undefined) else float(score)


def warm(net: MakeNet, release: MakeRelease) -> None:
    """Start from an earlier release. Raises ValueError where it is of another form."""
    load_net(net, release.arrays)


def curve_of(scores: Sequence[EpochScore]) -> list[dict[str, float | int | None]]:
    """As a list of plain maps, for a report."""
    return [
        {"epoch": s.epoch, "train_loss": s.train_loss, "log_loss": s.log_loss, "auc": s.auc,
         "gauc": s.gauc}
        for s in scores
    ]  # fmt: skip
