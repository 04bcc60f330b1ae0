"""The training step that every ranker shares: id tables, one net, Adam, moments, snapshot parts.

A ranker is a net over `NetInputs`; everything that makes online learning safe and repeatable is
here. One forward pass gives the logits from before the update and the gradients for it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from infra.state import Part
from learners.batch import MiniBatch
from learners.dense_optim import AdamConfig, FlatAdam
from learners.embedding_table import EmbeddingTable, Lookup, TableConfig
from learners.feature_spec import FeatureSpec
from learners.growth import Change, grown
from learners.incoming import PREFIX, Fading, both_inputs
from learners.learner import StepReport
from learners.moments import Moments
from learners.net_inputs import NetInputs, RankerNet
from learners.row_products import check_layers
from learners.step_inputs import (
    StepInputs,
    checked_keys,
    narrowed,
    repeat_columns,
    step_inputs,
)

BASE_RATE_PRIOR = 10.0
"""Weight of the click rate .5 in the running base rate, in impressions."""


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What all rankers have in common. `threads` is torch's number of threads, process-wide."""

    embedding: TableConfig = field(default_factory=TableConfig)
    adam: AdamConfig = field(default_factory=AdamConfig)
    seed: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device: expected auto, cpu or cuda, got '{self.device}'")
        if self.threads < 1:
            raise ValueError(f"threads: at least 1, got {self.threads}")


def pick_device(name: str) -> torch.device:
    """The device of a configuration; raises ValueError where `cuda` is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is configured, but torch sees no GPU; use 'auto' or 'cpu'")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def _loss(logits_B: Tensor, x: StepInputs) -> Tensor:
    """Weighted sum of the rows' log losses."""
    return functional.binary_cross_entropy_with_logits(
        logits_B, x.label_B, weight=x.weight_B, reduction="sum"
    )


