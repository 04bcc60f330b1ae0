"""Speed of a training step side by side with nn.Embedding(sparse) and FBGEMM's CPU tables.

Run: python -m tests.benchmarks.bench_training_step [--rows 1024] [--steps 40] [--threads 1]

Shapes: 12 id fields of dimension 16 in tables of a million rows (Zipf 1.1), 50 history ids,
128-dimensional content, 40 dense inputs, two cross layers of rank 32, MLP 64-32. The competitors
get row numbers ready-made; ours also finds and plans its rows from 64-bit keys. Steps of all
variants take turns, so that a busy neighbour slows them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learners import catalog
from learners.batch import ContentRows, MiniBatch
from learners.feature_spec import Bag, DenseInput, FeatureSpec, IdField
from learners.net_inputs import NetInputs
from learners.rankers.cross_mlp import CrossMlp
from learners.rankers.id_content import IdContentConfig, IdContentNet
from learners.step_inputs import repeat_columns

FIELDS, DIM, HISTORY, CONTENT, DENSE, ITEMS = 12, 16, 50, 128, 40, 20_000
ROWS_OF_TABLE = 1_000_000
ROWS_OF_FIELD = ROWS_OF_TABLE // FIELDS


def spec() -> FeatureSpec:
    """Twelve fields, a history of the second, content, dense inputs, three labels."""
    return FeatureSpec(
        ids=tuple(IdField(name=f"field{i}", dim=DIM) for i in range(FIELDS)),
        bag_fields=(),
        bags=(Bag(name="history", field="field1", length=HISTORY, is_history=True),),
        dense=tuple(DenseInput(name=f"dense{i}", group="value") for i in range(DENSE)),
        labels=("click", "like", "long_view"),
        trained_label="click",
        content_dim=CONTENT,
    )


class Draws:
    """Batches with Zipf ids: as keys for us, as row numbers for the others."""

    def __init__(self, rows: int) -> None:
        self.rows, self.rng = rows, np.random.default_rng(0)
        p = np.arange(1, ROWS_OF_FIELD + 1) ** -1.1
        self.cdf = np.cumsum(p / p.sum())
        self.place = self.rng.permutation(ROWS_OF_TABLE).astype(np.int64)
        vectors = self.rng.normal(size=(ITEMS + 1, CONTENT)).astype(np.float32)
        vectors[-1] = 0
        self.vectors = torch.from_numpy(vectors)

    def _zipf(self, *shape: int) -> np.ndarray:
        return np.searchsorted(self.cdf, self.rng.random(shape)).clip(max=ROWS_OF_FIELD - 1)

    def batch(self) -> tuple[MiniBatch, Tensor, Tensor]:
        """A MiniBatch, and its id and history rows int64 for tables without keys."""
        b = self.rows
        ids_BF = self._zipf(b, FIELDS) + ROWS_OF_FIELD * np.arange(FIELDS)
        bag_BL = self._zipf(b, HISTORY) + ROWS_OF_FIELD
        content = ContentRows(
            table_VC=self.vectors,
            target_B=torch.from_numpy(ids_BF[:, 1] % ITEMS),
            missing_B=torch.zeros(b, dtype=torch.bool),
            bags_BL=(torch.from_numpy(bag_BL % ITEMS),),
            bag_inv_len_B=(torch.full((b,), 1 / HISTORY),),
            encoder="random",
        )
        batch = MiniBatch(
            ids_BF=torch.from_numpy(_keys(ids_BF)),
            bags_BL=(torch.from_numpy(_keys(bag_BL)),),
            dense_BD=torch.randn(b, DENSE),
            content=content,
            labels_BK=(torch.rand(b, 3) < 0.3).float(),
            label_mask_BK=torch.ones(b, 3),
            weight_B=torch.ones(b),
            row_kind_B=torch.zeros(b, dtype=torch.uint8),
            age_ms_B=torch.zeros(b, dtype=torch.int64),
            request_row_B=torch.arange(b),
            sample_rate_B=torch.ones(b),
            ts_ms_B=torch.zeros(b, dtype=torch.int64),
            sample_id_B=torch.arange(b),
            nominal_size=b,
        )
        return batch, *(torch.from_numpy(self.place[x]) for x in (ids_BF, bag_BL))


def _keys(ids: np.ndarray) -> np.ndarray:
    z = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (z ^ (z >> np.uint64(32)) | np.uint64(1)).view(np.int64)


class Textbook(CrossMlp):
    """The cross network as one writes it with torch's modules."""

    def forward(self, x_BX: Tensor) -> Tensor:
        """Logits [B]."""
        crossed_BX = h_BX = x_BX
        for down, up in zip(self.down, self.up, strict=True):
            crossed_BX = x_BX * up(down(crossed_BX)) + crossed_BX
        for layer in self.mlp:
            h_BX = functional.relu(layer(h_BX))
        logits_B1: Tensor = self.out_cross(crossed_BX) + self.out_mlp(h_BX)
        return logits_B1.squeeze(1)


