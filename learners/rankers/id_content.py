"""`id_content`: ids, pooled histories, content vectors and counters through DCN v2 and an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.feature_spec import Bag, ContentBlock, FeatureSpec, IdField
from learners.incoming import IncomingNet, blended, faded
from learners.modules.catalog import ModulesConfig, build_modules, module_spec
from learners.modules.module import total
from learners.net_inputs import NetInputs, RankerNet
from learners.net_learner import NetLearner, StepConfig
from learners.rankers.cross_mlp import CrossMlp
from learners.step_inputs import repeat_columns

WIDTH_MULTIPLE = 16
"""The net's input is padded with zeros to a multiple of this: odd widths slow the products down."""


@dataclass(frozen=True, kw_only=True)
class IdContentConfig(StepConfig, ModulesConfig):
    """Sizes of the net, and its modules; low capacity is enough for one pass over a stream."""

    cross_layers: int = 2
    cross_rank: int = 32
    hidden: tuple[int, ...] = (64, 32)
    content_projection: int = 16
    """Columns that each content vector is projected to; 0: only modules read content."""
    content_scale: float = 1.0
    """Size of the numbers that are projected. Adam moves every weight alike, so that a projection
    of 100 numbers of size 1 runs ahead of the rest of the net: .1 to .3 in a short stream."""
    repeats: bool = True
    """How often the item itself stands in each history is an input."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.cross_layers < 0 or self.cross_rank < 1 or self.content_projection < 0:
            raise ValueError(
                "id_content: cross_layers and content_projection >= 0, cross_rank >= 1, got "
                f"{self.cross_layers}, {self.cross_rank}, {self.content_projection}"
            )
        if not self.content_scale > 0:
            raise ValueError(f"id_content: content_scale must be above 0, got {self.content_scale}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(
                f"id_content: hidden: one layer of one unit at least, got {self.hidden}"
            )


class IdContentNet(RankerNet):
    """Residual logits from NetInputs; 0 for every input before the first update.

    The one place where methods meet: each module adds to the first hidden layer or to the logit.
    """

    takes_incoming = True

    def __init__(self, spec: FeatureSpec, config: IdContentConfig) -> None:
        super().__init__()
        p = config.content_projection
        content = bool(spec.content_dim and p)
        histories = sum(bag.is_history for bag in spec.bags) if content else 0
        base = spec.read_by(())
        width = sum(f.dim for f in base.ids) + len(spec.dense)
        self.repeats = config.repeats
        self.scale = config.content_scale
        width += len(repeat_columns(spec)) * config.repeats
        width += sum(spec.fields[spec.field_of(bag.field)].dim for bag in base.bags)
        self.columns = [_own(table.ids) for table in spec.tables()]
        self.bags = [_own(table.bags) for table in spec.tables()]
        self.block = spec.block() if content else None
        if self.block is not None:
            # No bias and LayerNorm without affine: a missing vector adds exactly 0, and no
            # gradient depends on the number of threads.
            dim = self.block.dim
            self.target = nn.Linear(dim, p, bias=False)
            self.history = nn.ModuleList(nn.Linear(dim, p, bias=False) for _ in range(histories))
            width += p * (1 + histories) + 1 + histories
        self.padding = -width % WIDTH_MULTIPLE
        self.cross_mlp = CrossMlp(
            width + self.padding,
            layers=config.cross_layers,
            rank=config.cross_rank,
            hidden=config.hidden,
        )
        self.modules_on = build_modules(spec, config, hidden=config.hidden, seed=config.seed)
        self.methods = nn.ModuleDict(dict(self.modules_on))
        self.incoming: IncomingNet | None = None
        if spec.incoming_blocks:
            self.incoming_on = [
                (name, module)
                for name, module in build_modules(
                    spec.of_incoming, config, hidden=config.hidden, seed=config.seed
                )
                if module.reads_vectors
            ]
            self.incoming = IncomingNet(spec, p * content, histories, self.incoming_on)

    def forward(self, x: NetInputs) -> Tensor:
        """Residual logits, float32 [B]."""
        return self._with_modules(x, learning=False)[0]

    def learn(self, x: NetInputs) -> tuple[Tensor, Tensor | None]:
        """The same, and the sum of the modules' losses."""
        return self._with_modules(x, learning=True)

    def _with_modules(self, x: NetInputs, *, learning: bool) -> tuple[Tensor, Tensor | None]:
        additions = [module(x, learning=learning) for module in self.methods.values()]
        if learning:
            self.own_losses = {
                name: a.loss.detach() / max(x.step.learnable, 1)
                for (name, _), a in zip(self.modules_on, additions, strict=True)
                if a.loss is not None
            }
        if self.incoming is not None and x.incoming is not None:
            additions = [
                faded(addition, x.present_share) if module.reads_vectors else addition
                for addition, (_, module) in zip(additions, self.modules_on, strict=True)
            ]
            for module in self.incoming.methods.values():
                additions.append(module(x.incoming, learning=learning))
        hidden = [a.hidden_BH for a in additions if a.hidden_BH is not None]
        deeper = [
            total(ones) for ones in zip(*(a.deeper for a in additions if a.deeper), strict=True)
        ]
        logits_B = self.cross_mlp(self._joined(x), total(hidden), deeper)
        for addition in additions:
            if addition.logit_B is not None:
                logits_B = logits_B + addition.logit_B
        losses = [a.loss for a in additions if a.loss is not None]
        return logits_B, total(losses)

    def _joined(self, x: NetInputs) -> Tensor:
        parts = [
            (e if own is None else e[:, own]).flatten(1)
            for e, own in zip(x.embedded_BFD, self.columns, strict=True)
        ]
        for pooled, own in zip(x.pooled_BD, self.bags, strict=True):
            parts += pooled if own is None else [pooled[i] for i in own]
        parts += [x.dense_BD, x.repeats_BH] if self.repeats else [x.dense_BD]
        parts += self._content(x)
        if self.padding:
            parts.append(x.dense_BD.new_zeros(len(x.dense_BD), self.padding))
        return torch.cat(parts, 1)

    def _content(self, x: NetInputs) -> list[Tensor]:
        """Projections of the target's and the histories' vectors, their cosines, presence.

        Of the block "" alone: what is kept beside it is for modules.
        """
        if self.block is None:
            return []
        present = _columns(x, self.block, self.target, self.history, self.scale)
        if self.incoming is None or x.incoming is None:
            return present
        new = self.incoming
        incoming = _columns(x.incoming, new.block, new.target, new.history, self.scale)
        return blended(present, incoming, x.present_share)


