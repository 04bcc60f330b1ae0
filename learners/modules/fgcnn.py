"""`fgcnn`: features generated from ordered id fields, into the ranker's first hidden layer.

Liu et al. 2019 (FGCNN) with the ranker as the deep classifier. The order of the fields is part of
the model: a snapshot of another order is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from infra.state import Part
from learners.feature_spec import FeatureSpec, IdField
from learners.modules.fgcnn_generator import Generator, GeneratorConfig, generated
from learners.modules.module import Addition, Module, ModuleConfig, zero_start
from learners.net_inputs import NetInputs

PART = "fgcnn.order"


@dataclass(frozen=True, kw_only=True)
class FgcnnConfig(ModuleConfig, GeneratorConfig):
    """The generator's settings; see `GeneratorConfig`."""


def ordered(spec: FeatureSpec, config: GeneratorConfig) -> list[IdField]:
    """The base's id fields in the generator's order; raises ValueError for a name it lacks."""
    base = {f.name: f for f in spec.read_by(()).ids}
    unknown = [name for name in config.fields if name not in base]
    if unknown:
        raise ValueError(
            f"fgcnn: fields: no id feature is named {unknown}; there are {sorted(base)}"
        )
    return [base[name] for name in config.fields or base]


def own_fields(spec: FeatureSpec, config: GeneratorConfig) -> tuple[IdField, ...]:
    """Rows of the generator's own, E': one field beside each field of the order, of other keys."""
    if config.source != "own":
        return ()
    return tuple(
        replace(f, name=f"fgcnn.{f.name}", dim=config.dim, reader="fgcnn", of=f.name)
        for f in ordered(spec, config)
    )


class FieldRows(nn.Module):
    """What the generator reads of a batch: float32 [B, N, K], spare slots zero; no parameters."""

    def __init__(self, spec: FeatureSpec, config: GeneratorConfig) -> None:
        super().__init__()
        self.names = [f.name for f in ordered(spec, config)]
        self.spare, self.stops = config.spare, config.source == "shared"
        prefix = "" if self.stops else "fgcnn."
        places = {
            f.name: (t, i) for t, table in enumerate(spec.tables()) for i, f in enumerate(table.ids)
        }
        found = [places[prefix + name] for name in self.names]
        dims = {spec.tables()[t].dim for t, _ in found}
        if len(dims) > 1:
            raise ValueError(
                f"fgcnn: source = 'shared' needs fields of one dim, got {sorted(dims)}; "
                "give the fields one dim, or use source = 'own'"
            )
        self.width, self.table = dims.pop(), found[0][0]
        self.columns = [i for _, i in found]
        self.slots = len(found) + config.spare

    def forward(self, x: NetInputs) -> Tensor:
        """The rows in order."""
        rows_BNK = x.embedded_BFD[self.table]
        if self.columns != list(range(rows_BNK.shape[1])):
            rows_BNK = rows_BNK[:, self.columns]
        if self.stops:
            rows_BNK = rows_BNK.detach()
        if self.spare:
            none = rows_BNK.new_zeros(len(rows_BNK), self.spare, self.width)
            rows_BNK = torch.cat([rows_BNK, none], 1)
        return rows_BNK

    def part(self) -> Part:
        """The order of the fields, for snapshots."""
        return Part(name=PART, part_class="serve", meta={"fields": self.names, "slots": self.slots})

    def check(self, parts: Mapping[str, Part]) -> None:
        """Raise ValueError where a snapshot's fields are not the first of these, in order."""
        if PART not in parts:
            return
        was = parts[PART].meta
        known = list(was["fields"])
        if self.names[: len(known)] != known or self.slots != int(was["slots"]):
            raise ValueError(
                f"part '{PART}': fields {known} in {was['slots']} slots, but the configuration "
                f"has {self.names} in {self.slots}; another order is another model: fields may "
                "only be added at the end, into spare slots"
            )


class Fgcnn(Module):
    """Z R, with R the generated features of the row and Z = 0 at the start."""

    reads_vectors = False

    def __init__(self, spec: FeatureSpec, config: FgcnnConfig, hidden: int) -> None:
        super().__init__()
        self.rows = FieldRows(spec, config)
        self.generator = Generator(self.rows.slots, self.rows.width, config)
        self.head = zero_start(generated(self.rows.slots, config) * self.rows.width, hidden)

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The features' part of the first hidden layer."""
        return Addition(hidden_BH=self.head(self.generator(self.rows(x)).flatten(1)))

    def parts(self, mark: int | None) -> Sequence[Part]:
        """The order of the fields."""
        return (self.rows.part(),)

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as Module does
        """Nothing to take; raises ValueError for another order."""
        self.rows.check(parts)