class NetLearner:
    """A `Learner` around a net: `net(NetInputs) -> residual logits [B]`.

    The logit is a prior plus the net's residual. The prior is the spec's first dense input of group
    `prior` (a logit), or, where there is none, the logit of the running rate of the trained label.
    """

    def __init__(
        self, spec: FeatureSpec, config: StepConfig, net: RankerNet, own: FeatureSpec | None = None
    ) -> None:
        """`own`: what of `spec` the net reads, where that is not all of it.

        Raises ValueError where a layer is so narrow that rows of a batch would not be independent.
        """
        check_layers(net)
        torch.set_num_threads(config.threads)
        self._whole, self.config = spec, config
        self.spec = spec = own or spec
        self.device = pick_device(config.device)
        self.net = net.to(self.device)
        # Predictions come from a second copy of the net, whose weights are the averages.
        self._scorer = copy.deepcopy(self.net) if config.adam.averaged_rows else self.net
        self.adam = FlatAdam(self.net.parameters(), config.adam)
        if self._scorer is not self.net:
            self._scorer.requires_grad_(requires_grad=False)
            self.adam.show_average(self._scorer.parameters())
        self.tables = [
            EmbeddingTable(spec, dim, config.embedding, seed=config.seed, device=self.device)
            for dim in sorted({f.dim for f in spec.fields})
        ]
        self.moments = Moments(len(spec.dense), self.device)
        self.base_2 = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._prior = next((i for i, d in enumerate(spec.dense) if d.group == "prior"), None)
        self.step = 0
        self.clock_ms = 0
        self.rows_learned = 0
        self._skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self._can_learn = True
        self.reports_logits = True
        """False saves a forward pass where nobody reads a step's logits, because predictions are
        made at the impression: a report then tells those of the weights that are not averaged."""

        self.grows = False
        """Whether a snapshot with other modules is taken: new ones begin, gone ones are dropped."""
        self.change = Change()
        """What was begun and dropped when state was taken."""
        self.fading = Fading()
        self.beside_samples = 0
        """Samples learned since another encoder version comes in."""

    def predict_many(self, batch: MiniBatch) -> Tensor:
        """Logits, float32 [B]; changes nothing."""
        batch = narrowed(batch, self._whole, self.spec)
        checked_keys(batch, self.spec)
        with torch.inference_mode():
            x = step_inputs(batch, self.spec, self.device)
            lookups = [table.predict(x.ids_BF, x.bags_BL) for table in self.tables]
            return self._logits(self._scorer, self._inputs(x, lookups), x)[: x.rows]

    def learn_many(self, batch: MiniBatch) -> StepReport:
        """Logits from before the update, then one update by the trained label.

        Raises RuntimeError where only what scoring needs was restored.
        """
        if not self._can_learn:
            raise RuntimeError(
                "this ranker was restored from 'serve' parts only and cannot learn; "
                "restore a full snapshot"
            )
        batch = narrowed(batch, self._whole, self.spec)
        checked_keys(batch, self.spec)
        x = step_inputs(batch, self.spec, self.device)
        if x.learnable == 0:
            return self._nothing_learned(batch, x)
        self.step += 1
        self.clock_ms = max(self.clock_ms, x.clock_ms)
        lookups = [
            table.learn(x.ids_BF, x.bags_BL, x.flag_B, clock_ms=self.clock_ms, step=self.step)
            for table in self.tables
        ]
        self.adam.zero_grad()
        inputs = self._inputs(x, lookups)
        residual_B, own_loss = self.net.learn(inputs)
        logits_B = self._with_prior(residual_B, x)
        loss = _loss(logits_B, x)
        whole = loss if own_loss is None else loss + own_loss
        (whole / x.nominal_size).backward()  # type: ignore[no-untyped-call]
        logits_B, told = logits_B.detach(), loss.detach()
        self._judge(inputs, logits_B, x)
        if self._scorer is not self.net and self.reports_logits:
            with torch.no_grad():
                logits_B = self._logits(self._scorer, inputs, x)
                told = _loss(logits_B, x)
        skipped, ok = self._update(x, lookups, whole.detach())
        for _, module in self.net.modules_on:
            module.learned(inputs, ok=bool(ok))
            if ok:
                module.rows_given(self.tables, lookups)
        if self.spec.incoming_blocks:
            self._learned_beside(inputs, ok=bool(ok), rows=x.learnable)
        mean = told / max(x.weight_sum, 1e-12)
        return StepReport(logits_B=logits_B[: x.rows], loss=mean, skipped=skipped)

    def _inputs(self, x: StepInputs, lookups: Sequence[Lookup]) -> NetInputs:
        inputs = NetInputs(
            embedded_BFD=tuple(lookup.embedded_BFD for lookup in lookups),
            pooled_BD=tuple(lookup.pooled_BD for lookup in lookups),
            index_BL=tuple(lookup.index_BL for lookup in lookups),
            dense_BD=self.moments.standardise(x.dense_BD),
            raw_BD=x.dense_BD,
            target_BC=x.target_BC,
            pooled_BC=x.pooled_BC,
            present_B1=x.present_B1,
            repeats_BH=x.repeats_BH,
            step=x,
            learn_step=self.step,
        )
        return both_inputs(inputs, self.present_share) if self.spec.incoming_blocks else inputs

    @property
    def present_share(self) -> float:
        """What the present encoder version counts: below 1 while it fades before a new one."""
        if not self.spec.incoming_blocks:
            return 1.0
        return self.fading.present_share(self.beside_samples)

    def _learned_beside(self, inputs: NetInputs, *, ok: bool, rows: int) -> None:
        assert inputs.incoming is not None, "a batch has no vectors of the incoming version"
        for _, module in self.net.incoming_on:
            module.learned(inputs.incoming, ok=ok)
        self.beside_samples += rows

    @torch.no_grad()
    def _judge(self, inputs: NetInputs, logits_B: Tensor, x: StepInputs) -> None:
        """Let modules that are in doubt compare this step's logits with their other form's."""
        for _, module in self.net.modules_on:
            if module.has_rival(inputs):
                with module.rival():
                    rival_B = self._logits(self.net, inputs, x)
                module.judged(inputs, logits_B, rival_B)

    def _logits(self, net: nn.Module, inputs: NetInputs, x: StepInputs) -> Tensor:
        return self._with_prior(net(inputs), x)

    def _with_prior(self, residual: Tensor, x: StepInputs) -> Tensor:
        if self._prior is not None:
            return residual + x.dense_BD[:, self._prior]
        positives, rows = self.base_2[0] + BASE_RATE_PRIOR / 2, self.base_2[1] + BASE_RATE_PRIOR
        return residual + torch.log(positives / (rows - positives)).float()

    @torch.no_grad()
    def _update(
        self, x: StepInputs, lookups: Sequence[Lookup], loss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows skipped, and whether the gradients were finite and applied, known on the device."""
        gradients = [lookup.gradient() for lookup in lookups]
        total = loss + self.adam.g.sum()
        for gradient in gradients:
            total = total + gradient.sum()
        ok = torch.isfinite(total)
        for table, lookup, gradient in zip(self.tables, lookups, gradients, strict=True):
            table.update(lookup, gradient, ok)
            table.expire(clock_ms=self.clock_ms, step=self.step)
        self.adam.step(ok, x.learnable)
        self.moments.update(x.dense_BD, x.counted_B, ok)
        weight_B = x.weight_B.double() * x.counted_B * ok
        self.base_2 += torch.stack([(weight_B * x.label_B).sum(), weight_B.sum()])
        skipped = x.rejected + torch.where(ok, 0, x.learnable)
        self._skipped += skipped
        self.rows_learned += x.learnable
        return skipped, ok

    def _nothing_learned(self, batch: MiniBatch, x: StepInputs) -> StepReport:
        skipped = torch.tensor(x.rejected, dtype=torch.int64, device=self.device)
        self._skipped += skipped
        zero = torch.zeros((), device=self.device)
        return StepReport(logits_B=self.predict_many(batch).clone(), loss=zero, skipped=skipped)

    def export_full(self) -> Sequence[Part]:
        """Weights, tables, optimizer state, moments, counts: a copy of all there is."""
        return self._parts(None)

    def export_since(self, mark: int) -> Sequence[Part]:
        """Rows touched after learn step `mark` as deltas; the dense weights whole."""
        return self._parts(mark)

    def _parts(self, mark: int | None) -> list[Part]:
        def arrays(**tensors: Tensor) -> dict[str, np.ndarray]:
            return {name: t.detach().cpu().numpy().copy() for name, t in tensors.items()}

        m, a = self.moments, self.adam
        parts = [part for table in self.tables for part in table.parts(mark)]
        parts.append(
            Part(
                name="dense",
                part_class="serve",
                arrays=arrays(
                    weights=a.average,
                    mean=m.mean_D,
                    squares=m.squares_D,
                    rows=m.n,
                    base=self.base_2,
                ),
                meta={
                    "layout": self._layout(),
                    "step": self.step,
                    "beside_samples": self.beside_samples,
                    "present_share": self.present_share,
                },
            )
        )
        parts.append(
            Part(
                name="dense.train",
                part_class="train",
                arrays=arrays(live=a.w, m=a.m, v=a.v, t=a.t, skipped=self._skipped),
                meta={
                    "clock_ms": self.clock_ms,
                    "rows_learned": self.rows_learned,
                    "born": [list(run) for run in a.born],
                },
            )
        )
        for _, module in self.net.modules_on:
            parts.extend(module.parts(mark))
        for _, module in self.net.incoming_on:
            parts += [replace(p, name=f"{PREFIX}{p.name}") for p in module.parts(mark)]
        return parts

    def _layout(self) -> list[str]:
        shapes = [f"{name}{list(p.shape)}" for name, p in self.net.named_parameters()]
        repeats = [f"repeats {self.spec.bags[bag].name}" for bag, _ in repeat_columns(self.spec)]
        return [*shapes, *(f"dense {d.name}" for d in self.spec.dense), *repeats]

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take full or delta parts; without `train` parts this ranker can only score."""
        if self.grows or self.spec.incoming_blocks:
            fresh = self.adam.w.detach().cpu().numpy()
            parts, self.change = grown(
                parts, self._layout(), fresh, self.tables, any_module=self.grows
            )
        dense = parts["dense"]
        if list(dense.meta["layout"]) != self._layout():
            differs = set(dense.meta["layout"]) ^ set(self._layout())
            raise ValueError(
                f"part 'dense': another net or other inputs ({', '.join(sorted(differs)[:8])}); "
                "use the configuration of the snapshot, or ranker.grow where only modules differ"
            )
        tables = [table.apply(parts) for table in self.tables]
        m, a = self.moments, self.adam
        with torch.no_grad():
            for tensor, name in (
                (a.average, "weights"), (m.mean_D, "mean"), (m.squares_D, "squares"),
                (m.n, "rows"), (self.base_2, "base"),
            ):  # fmt: skip
                tensor.copy_(torch.from_numpy(dense.array(name).copy()))
        m.refresh()
        for _, module in self.net.modules_on:
            module.apply(parts)
        of_incoming = {"dense": dense}
        of_incoming |= {n.removeprefix(PREFIX): p for n, p in parts.items() if n.startswith(PREFIX)}
        for _, module in self.net.incoming_on:
            module.apply(of_incoming)
        self.step = int(dense.meta["step"])
        self.beside_samples = int(dense.meta.get("beside_samples", 0))
        train = parts.get("dense.train")
        self._can_learn = train is not None and all(tables)
        if train is None:
            return
        for tensor, name in (
            (a.w, "live"),
            (a.m, "m"),
            (a.v, "v"),
            (a.t, "t"),
            (self._skipped, "skipped"),
        ):
            tensor.copy_(torch.from_numpy(train.array(name).copy()))
        self.clock_ms = int(train.meta["clock_ms"])
        self.rows_learned = int(train.meta["rows_learned"])
        a.born = [(int(start), int(before)) for start, before in train.meta.get("born", [(0, 0)])]

    def counts(self) -> Mapping[str, int]:
        """Steps, rows and table use; reads the device, so not for every step."""
        skipped = int(self._skipped)
        counts = {"steps": self.step, "rows_learned": self.rows_learned, "skipped": skipped}
        if self.spec.incoming_blocks:
            counts["beside_samples"] = self.beside_samples
        for table in self.tables:
            counts |= {f"ids{table.dim}_{k}": v for k, v in table.ids.counts().items()}
        for name, module in self.net.modules_on:
            counts |= {f"{name}_{k}": v for k, v in module.counts().items()}
        return counts

    def method_losses(self) -> Mapping[str, float]:
        """Own loss a row of each module that has one, in the last learn step of this process."""
        return {name: float(loss) for name, loss in self.net.own_losses.items()}
