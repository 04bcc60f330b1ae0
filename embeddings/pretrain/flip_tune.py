"""Training FLIP's second stage: epochs over labelled samples, and when to stop. Reads no log.

Wang et al. 2023 (arXiv 2310.19453): L = BCE(z) + BCE(z_ID) + BCE(z_PLM). Ids are passed once (a
second pass over them over-fits); the language model may go on until later samples lose by it.

Legend as in `flip_clicks`; M held-out samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings.pretrain.adam import Adam
from embeddings.pretrain.flip import FlipNet
from embeddings.pretrain.flip_clicks import ClickRows, FlipClicks, TextStates, mean_of
from embeddings.pretrain.flip_rows import FlipRows

Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """At most `epochs` passes in steps of `batch` samples, the ids in the first `id_epochs` alone.

    `lr` of ids, heads and alpha, `text_lr` of the language model; `judge`: the last share of the
    samples, by which it stops after `patience` epochs without a gain.
    """

    epochs: int = 3
    id_epochs: int = 1
    batch: int = 256
    lr: float = 3e-3
    text_lr: float = 5e-5
    decay: float = 1e-3
    judge: float = 0.1
    patience: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.epochs, self.id_epochs, self.batch, self.patience) < 1:
            raise ValueError(f"flip: epochs, batch and patience of clicks: at least 1: {self}")
        if min(self.lr, self.text_lr) <= 0 or self.decay < 0 or not 0 < self.judge < 1:
            raise ValueError(f"flip: rates > 0, decay >= 0, judge in (0, 1): {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What fine-tuning left.

    `curve`: log loss of the mixture, the ids and the text alone on the held-out samples, an epoch
    an entry; `epoch`, from 1 on, whose state was kept. `logits_M3` of that state, in that order.
    """

    curve: tuple[tuple[float, float, float], ...]
    epoch: int
    alpha: float
    logits_M3: NDArray[np.float32]
    label_M: NDArray[np.float32]
    trained: int


class _Samples:
    """Samples as tensors, with field values numbered by what the trained ones have."""

    def __init__(self, clicks: ClickRows, trained: int) -> None:
        columns, sizes = [], []
        for s in range(len(clicks.names)):
            known = np.unique(clicks.fields_NS[:trained, s])
            at = np.minimum(np.searchsorted(known, clicks.fields_NS[:, s]), len(known) - 1)
            columns.append(np.where(known[at] == clicks.fields_NS[:, s], at + 1, 0))
            sizes.append(len(known))
        empty = np.zeros((len(clicks), 0), np.int64)
        self.sizes_S = sizes
        self.item_N = torch.from_numpy(clicks.item_N)
        self.fields_NS = torch.from_numpy(np.stack(columns, 1) if columns else empty)
        self.histories = [torch.from_numpy(history) for history in clicks.histories]
        self.label_N = torch.from_numpy(clicks.label_N)
        self.weight_N = torch.from_numpy(clicks.weight_N)


