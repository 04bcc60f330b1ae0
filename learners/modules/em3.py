"""`em3`: a Fusion-Q-Former over an item's content, trained by the click loss, joins the ranker.

End-to-end training of Multimodal Model and ranking Model (arXiv 2404.06078). The target's vector c
is made in the graph; those of the history are read from a memory and get a low-rank correction.
Trains no encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra.state import Part
from learners.content_view import (
    ContentView,
    PerStep,
    content_view,
    masked_softmax,
    picked_dots,
    weighted_sum,
)
from learners.embedding_table import EmbeddingTable, Lookup
from learners.feature_spec import FeatureSpec
from learners.modules.em3_cold import ContentToId
from learners.modules.em3_contrast import (
    ContentIdContrast,
    IdGradient,
    draw_negatives,
    id_scale,
    scaled_gradient,
)
from learners.modules.em3_former import FormerConfig, FqFormer
from learners.modules.em3_memory import ContentMemory
from learners.modules.module import Addition, Module, ModuleConfig, zero_start
from learners.net_inputs import NetInputs
from learners.row_products import check_product
from learners.step_inputs import StepInputs

I64 = NDArray[np.int64]
SEED = 0x454D33
MEMORY_PART, COLD_PART = "em3.memory", "em3.cold"


@dataclass(frozen=True, kw_only=True)
class Em3Config(ModuleConfig):
    """Sizes of the Q-Former, of the low-rank correction and of the memory; weight of the contrast.

    `dim`, `queries`, `layers`, `heads`: see FormerConfig. `rank`: of the correction; 0: no history
    is read. `contrast`: weight of CIC, 0 without; `temperature` its tau; `id_gradient` and
    `mature_rows`: see `id_scale`. `train_former` False leaves the Q-Former as it began, a control.
    `memory_rows`, `memory_age_ms`: bounds of the memory; after each step up to `refresh_rows`
    items of histories that it lacks or that are half as old get a new vector, and all targets do.
    """

    dim: int = 64
    queries: int = 1
    layers: int = 1
    heads: int = 4
    rank: int = 8
    contrast: float = 1e-3
    temperature: float = 0.1
    id_gradient: IdGradient = "cold"
    mature_rows: int = 50
    train_former: bool = True
    memory_rows: int = 100_000
    memory_age_ms: int = 259_200_000
    refresh_rows: int = 512
    cold_rows: bool = False
    """An item's id row begins with what a regression makes of its vector (see `ContentToId`)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        self.former()
        if min(self.rank, self.contrast, self.memory_age_ms, self.refresh_rows) < 0:
            raise ValueError(
                "em3: rank, contrast, memory_age_ms and refresh_rows must not be negative, got "
                f"{self.rank}, {self.contrast}, {self.memory_age_ms}, {self.refresh_rows}"
            )
        if self.temperature <= 0 or self.mature_rows < 1 or self.memory_rows < 1:
            raise ValueError(
                "em3: temperature above 0, mature_rows and memory_rows at least 1, got "
                f"{self.temperature}, {self.mature_rows}, {self.memory_rows}"
            )
        if self.id_gradient not in ("plain", "mature", "cold"):
            raise ValueError(
                f"em3: id_gradient: expected plain, mature or cold, got '{self.id_gradient}'"
            )

    def former(self) -> FormerConfig:
        """Sizes of the Q-Former."""
        return FormerConfig(
            dim=self.dim, queries=self.queries, layers=self.layers, heads=self.heads
        )


class Place(NamedTuple):
    """Where a field of ids is: its column of the batch, its table, and its place there.

    A table has its id columns first, so that the place is the number of the shared row as well.
    """

    column: int
    table: int
    place: int
    dim: int