class Plain:
    """The same net with torch's own parts: sparse embedding, Adagrad by element, Adam."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.net = IdContentNet(spec(), IdContentConfig())
        self.net.cross_mlp.__class__ = Textbook
        self.adam = torch.optim.Adam(self.net.parameters(), lr=1.2e-3)
        self.start_tables()

    def start_tables(self) -> None:
        """One table for all fields."""
        self.table = nn.Embedding(ROWS_OF_TABLE, DIM, sparse=True)
        self.sparse = torch.optim.Adagrad(self.table.parameters(), lr=0.01)

    def look_up(self, ids_BF: Tensor, bag_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the ids and the mean row of the history."""
        pooled = functional.embedding_bag(bag_BL, self.table.weight, mode="mean", sparse=True)
        return self.table(ids_BF), pooled

    def repeats(self, batch: MiniBatch) -> Tensor:
        """How often the row's own item stands in the history."""
        ((bag, at),) = repeat_columns(spec())
        own_BL = batch.bags_BL[bag] == batch.ids_BF[:, at : at + 1]
        return own_BL.sum(1, keepdim=True).float().log1p_()

    def step(self, batch: MiniBatch, ids_BF: Tensor, bag_BL: Tensor) -> None:
        """One training step."""
        content = batch.content
        assert content is not None
        embedded_BFD, pooled_BD = self.look_up(ids_BF, bag_BL)
        logits_B = self.net(
            NetInputs(
                embedded_BFD=(embedded_BFD,),
                pooled_BD=((pooled_BD,),),
                dense_BD=batch.dense_BD,
                raw_BD=batch.dense_BD,
                target_BC=functional.embedding(content.target_B, content.table_VC),
                pooled_BC=(
                    functional.embedding_bag(content.bags_BL[0], content.table_VC, mode="mean"),
                ),
                present_B1=torch.ones(len(batch), 1),
                repeats_BH=self.repeats(batch),
                step=None,  # type: ignore[arg-type]  # read by modules only
            )
        )
        loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels_BK[:, 0])
        self.adam.zero_grad()
        self.zero_tables()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.step_tables()

    def zero_tables(self) -> None:
        """Before the backward pass."""
        self.sparse.zero_grad()

    def step_tables(self) -> None:
        """After the backward pass."""
        self.sparse.step()


class Fbgemm(Plain):
    """FBGEMM's CPU table-batched embedding with its fused exact row-wise Adagrad.

    `mean`: its own mean pooling, as one would configure it; else sums, divided afterwards.
    """

    def __init__(self, *, mean: bool) -> None:
        self.mean = mean
        super().__init__()

    def start_tables(self) -> None:
        """Thirteen features on one table: twelve of one id, one of fifty."""
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self.table: Any = SplitTableBatchedEmbeddingBagsCodegen(
            [(ROWS_OF_TABLE, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            feature_table_map=[0] * (FIELDS + 1),
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.01,
            eps=1e-8,
            pooling_mode=PoolingMode.MEAN if self.mean else PoolingMode.SUM,
        )

    def look_up(self, ids_BF: Tensor, bag_BL: Tensor) -> tuple[Tensor, Tensor]:
        """One call for all features."""
        b = len(ids_BF)
        indices = torch.cat([ids_BF.t().reshape(-1), bag_BL.reshape(-1)])
        lengths = torch.cat([torch.ones(FIELDS * b), torch.full((b,), float(HISTORY))]).long()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        out = self.table(indices, offsets)
        pooled_BD = out[:, FIELDS * DIM :] if self.mean else out[:, FIELDS * DIM :] / HISTORY
        return out[:, : FIELDS * DIM].reshape(b, FIELDS, DIM), pooled_BD

    def zero_tables(self) -> None:
        """Nothing: the update is fused into the backward pass."""

    def step_tables(self) -> None:
        """Nothing, likewise."""


def timed(
    variants: dict[str, Callable[..., None]], draws: Draws, steps: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median time of a step in µs per sample; the variants take turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for step in range(steps + 5):
        batch = draws.batch()
        for name, run in variants.items():
            start = clock()
            run(*batch)
            if step >= 5:
                times[name].append((clock() - start) * 1e6 / draws.rows)
    return {name: statistics.median(values) for name, values in times.items()}


def warm_ids(learner: Any, draws: Draws) -> None:
    """Give every id its row, as after a long run."""
    batch, _, _ = draws.batch()
    for start in range(0, ROWS_OF_FIELD, 4096):
        ids = np.arange(start, min(start + 4096, ROWS_OF_FIELD))
        keys_BF = _keys(ids[:, None] + ROWS_OF_FIELD * np.arange(FIELDS))
        empty = np.zeros((len(ids), HISTORY), np.int64)
        flags = np.full(len(ids), 2, np.uint8)
        learner.tables[0].learn(keys_BF, [empty], flags, clock_ms=0, step=0)
    learner.predict_many(batch)


def main() -> None:
    """Print µs per sample and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draws = Draws(options.rows)
    learner: Any = catalog.build(
        "id_content", spec(), {"device": "cpu", "threads": options.threads}
    )
    learner.reports_logits = False  # as in a pipeline that predicts at the impression
    warm_ids(learner, draws)
    plain, mean, total = Plain(), Fbgemm(mean=True), Fbgemm(mean=False)
    result = timed(
        {
            "millrace": lambda batch, _ids, _bag: learner.learn_many(batch),
            "nn.Embedding(sparse) + Adagrad + Adam": plain.step,
            "FBGEMM CPU TBE (mean) + Adam": mean.step,
            "FBGEMM CPU TBE (sum, then / 50) + Adam": total.step,
            "millrace predict_many": lambda batch, _ids, _bag: learner.predict_many(batch),
        },
        draws,
        options.steps,
        # With one thread its processor time, which a busy neighbour disturbs less.
        time.thread_time if options.threads == 1 else time.perf_counter,
    )
    print(f"{options.rows} rows a step, {options.threads} thread(s), µs per sample, median:")
    for name, value in result.items():
        print(f"  {name:40s} {value:6.2f}   millrace / this = {result['millrace'] / value:.2f}")


if __name__ == "__main__":
    main()
