"""Does content bear several epochs where ids do not? MAKE's premise, measured on the bundled slice.

Run: python -m tests.benchmarks.bench_make_epochs [--epochs 5] [--seeds 0 1 2] [--set A.B=C …]

One net, `MakeNet`, trained for several epochs on the impressions before 2022-04-28 00:00 UTC+8 and
scored after each on the later ones up to 2022-04-30: over frozen item vectors, and over trained
rows of 16 numbers for the same items ("ids"), which begin at N(0, .1) and are learned by Adam as
the net is. GAUC is by user.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from learners.content_view import ROW_MULTIPLE, ContentView, content_view
from learners.modules.make_net import Extracted, ExtractorConfig, MakeNet
from learners.modules.make_training import (
    ContentTable,
    EpochScore,
    MakeTrainingConfig,
    new_net,
    train,
)
from stream.pretraining_make import content_samples
from stream.times import time_ms
from tests.support.bench import kuairand_config, kuairand_log, markdown, markdown_row, setting

TRAIN_UNTIL, JUDGE_UNTIL = "2022-04-28T00:00:00+08:00", "2022-04-30T00:00:00+08:00"
DIM, DEVIATION = 16, 0.1
HEADER = ("inputs", "seed", "epoch", "loss in training", "log loss", "AUC", "GAUC")


class IdNet(nn.Module):
    """The same net over rows that it trains; a view's vectors are row numbers, 0 for none."""

    def __init__(self, rows: int, histories: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, DIM, padding_idx=0)
        nn.init.normal_(self.table.weight, std=DEVIATION)
        self.table.weight.data[0] = 0
        self.net = MakeNet(DIM, histories, ExtractorConfig())

    def forward(self, view: ContentView) -> Extracted:
        """As `MakeNet`."""
        rows_UC = self.table(view.rows_UC[:, 0].long())
        found: Extracted = self.net(
            ContentView(rows_UC=rows_UC, target_B=view.target_B, bags_BL=view.bags_BL)
        )
        return found


class IdTable(ContentTable):
    """Rows with the number of each vector, from 1 on, in the vector's place."""

    __slots__ = ()

    def view(self, chosen: NDArray[np.int64]) -> ContentView:
        """Some rows, padded; the numbers as they are."""
        return content_view(
            self.rows, rows=len(chosen) + -len(chosen) % ROW_MULTIPLE, dim=1,
            lengths=[bag.shape[1] for bag in self.rows.bags_BL], chosen=chosen,
        )  # fmt: skip


def ids_of(table: ContentTable) -> IdTable:
    """The same rows by number."""
    n = len(table.rows.table_VC) - 1
    numbers = torch.cat([torch.arange(1, n + 1), torch.zeros(1, dtype=torch.long)])
    rows = type(table.rows)(
        table_VC=numbers.float().unsqueeze(1),
        **{f: getattr(table.rows, f) for f in table.rows.__slots__ if f != "table_VC"},
    )
    return IdTable(rows=rows, label_N=table.label_N, ts_ms_N=table.ts_ms_N, group_N=table.group_N)


def curves(
    table: ContentTable, last: int, epochs: int, seed: int
) -> Iterator[tuple[str, EpochScore]]:
    """Scores after each epoch, of content and of ids."""
    config = MakeTrainingConfig(epochs=epochs, seed=seed)
    net: nn.Module = new_net(table, ExtractorConfig(), seed)
    for score in train(table, net, config, last=last):  # type: ignore[arg-type]
        yield "content", score
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = IdNet(len(table.rows.table_VC), len(table.rows.bags_BL))
    for score in train(ids_of(table), net, config, last=last):  # type: ignore[arg-type]
        yield "ids", score


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="an override")
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples = content_samples(
        [kuairand_log(100)], kuairand_config(*args.set), from_ms=0, until_ms=time_ms(JUDGE_UNTIL)
    )
    table = samples.rows()
    last = int(np.searchsorted(np.maximum.accumulate(table.ts_ms_N), time_ms(TRAIN_UNTIL)))
    print(f"{setting()}\n\n{last:,} rows trained on, {len(table) - last:,} judged\n")
    print(markdown(HEADER, []), flush=True)
    for seed in args.seeds:
        for inputs, s in curves(table, last, args.epochs, seed):
            figures = [f"{x:.4f}" for x in (s.train_loss, s.log_loss, s.auc, s.gauc) if x]
            print(markdown_row([inputs, seed, s.epoch, *figures]), flush=True)


if __name__ == "__main__":
    main()