class Correction(nn.Module):
    """x~ = x + U V^T x, rank r, U = 0 at the start (LoRA, arXiv 2106.09685); the form is ours.

    By linearity it is applied to the query and to the sum, and never to the single entries.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = zero_start(rank, dim)
        check_product("corrections.up", dim, rank, as_stored=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """x~."""
        out: Tensor = x_BD + self.up(self.down(x_BD))
        return out

    def transposed(self, q_BD: Tensor) -> Tensor:
        """The query whose product with x is that of q with x~: q + V U^T q."""
        return q_BD + (q_BD @ self.up.weight) @ self.down.weight


class Em3(Module):
    """c, u and c * u, each brought to one scale, to the first hidden layer, c * u to the logit.

    u = sum_i a_i x~_i with a = softmax((W c) . x~_i / sqrt(D)) over the entries of a history whose
    vectors are in the memory. All that is added goes through weights that start at 0.
    """

    def __init__(self, spec: FeatureSpec, config: Em3Config, hidden: int) -> None:
        super().__init__()
        self.config = config
        kept = [block for block in spec.blocks if block.name] or [spec.block()]
        self.blocks = tuple(kept)
        histories = [i for i, bag in enumerate(spec.bags) if bag.is_history]
        self.histories = histories if config.rank else []
        self.lengths = tuple(spec.bags[i].length for i in histories)
        self.bags = tuple(spec.bags[i].name for i in histories)
        self.item = _item_of(spec, [spec.bags[i].field for i in histories])
        self.former = FqFormer([block.dim for block in self.blocks], config.former())
        self.memory = ContentMemory(config.memory_rows, config.dim, config.memory_age_ms)
        n = len(self.histories)
        self.queries = nn.ModuleList(
            nn.Linear(config.dim, config.dim, bias=False) for _ in range(n)
        )
        self.corrections = nn.ModuleList(Correction(config.dim, config.rank) for _ in range(n))
        self.to_hidden = zero_start(config.dim * (1 + 2 * n), hidden)
        self.to_logit = zero_start(config.dim * n, 1) if n else None
        self.view = PerStep[ContentView]()
        self.read = PerStep[tuple[I64, ...]]()
        self.contrast: ContentIdContrast | None = None
        self.cold = ContentToId(config.dim, self.item.dim) if config.cold_rows else None
        if config.contrast:
            self.contrast = ContentIdContrast(
                config.dim, self.item.dim, temperature=config.temperature
            )

    def forward(self, x: NetInputs, *, learning: bool) -> Addition:
        """The addition, and when learning the contrast's loss."""
        view = self._view(x.step).to(x.target_BC.device)
        content_BD = self._made(functional.embedding(view.target_B, view.rows_UC))
        if not self.config.train_former:
            content_BD = content_BD.detach()
        shape = (self.config.dim,)
        parts, products = [functional.layer_norm(content_BD, shape)], []
        rows = self._rows(x.step)
        for i, rows_BL in enumerate(rows):
            interest_BD = self._interest(i, rows_BL, content_BD)
            parts.append(functional.layer_norm(interest_BD, shape))
            products.append(parts[0] * parts[-1])
        hidden_BH = self.to_hidden(torch.cat([*parts, *products], 1))
        logit_B = None
        if self.to_logit is not None:
            logit_B = self.to_logit(torch.cat(products, 1)).squeeze(1)
        loss = self._contrast_loss(x, content_BD) if learning else None
        return Addition(hidden_BH=hidden_BH, logit_B=logit_B, loss=loss)

    def _view(self, x: StepInputs) -> ContentView:
        last = self.blocks[-1]
        return self.view.of(x, lambda: content_view(
            x.content, rows=len(x.flag_B), dim=last.start + last.dim, lengths=self.lengths
        ))  # fmt: skip

    def _rows(self, x: StepInputs) -> tuple[I64, ...]:
        """Rows of the memory of each history's entries, as it is before the step is learned."""
        bags = [x.bags_BL[i] for i in self.histories]
        return self.read.of(x, lambda: tuple(self.memory.rows(keys_BL) for keys_BL in bags))

    def _made(self, vectors_NC: Tensor) -> Tensor:
        """The vectors c of content vectors: a token a block, masked where it is all zeros."""
        parts = [vectors_NC[:, block.columns] for block in self.blocks]
        tokens = [functional.layer_norm(part, (part.shape[1],)).unsqueeze(1) for part in parts]
        kept = [(part != 0).any(1, keepdim=True) for part in parts]
        out: Tensor = self.former(tokens, kept)
        return out

    def _interest(self, history: int, rows_BL: I64, content_BD: Tensor) -> Tensor:
        """The interest u of one history."""
        device = content_BD.device
        # On the host the memory itself: nothing is written before the backward pass is over.
        vectors, places_BL = self.memory.vector_MD, rows_BL
        if device.type != "cpu":
            own, flat = np.unique(rows_BL, return_inverse=True)
            vectors, places_BL = vectors[own], flat.reshape(rows_BL.shape)
        vectors_UD = torch.from_numpy(vectors).to(device)
        bag_BL = torch.from_numpy(places_BL).to(device)
        kept_BL = torch.from_numpy(rows_BL != self.memory.none).to(device)
        correction = self.corrections[history]
        assert isinstance(correction, Correction)
        query_BD = correction.transposed(self.queries[history](content_BD))
        scores_BL = picked_dots(vectors_UD, query_BD * self.config.dim**-0.5, bag_BL)
        weights_BL = masked_softmax(scores_BL, kept_BL)
        interest_BD: Tensor = correction(weighted_sum(vectors_UD, bag_BL, weights_BL))
        return interest_BD

    def _contrast_loss(self, x: NetInputs, content_BD: Tensor) -> Tensor | None:
        """CIC over the distinct targets of the rows that are learned from, each once."""
        if self.contrast is None:
            return None
        rows_N = self._targets(x.step)
        if len(rows_N) < 2:
            return None
        keys_N = np.ascontiguousarray(x.step.ids_BF[rows_N, self.item.column])
        drawn_NM = draw_negatives(len(rows_N), (SEED, x.learn_step))
        scale_N = id_scale(
            self.memory.seen(keys_N), self.config.id_gradient, self.config.mature_rows
        )
        device = content_BD.device
        at_N = torch.from_numpy(rows_N).to(device)
        ids_BE = x.embedded_BFD[self.item.table][:, self.item.place]
        ids_NE = scaled_gradient(ids_BE.index_select(0, at_N), torch.from_numpy(scale_N).to(device))
        loss: Tensor = self.contrast(content_BD.index_select(0, at_N), ids_NE, drawn_NM)
        return loss * (self.config.contrast * x.step.learnable)

    def _targets(self, x: StepInputs) -> I64:
        """First rows of the distinct items with a vector among those that are learned from."""
        if x.content is None:
            return np.zeros(0, np.int64)
        usable_B = (x.flag_B[: x.rows] > 0) & ~x.content.missing_B.numpy().astype(bool)
        rows_N = np.flatnonzero(usable_B)
        first_N = np.unique(x.ids_BF[rows_N, self.item.column], return_index=True)[1]
        return rows_N[np.sort(first_N)]

    @torch.no_grad()
    def learned(self, x: NetInputs, *, ok: bool) -> None:
        """Write back: the step's targets, and entries of histories that lack a young vector.

        With the weights from after the step; there is no dropout that could be in them.
        """
        s = x.step
        if ok and s.content is not None:
            self._write_back(x, s)
        self.view.forget()
        self.read.forget()

    def _write_back(self, x: NetInputs, s: StepInputs) -> None:
        rows_N, view = self._targets(s), self._view(s)
        keys_N, seen_N = _counted(s.ids_BF[:, self.item.column], s.flag_B, rows_N)
        at_N = view.target_B.numpy()[rows_N]
        if self.histories and self.config.refresh_rows:
            more_keys, more_at = self._stale(s, view, keys_N)
            keys_N, at_N = np.concatenate([keys_N, more_keys]), np.concatenate([at_N, more_at])
            seen_N = np.concatenate([seen_N, np.zeros(len(more_keys), np.int64)])
        if not len(keys_N):
            return
        vectors_NC = view.rows_UC[torch.from_numpy(at_N)].to(x.target_BC.device)
        made_ND = self._made(vectors_NC).cpu().numpy()
        if not np.isfinite(made_ND).all():
            return
        self.memory.write(keys_N, made_ND, seen_N, clock_ms=s.clock_ms, step=x.learn_step)

    def _stale(self, s: StepInputs, view: ContentView, known_N: I64) -> tuple[I64, I64]:
        """Keys and rows of the view of entries to compute anew, in order of occurrence."""
        learned_B = s.flag_B[: s.rows] > 0
        keys, at, ages = [], [], []
        half_ms = self.config.memory_age_ms // 2
        for bag_BL, i, read_BL in zip(view.bags_BL, self.histories, self._rows(s), strict=True):
            keys_BL = s.bags_BL[i][: s.rows][learned_B]
            at_BL = bag_BL.numpy()[: s.rows][learned_B]
            rows_BL = read_BL[: s.rows][learned_B]
            young = np.append(self.memory.written_ms_M, -(2**62))[rows_BL]
            old_BL = (rows_BL == self.memory.none) | (
                bool(half_ms) & (self.memory.clock_ms - young > half_ms)
            )
            wanted = old_BL & (keys_BL != 0) & (at_BL != view.none)
            keys.append(keys_BL[wanted])
            at.append(at_BL[wanted])
            ages.append(young[wanted])
        return _first(np.concatenate(keys), np.concatenate(at), known_N, self.config.refresh_rows)

    @torch.no_grad()
    def rows_given(self, tables: Sequence[EmbeddingTable], lookups: Sequence[Lookup]) -> None:
        """Start the rows of items that were given one from content; learn from the mature ones."""
        plan = lookups[self.item.table].plan
        if self.cold is None or plan is None:
            return
        table, field = tables[self.item.table], self.item.place
        own = plan.rows_U[table.ids.field_R[plan.rows_U] == field]
        own = own[own >= table.ids.first_row]
        keys_N = table.ids.keys_of(own)
        at_N, new_N = self.memory.rows(keys_N), np.isin(own, plan.new_n)
        known_N = at_N != self.memory.none
        mature = known_N & ~new_N & (self.memory.seen(keys_N) >= self.config.mature_rows)
        if mature.any():
            rows = table.weight_RD[torch.from_numpy(own[mature])] - table.weight_RD[field]
            self.cold.observe(self.memory.vector_MD[at_N[mature]], rows.cpu().numpy())
        given = known_N & new_N
        if given.any():
            begun = self.cold.rows(self.memory.vector_MD[at_N[given]])
            device = table.weight_RD.device
            table.weight_RD[torch.from_numpy(own[given])] += torch.from_numpy(begun).to(device)

    def parts(self, mark: int | None) -> Sequence[Part]:
        """The memory, and the regression where there is one."""
        parts = list(self.memory.parts(MEMORY_PART, mark))
        return parts if self.cold is None else [*parts, self.cold.part(COLD_PART)]

    def apply(self, parts: Mapping[str, Part]) -> None:  # type: ignore[override]  # as containers do
        """Take the memory back; raises ValueError for one of another size."""
        if MEMORY_PART in parts:
            self.memory.apply(parts[MEMORY_PART])
        if self.cold is not None:
            self.cold.apply(parts, COLD_PART)

    def counts(self) -> Mapping[str, int]:
        """Of the memory."""
        return self.memory.counts()


