"""The extractor trained from the stream by its own loss, each step's rows visited several times.

A content-only net has no row of its own for any item, so that it bears several visits where id rows
do not. Touches no weight of the ranker.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from infra.state import Part
from learners.content_view import ContentView
from learners.dense_optim import AdamConfig, FlatAdam
from learners.modules.make_net import MakeNet, normalised
from learners.modules.module import Kept
from learners.step_inputs import StepInputs

SEED = 0x4D414B45
ADAM = ("w", "m", "v", "t", "average")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """Adam's rate; `replays` visits of earlier steps after each step; rows kept for them.

    With `replays` 0 no row is kept. `averaged_rows`: over how many rows the weights that the ranker
    sees are averaged.
    """

    lr: float = 1e-3
    replays: int = 1
    replay_rows: int = 8_192
    averaged_rows: int = 8_000

    def __post_init__(self) -> None:
        """Check ranges."""
        if not (self.lr > 0 and 0 <= self.replays <= 64 and self.averaged_rows >= 0):
            raise ValueError(
                "make: lr > 0, 0 <= replays <= 64, averaged_rows >= 0, got "
                f"{self.lr}, {self.replays}, {self.averaged_rows}"
            )
        if not 1 <= self.replay_rows <= 1_000_000:
            raise ValueError(f"make: 1 <= replay_rows <= 1,000,000, got {self.replay_rows}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """The learned rows of one step: vectors float16 as they came, labels, weights."""

    rows_UC: NDArray[np.float16]
    target_B: NDArray[np.int32]
    bags_BL: tuple[NDArray[np.int32], ...]
    label_B: NDArray[np.float32]
    weight_B: NDArray[np.float32]
    nominal_size: int

    @property
    def rows(self) -> int:
        """How many rows count."""
        return int(np.count_nonzero(self.weight_B))

    def view(self) -> ContentView:
        """Its vectors as the net takes them."""
        return normalised(
            ContentView(
                rows_UC=torch.from_numpy(self.rows_UC).float(),
                target_B=torch.from_numpy(self.target_B).long(),
                bags_BL=tuple(torch.from_numpy(bag).long() for bag in self.bags_BL),
            )
        )


class OnlineExtractor(Kept):
    """Net, its Adam, and the last steps. `scorer` has the averaged weights, which the ranker sees.

    One step on what just came and `replays` on steps drawn from the buffer: no label of a row is
    in the extractor before the ranker has learned from the row.
    """

    def __init__(self, net: MakeNet, config: OnlineConfig) -> None:
        self.net, self.config = net, config
        self.scorer = copy.deepcopy(net).requires_grad_(requires_grad=False)
        self.adam = FlatAdam(
            net.parameters(),
            AdamConfig(lr=config.lr, beta1=0.9, averaged_rows=config.averaged_rows),
        )
        self.adam.show_average(self.scorer.parameters())
        self.visits: deque[Visit] = deque()
        self.kept_rows = 0
        self.steps = 0
        self.replayed = 0

    def learn(self, x: StepInputs, raw: ContentView, scaled: ContentView) -> None:
        """Train on the rows that were learned from, then on earlier steps; keep the rows.

        `raw`: the batch's vectors as they came; `scaled`: as the net takes them.
        """
        visit = _visit(x, raw)
        if visit is None:
            return
        assert x.content is not None
        self.steps += 1
        earlier = self._drawn()
        exact = visit.rows == x.rows and x.content.table_VC.dtype == torch.float16
        self._step(visit, scaled if exact else visit.view())
        for each in earlier:
            self._step(each, each.view())
        self.replayed += sum(each.rows for each in earlier)
        self._keep(visit)

    def _keep(self, visit: Visit) -> None:
        """The step's rows into the buffer, the oldest out; none where none is visited again."""
        if not self.config.replays:
            return
        self.visits.append(visit)
        self.kept_rows += visit.rows
        while self.kept_rows > self.config.replay_rows and len(self.visits) > 1:
            self.kept_rows -= self.visits.popleft().rows

    def _drawn(self) -> list[Visit]:
        if not self.visits:
            return []
        rng = np.random.default_rng((SEED, self.steps))
        return [self.visits[i] for i in rng.integers(0, len(self.visits), self.config.replays)]

    def _step(self, visit: Visit, view: ContentView) -> None:
        device = self.adam.w.device
        self.adam.zero_grad()
        with torch.enable_grad():
            logit_B = self.net(view.to(device)).logit_B
            loss: Tensor = functional.binary_cross_entropy_with_logits(
                logit_B, torch.from_numpy(visit.label_B).to(device),
                weight=torch.from_numpy(visit.weight_B).to(device), reduction="sum",
            )  # fmt: skip
            (loss / visit.nominal_size).backward()  # type: ignore[no-untyped-call]
        self.adam.step(torch.isfinite(loss.detach() + self.adam.g.sum()), visit.rows)

    def parts(self) -> list[Part]:
        """The averaged weights for scoring; Adam's state and the buffer for training."""
        a = self.adam
        state = {name: getattr(a, name).detach().cpu().numpy().copy() for name in ADAM}
        average = {"weights": state.pop("average")}
        for i, visit in enumerate(self.visits):
            bags = {f"bag{b}": bag for b, bag in enumerate(visit.bags_BL)}
            arrays: dict[str, NDArray[Any]] = {
                "vectors": visit.rows_UC, "target": visit.target_B, "label": visit.label_B,
                "weight": visit.weight_B, **bags,
            }  # fmt: skip
            state |= {f"visit{i}.{name}": array.copy() for name, array in arrays.items()}
        meta = {
            "steps": self.steps, "replayed": self.replayed,
            "nominal_sizes": [visit.nominal_size for visit in self.visits],
        }  # fmt: skip
        return [
            Part(name="make.net", part_class="serve", arrays=average, meta=self._form()),
            Part(name="make.train", part_class="train", arrays=state, meta=meta),
        ]

    def _form(self) -> dict[str, Any]:
        net = self.net
        return {
            "dim": net.dim, "histories": net.histories,
            **asdict(net.config), "hidden": list(net.config.hidden),
        }  # fmt: skip

    def apply(self, parts: Mapping[str, Part]) -> None:
        """Take it back; without the part of training the extractor can only score.

        Steps that are kept in it are let go where none is visited again, or fewer rows are kept.
        Raises ValueError for an extractor of another form.
        """
        if "make.net" not in parts:
            return
        a, was = self.adam, dict(parts["make.net"].meta)
        if was and was != self._form():
            raise ValueError(
                f"make: the snapshot's extractor is {was}, but the configuration's {self._form()}; "
                "use the configuration of the snapshot"
            )
        with torch.no_grad():
            a.average.copy_(torch.from_numpy(parts["make.net"].array("weights", np.float32).copy()))
        train = parts.get("make.train")
        if train is None:
            return
        with torch.no_grad():
            for name in ADAM[:-1]:
                getattr(a, name).copy_(torch.from_numpy(train.array(name, np.float32).copy()))
        self.steps, self.replayed = int(train.meta["steps"]), int(train.meta["replayed"])
        self.visits, self.kept_rows = deque(), 0
        for i, size in enumerate(train.meta["nominal_sizes"]):
            self._keep(_restored(train, i, int(size)))

    def counts(self) -> Mapping[str, int]:
        """Steps, rows in the buffer, rows visited again."""
        return {"steps": self.steps, "buffer_rows": self.kept_rows, "replayed": self.replayed}