class IdContent(NetLearner):
    """The ranker `id_content`; weights start as a function of the configured seed alone."""

    def __init__(self, spec: FeatureSpec, config: IdContentConfig) -> None:
        own = module_spec(spec, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = IdContentNet(own, config)
        super().__init__(spec, config, net, own)


def _columns(
    x: NetInputs, block: ContentBlock, target: nn.Linear, history: nn.ModuleList, scale: float
) -> list[Tensor]:
    """By turns: the target's projection and presence, each history's projection and cosine."""
    columns, shape = block.columns, (block.dim,)
    own_BC = x.target_BC[:, columns]
    # An item may have other blocks than this one.
    alone = own_BC.shape == x.target_BC.shape
    present_B1 = x.present_B1 if alone else own_BC.any(1, keepdim=True).float()
    target_BC = functional.layer_norm(own_BC, shape)
    # Projections are linear: scaled behind them, the same numbers for a fraction of the work.
    parts = [target(target_BC) * scale, present_B1]
    for project, pooled_BC in zip(history, x.pooled_BC, strict=True):
        history_BC = functional.layer_norm(pooled_BC[:, columns], shape)
        parts.append(project(history_BC) * scale)
        parts.append((target_BC * history_BC).mean(1, keepdim=True))
    return parts


def _own(entries: Sequence[IdField | Bag]) -> list[int] | None:
    """Places of what the base reads; None where that is all."""
    own = [i for i, entry in enumerate(entries) if not entry.reader]
    return None if len(own) == len(entries) else own
