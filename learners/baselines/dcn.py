"""`dcn`: a plain one-pass DCN v2, as written with torch's own parts in an afternoon.

One hashed `nn.Embedding` for all fields, `torch.optim`, mean-pooled bags, standardised dense
inputs. It has no id tables, no prior and no item vectors; what those give is the difference to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra.state import Part
from learners.batch import PADDING_KEY, MiniBatch
from learners.feature_spec import FeatureSpec
from learners.learner import StepReport
from learners.moments import Moments
from learners.row_products import check_layers
from learners.step_inputs import StepInputs, checked_keys, step_inputs

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class DcnConfig:
    """Sizes, optimizer and its step size; `bits`: log2 of the embedding rows, all fields together.

    `sigma` is the spread of the embeddings at the start; the layers start as torch has them.
    `threads` is torch's number of threads, process-wide.
    """

    bits: int = 18
    dim: int = 8
    cross_layers: int = 2
    hidden: tuple[int, ...] = (64, 32)
    optimizer: Literal["adam", "adagrad"] = "adagrad"
    lr: float = 0.01
    sigma: float = 0.01
    seed: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (1 <= self.bits <= 26 and self.dim >= 1 and self.cross_layers >= 0):
            raise ValueError(
                "dcn: bits 1 to 26, dim >= 1, cross_layers >= 0, got "
                f"{self.bits}, {self.dim}, {self.cross_layers}"
            )
        if self.threads < 1:
            raise ValueError(f"threads: at least 1, got {self.threads}")
        if not (self.lr > 0 and self.sigma > 0 and self.hidden and min(self.hidden) > 0):
            raise ValueError(
                "dcn: lr and sigma > 0, hidden layers of one unit at least, got "
                f"{self.lr}, {self.sigma}, {self.hidden}"
            )


class DcnNet(nn.Module):
    """x_l+1 = x_0 * (W x_l + b) + x_l beside an MLP (Wang et al. 2021, eq. 1 and section 3.4)."""

    def __init__(self, spec: FeatureSpec, config: DcnConfig) -> None:
        super().__init__()
        self.rows = 1 << config.bits
        width = config.dim * (len(spec.ids) + len(spec.bags)) + len(spec.dense)
        self.embedding = nn.Embedding(self.rows + 1, config.dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.sigma)
        with torch.no_grad():
            self.embedding.weight[0] = 0.0
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(config.cross_layers))
        sizes = itertools.pairwise((width, *config.hidden))
        self.deep = nn.Sequential(*(m for a, b in sizes for m in (nn.Linear(a, b), nn.ReLU())))
        self.out = nn.Linear(width + config.hidden[-1], 1)

    def _places(self, keys: NDArray[np.int64]) -> Tensor:
        """Rows of the embedding; 0 for padding. Keys are well mixed and salted by field."""
        places = torch.from_numpy(keys) % self.rows + 1
        return torch.where(torch.from_numpy(keys) == PADDING_KEY, 0, places)

    def forward(self, x: StepInputs, dense_BD: Tensor) -> Tensor:
        """Logits, float32 [B]."""
        table = self.embedding.weight
        parts = [functional.embedding(self._places(x.ids_BF), table).flatten(1)]
        for bag_BL in x.bags_BL:
            places_BL = self._places(bag_BL)
            parts.append(functional.embedding_bag(places_BL, table, mode="mean", padding_idx=0))
        x0_BX = torch.cat([*parts, dense_BD], 1)
        x_BX = x0_BX
        for layer in self.cross:
            x_BX = x0_BX * layer(x_BX) + x_BX
        logits_B1: Tensor = self.out(torch.cat([x_BX, self.deep(x0_BX)], 1))
        return logits_B1.squeeze(1)


class Dcn:
    """The net, torch's optimizer over all of it, and running moments of the dense inputs."""

    def __init__(self, spec: FeatureSpec, config: DcnConfig) -> None:
        torch.set_num_threads(config.threads)
        self.spec, self.config = spec, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.net = DcnNet(spec, config)
        check_layers(self.net)
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.Adagrad
        self.optimizer: torch.optim.Optimizer = kind(self.net.parameters(), lr=config.lr)
        self.moments = Moments(len(spec.dense), CPU)
        self.step = self.rows_learned = self.skipped = 0
        self._can_learn = True

    def _logits(self, x: StepInputs) -> Tensor:
        logits_B: Tensor = self.net(x, self.moments.standardise(x.dense_BD))
        return logits_B

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]; changes nothing."""
        checked_keys(batch, self.spec)
        x = step_inputs(batch, self.spec, CPU)
        with torch.inference_mode():
            return self._logits(x)[: x.rows].clone()

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Logits from before the step, then one step on the mean loss of the labelled rows.

        Raises RuntimeError where only what scoring needs was restored.
        """
        if not self._can_learn:
            raise RuntimeError("dcn: restored from 'serve' parts only; restore a full snapshot")
        checked_keys(batch, self.spec)
        x = step_inputs(batch, self.spec, CPU)
        skipped = torch.tensor(x.rejected)
        if x.learnable == 0:
            self.skipped += x.rejected
            return StepReport(
                logits_B=self.predict_many(batch), loss=torch.zeros(()), skipped=skipped
            )
        self.optimizer.zero_grad()
        logits_B = self._logits(x)
        loss = functional.binary_cross_entropy_with_logits(
            logits_B, x.label_B, weight=x.weight_B, reduction="sum"
        ) / max(x.weight_sum, 1e-12)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        ok = all(bool(torch.isfinite(g.sum())) for g in (loss.detach(), *gradients))
        self.step += 1
        if ok:
            self.optimizer.step()
            self.moments.update(x.dense_BD, x.counted_B, torch.tensor(1.0))
            self.rows_learned += x.learnable
        else:
            skipped = skipped + x.learnable
        self.skipped += int(skipped)
        return StepReport(
            logits_B=logits_B.detach()[: x.rows].clone(), loss=loss.detach(), skipped=skipped
        )

    def export_full(self) -> Sequence[Part]:
        """All weights, the optimizer's state, moments and counts."""

        def array(x: Any) -> NDArray[Any]:
            copied: NDArray[Any] = x.detach().numpy().copy()
            return copied

        m = self.moments
        arrays = {name: array(x) for name, x in self.net.state_dict().items()}
        arrays |= {".mean": array(m.mean_D), ".squares": array(m.squares_D), ".rows": array(m.n)}
        state = self.optimizer.state_dict()["state"]
        return [
            Part(name="dcn", part_class="serve", arrays=arrays, meta={"step": self.step}),
            Part(
                name="dcn.train",
                part_class="train",
                arrays={f"{i}.{k}": array(x) for i, kept in state.items() for k, x in kept.items()},
                meta={"rows_learned": self.rows_learned, "skipped": self.skipped},
            ),
        ]

    def export_since(self, mark: int) -> Sequence[Part]:
        """The same: torch's optimizer moves every weight in every step."""
        return self.export_full()

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take all weights; raises ValueError where they are another net's."""
        arrays = dict(parts["dcn"].arrays)
        m = self.moments
        for tensor, name in ((m.mean_D, ".mean"), (m.squares_D, ".squares"), (m.n, ".rows")):
            values = torch.from_numpy(np.array(arrays.pop(name)))
            if values.shape != tensor.shape:
                raise ValueError(
                    f"part 'dcn': {len(values)} dense inputs, but the configuration has "
                    f"{len(tensor)}; use the configuration of the snapshot"
                )
            tensor.copy_(values)
        m.refresh()
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"part 'dcn': another net; use the configuration of the snapshot: {error}"
            ) from error
        self.step = int(parts["dcn"].meta["step"])
        train = parts.get("dcn.train")
        self._can_learn = train is not None
        if train is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, array in train.arrays.items():
            i, _, key = name.partition(".")
            state.setdefault(int(i), {})[key] = torch.from_numpy(array.copy())
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.rows_learned = int(train.meta["rows_learned"])
        self.skipped = int(train.meta["skipped"])

    def counts(self) -> Mapping[str, int]:
        """Steps, rows learned and rows left out for a number that is not finite."""
        return {"steps": self.step, "rows_learned": self.rows_learned, "skipped": self.skipped}