def fine_tune(
    net: FlipNet,
    rows: FlipRows,
    clicks: ClickRows,
    c: TuneConfig,
    on_progress: Tell = lambda _done, _total: None,
) -> Tuned:
    """Train the net's last layers and value tables in place; they end as in the best epoch.

    Raises ValueError where the samples before the held-out ones have one label alone, or where
    none is held out. Same seed, same bits.
    """
    trained = len(clicks) - int(c.judge * len(clicks))
    rate = float(clicks.label_N[:trained].mean()) if trained else 0.0
    if trained == len(clicks) or not 0 < rate < 1:
        raise ValueError(
            f"flip: {len(clicks)} labelled samples, of the first {trained} {rate:.0%} clicked: "
            "fine-tuning needs both labels, and later samples to stop by; take a longer window"
        )
    samples = _Samples(clicks, trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(c.seed)
        model = FlipClicks(net, rows, samples.sizes_S, len(samples.histories))
    model.begin_at(rate)
    return _Tuning(net, rows, model, samples, c).run(trained, on_progress)


class _Tuning:
    """Epochs of one run."""

    def __init__(
        self, net: FlipNet, rows: FlipRows, model: FlipClicks, samples: _Samples, c: TuneConfig
    ) -> None:
        self.net, self.model, self.samples, self.c = net, model, samples, c
        self.texts = TextStates(net, rows)
        self.mean_P = self.texts.all().mean(0)
        ids = {n: p for n, p in model.named_parameters()
               if not n.startswith(("text_logit", "alpha"))}  # fmt: skip
        heads = {"weight": model.text_logit.weight, "bias": model.text_logit.bias,
                 "alpha": model.alpha}  # fmt: skip
        self.adams = {
            "ids": Adam(_group(ids), c.lr, c.decay),
            "heads": Adam(_group(heads), c.lr, c.decay),
            "text": Adam(net.text_layers, c.text_lr, c.decay),
        }
        self.all = nn.ModuleList([model, net.text_layers])

    def run(self, trained: int, on_progress: Tell) -> Tuned:
        """Train until the held-out samples lose, and take the best state."""
        c, rng = self.c, np.random.default_rng(self.c.seed)
        curve: list[tuple[float, float, float]] = []
        best, best_logits = 0, torch.zeros(0, 3)
        state: dict[str, Tensor] = {}
        steps = -(-trained // c.batch)
        for epoch in range(c.epochs):
            kept_NP, order = self.texts.all() - self.mean_P, rng.permutation(trained)
            for step in range(steps):
                chosen = torch.from_numpy(order[step * c.batch : (step + 1) * c.batch])
                self._step(chosen, kept_NP, ids=epoch < c.id_epochs)
                on_progress(epoch * steps + step + 1, c.epochs * steps)
            logits_M3 = self.judged(trained)
            curve.append(self._losses(logits_M3, trained))
            if not state or curve[-1][0] < curve[best][0]:
                best, best_logits = epoch, logits_M3
                state = {n: p.detach().clone() for n, p in self.all.state_dict().items()}
            elif epoch - best >= c.patience:
                break
        self.all.load_state_dict(state)
        return Tuned(
            curve=tuple(curve), epoch=best + 1, alpha=float(self.model.alpha.detach()),
            logits_M3=best_logits.numpy(), label_M=self.samples.label_N[trained:].numpy(),
            trained=trained,
        )  # fmt: skip

    def _step(self, chosen_B: Tensor, kept_NP: Tensor, *, ids: bool) -> None:
        """One update; the histories' vectors are those of the epoch's start."""
        s = self.samples
        for parameter in self.all.parameters():
            parameter.grad = None
        item_U, place_B = torch.unique(s.item_N[chosen_B], return_inverse=True)
        text_BP = (self.texts.vectors(item_U.numpy()) - self.mean_P)[place_B]
        with torch.set_grad_enabled(ids):
            ids_B = self._of_ids(chosen_B)
        z_B3 = self._mixed(ids_B, text_BP, chosen_B, kept_NP)
        label_B3 = s.label_N[chosen_B].unsqueeze(1).expand(-1, 3)
        loss = functional.binary_cross_entropy_with_logits(
            z_B3, label_B3, weight=s.weight_N[chosen_B].unsqueeze(1), reduction="sum"
        )
        (loss / len(chosen_B)).backward()  # type: ignore[no-untyped-call]
        for name, adam in self.adams.items():
            if ids or name != "ids":
                adam.step()

    def _of_ids(self, at_B: Tensor) -> Tensor:
        s = self.samples
        return self.model.of_ids(s.item_N[at_B], s.fields_NS[at_B], [h[at_B] for h in s.histories])

    def _mixed(self, ids_B: Tensor, text_BP: Tensor, at_B: Tensor, kept_NP: Tensor) -> Tensor:
        """[B, 3]: the mixture, the ids', the text's."""
        histories = [mean_of(kept_NP, history[at_B]) for history in self.samples.histories]
        text_B = self.model.of_text(text_BP, histories)
        return torch.stack([self.model.mixed(ids_B, text_B), ids_B, text_B], 1)

    @torch.no_grad()
    def judged(self, first: int) -> Tensor:
        """Logits [M, 3] of the samples from number `first` on."""
        kept_NP, n = self.texts.all() - self.mean_P, len(self.samples.label_N)
        parts = []
        for start in range(first, n, self.c.batch):
            at_B = torch.arange(start, min(start + self.c.batch, n))
            text_BP = kept_NP[self.samples.item_N[at_B]]
            parts.append(self._mixed(self._of_ids(at_B), text_BP, at_B, kept_NP))
        return torch.cat(parts)

    def _losses(self, logits_M3: Tensor, first: int) -> tuple[float, float, float]:
        label_M3 = self.samples.label_N[first:].unsqueeze(1).expand(-1, 3)
        of_rows_M3 = functional.binary_cross_entropy_with_logits(
            logits_M3, label_M3, reduction="none"
        )
        weight_M = self.samples.weight_N[first:]
        mixed, ids, text = (weight_M @ of_rows_M3 / weight_M.sum()).tolist()
        return mixed, ids, text


def _group(parameters: Mapping[str, Tensor]) -> nn.ParameterDict:
    named = {name.replace(".", "/"): p for name, p in parameters.items()}
    return nn.ParameterDict({n: p for n, p in named.items() if isinstance(p, nn.Parameter)})