def _item_of(spec: FeatureSpec, fields: Sequence[str]) -> Place:
    """The id field of the items. Raises ValueError where there is none, or no history."""
    if not fields:
        raise ValueError("em3: there is no history; configure a [[history]]")
    name = fields[0]
    columns = [f.name for f in spec.ids]
    if name not in columns or set(fields) != {name}:
        raise ValueError(
            f"em3: the histories {', '.join(fields)} must all be of one id feature of path 'item'"
        )
    for number, table in enumerate(spec.tables()):
        own = [f.name for f in table.ids]
        if name in own:
            return Place(columns.index(name), number, own.index(name), table.dim)
    raise AssertionError(name)


def _counted(keys_B: I64, flag_B: NDArray[np.uint8], rows_N: I64) -> tuple[I64, I64]:
    """Keys of the rows, and how often each is among the rows that are learned from."""
    keys_N = np.ascontiguousarray(keys_B[rows_N])
    own, counts = np.unique(keys_B[flag_B > 0], return_counts=True)
    return keys_N, counts[np.searchsorted(own, keys_N)].astype(np.int64)


@numba.njit(cache=True, nogil=True)
def _first(keys_n: I64, at_n: I64, known_N: I64, limit: int) -> tuple[I64, I64]:
    """The first `limit` distinct keys that are not known, with their places."""
    seen = set(known_N)
    keys, at = np.empty(limit, np.int64), np.empty(limit, np.int64)
    n = 0
    for i in range(len(keys_n)):
        if n == limit:
            break
        if keys_n[i] in seen:
            continue
        seen.add(keys_n[i])
        keys[n], at[n] = keys_n[i], at_n[i]
        n += 1
    return keys[:n], at[:n]