def _restored(part: Part, i: int, nominal_size: int) -> Visit:
    bags = sorted(name for name in part.arrays if name.startswith(f"visit{i}.bag"))
    return Visit(
        rows_UC=part.array(f"visit{i}.vectors", np.float16).copy(),
        target_B=part.array(f"visit{i}.target", np.int32).copy(),
        bags_BL=tuple(part.array(name, np.int32).copy() for name in bags),
        label_B=part.array(f"visit{i}.label", np.float32).copy(),
        weight_B=part.array(f"visit{i}.weight", np.float32).copy(),
        nominal_size=nominal_size,
    )


def _visit(x: StepInputs, raw: ContentView) -> Visit | None:
    """The rows that are learned from, padded; None where there are none or no vectors."""
    chosen = np.flatnonzero((x.flag_B[: x.rows] > 0) & (x.weight_B[: x.rows] > 0).cpu().numpy())
    if not len(chosen) or x.content is None:
        return None
    view = raw if len(chosen) == x.rows else raw.some(chosen)
    rows = len(view.target_B)
    label_B, weight_B = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    label_B[: len(chosen)] = x.label_B.cpu().numpy()[chosen]
    weight_B[: len(chosen)] = x.weight_B.cpu().numpy()[chosen]
    return Visit(
        rows_UC=view.rows_UC.half().numpy(),
        target_B=view.target_B.numpy().astype(np.int32),
        bags_BL=tuple(bag.numpy().astype(np.int32) for bag in view.bags_BL),
        label_B=label_B, weight_B=weight_B, nominal_size=x.nominal_size,
    )  # fmt: skip
