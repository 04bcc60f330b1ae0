"""`fgcnn`: generated features beside the fields' rows, inner products of all pairs, an MLP.

Liu et al. 2019 with IPNN (Qu et al. 2016) as the deep classifier; without the generator it is IPNN.
Counters, which the paper has not, go straight to the MLP.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.feature_spec import FeatureSpec
from learners.modules.fgcnn import Fgcnn, FieldRows, own_fields
from learners.modules.fgcnn_generator import Generator, GeneratorConfig, generated
from learners.modules.module import Addition, Module
from learners.net_inputs import NetInputs, RankerNet
from learners.net_learner import NetLearner, StepConfig
from learners.step_inputs import repeat_columns

WIDTH_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class FgcnnRankerConfig(StepConfig):
    """Sizes of the classifier; `generator` shapes what is before it.

    `generate` False: IPNN over the fields alone. `dim`: width of a field in the classifier; fields
    of another width come through a linear map. `dense`: counters and repeats are inputs too.
    """

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    generate: bool = True
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dense: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.dim < 1 or not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"fgcnn: dim and hidden: at least 1, got {self.dim} and {self.hidden}")


class Order(Module):
    """Carries the order of the generator's fields to snapshots; adds nothing."""

    def __init__(self, rows: FieldRows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """Nothing."""
        return Addition()

    parts = Fgcnn.parts
    apply = Fgcnn.apply


class FgcnnNet(RankerNet):
    """MLP([flatten(A); <A_a, A_b> for a < b; counters]) with A = [E; R]; 0 at the start.

    The fields E are the id columns in the order of the spec's tables, then bags, then the item's
    vector; pairs are in the order (0, 1), (0, 2), … (N - 2, N - 1).
    """

    def __init__(self, spec: FeatureSpec, config: FgcnnRankerConfig) -> None:
        super().__init__()
        k = config.dim
        self.config = config
        self.block = spec.block() if spec.content_dim else None
        tables = spec.tables()
        self.ids = [[i for i, f in enumerate(t.ids) if not f.reader] for t in tables]
        self.bags = [[i for i, b in enumerate(t.bags) if not b.reader] for t in tables]
        self.maps = nn.ModuleDict(
            {
                str(t): nn.Linear(table.dim, k, bias=False)
                for t, table in enumerate(tables)
                if table.dim != k and (self.ids[t] or self.bags[t])
            }
        )
        if self.block:
            self.content = nn.Linear(self.block.dim, k, bias=False)
        features = sum(map(len, self.ids)) + sum(map(len, self.bags)) + bool(self.block)
        if config.generate:
            self.rows = FieldRows(spec, config.generator)
            self.generator = Generator(self.rows.slots, self.rows.width, config.generator)
            features += generated(self.rows.slots, config.generator)
            if self.rows.width != k:
                self.widen = nn.Linear(self.rows.width, k, bias=False)
            self.modules_on = [("fgcnn", Order(self.rows))]
        places = [a * features + b for a, b in itertools.combinations(range(features), 2)]
        self.register_buffer("pairs", torch.tensor(places, dtype=torch.int64), persistent=False)
        width = features * k + len(places)
        if config.dense:
            width += len(spec.dense) + len(repeat_columns(spec))
        self.padding = -width % WIDTH_MULTIPLE
        sizes = (width + self.padding, *config.hidden)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(config.hidden[-1], 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def augmented(self, x: NetInputs) -> Tensor:
        """A [B, N, K]: the fields' rows, then the generated features."""
        fields: list[Tensor] = []
        for t, rows_BFD in enumerate(x.embedded_BFD):
            ids = self.ids[t]
            if not (ids or self.bags[t]):
                continue
            rows = [rows_BFD if len(ids) == rows_BFD.shape[1] else rows_BFD[:, ids]]
            rows += [x.pooled_BD[t][i].unsqueeze(1) for i in self.bags[t]]
            joined = torch.cat(rows, 1)
            fields.append(self.maps[str(t)](joined) if str(t) in self.maps else joined)
        if self.block:
            vector = functional.layer_norm(x.target_BC[:, self.block.columns], (self.block.dim,))
            fields.append(self.content(vector).unsqueeze(1))
        if self.config.generate:
            new_BGK = self.generator(self.rows(x))
            fields.append(self.widen(new_BGK) if hasattr(self, "widen") else new_BGK)
        return torch.cat(fields, 1)

    def products(self, fields_BNK: Tensor) -> Tensor:
        """Inner products of all pairs [B, N (N - 1) / 2]."""
        squares = torch.bmm(fields_BNK, fields_BNK.transpose(1, 2)).flatten(1)
        return squares.index_select(1, self.get_buffer("pairs"))

    def forward(self, x: NetInputs) -> Tensor:
        """Residual logits, float32 [B]."""
        fields_BNK = self.augmented(x)
        parts = [fields_BNK.flatten(1), self.products(fields_BNK)]
        if self.config.dense:
            parts += [x.dense_BD, x.repeats_BH]
        if self.padding:
            parts.append(fields_BNK.new_zeros(len(fields_BNK), self.padding))
        h = torch.cat(parts, 1)
        for layer in self.mlp:
            h = torch.relu(layer(h))
        logits_B: Tensor = self.out(h).squeeze(1)
        return logits_B


class FgcnnRanker(NetLearner):
    """The learner `fgcnn`; weights start as a function of the configured seed alone."""

    def __init__(self, spec: FeatureSpec, config: FgcnnRankerConfig) -> None:
        own = spec.read_by(())
        if config.generate:
            own = replace(own, ids=own.ids + own_fields(own, config.generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = FgcnnNet(own, config)
        super().__init__(spec, config, net, own)
