"""River's models with their state as arrays. Imported where it is used: River loads slowly.

The models are River's own and learn as River does; no feature is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift, facto, linear_model, optim, utils

from infra.state import Part

Row = dict[int, float]
Arrays = dict[str, NDArray[Any]]
RIVER = version("river")


def columns_of(name: str, values: Mapping[Any, float]) -> Arrays:
    """A dict as two arrays, in its own order: sums run in that order."""
    return {
        f"{name}.at": np.fromiter(values.keys(), np.int64, len(values)),
        name: np.fromiter(values.values(), np.float64, len(values)),
    }


def dict_of(part: Part, name: str) -> Row:
    """The dict that `columns_of` wrote."""
    at, values = part.array(f"{name}.at", np.int64), part.array(name, np.float64)
    return dict(zip(at.tolist(), values.tolist(), strict=True))


class LogisticModel(linear_model.LogisticRegression):
    """River's logistic regression whose state can be taken out and put back."""

    def __init__(self, optimizer: str, lr: float, l1: float, l2: float) -> None:
        if optimizer == "ftrl":
            super().__init__(optim.FTRLProximal(alpha=lr, l1=l1, l2=l2))
        else:
            kind = optim.SGD if optimizer == "sgd" else optim.AdaGrad
            super().__init__(kind(lr), l1=l1, l2=l2)

    def logit(self, x: Row) -> float:
        """The logit of a row."""
        return float(self._raw_dot_one(x))

    def _dicts(self) -> dict[str, Any]:
        """What the model and its optimizer keep by index."""
        o = self.optimizer
        dicts = {name: getattr(o, name) for name in ("z", "n", "g2") if hasattr(o, name)}
        if self.l1:
            dicts["cum_l1"] = self.cum_l1
        return dicts

    def part(self, name: str) -> Part:
        """Weights, what the optimizer keeps, and scalars."""
        arrays = columns_of("weights", self.weights)
        for key, values in self._dicts().items():
            arrays |= columns_of(key, dict(values.items()))
        meta = {"intercept": float(self.intercept), "iterations": self.optimizer.n_iterations}
        if self.l1:
            meta["max_cum_l1"] = float(self.max_cum_l1)
        return Part(name=name, part_class="serve", arrays=arrays, meta=meta)

    def restore(self, part: Part) -> None:
        """Take what `part` gave; the model is fresh."""
        self._weights = utils.VectorDict(dict_of(part, "weights"))
        for name, values in self._dicts().items():
            values.update(dict_of(part, name))
        self.intercept = part.meta["intercept"]
        self.optimizer.n_iterations = part.meta["iterations"]
        if self.l1:
            self.max_cum_l1 = part.meta["max_cum_l1"]


class FactorModel(facto.FMClassifier):
    """River's factorization machine (Rendle 2010, equation 1), factors in one array.

    River draws the factors of a new feature when it is first looked at, so that a prediction would
    change the model; drawn ahead they depend on the seed alone. `factors_RK` float64.
    """

    def __init__(self, factors_RK: NDArray[np.float64], lr: float, factor_lr: float) -> None:
        self._drawn_RK = factors_RK
        self.squares = optim.AdaGrad(lr)
        super().__init__(
            n_factors=factors_RK.shape[1],
            weight_optimizer=self.squares,
            latent_optimizer=optim.SGD(factor_lr),
        )

    def _init_latents(self) -> Any:
        return self._drawn_RK

    def logit(self, x: Row) -> float:
        """The logit of a row."""
        return float(self._raw_dot(x))  # type: ignore[no-untyped-call]

    def learn(self, x: Row, label: bool, weight: float) -> None:
        """River's `learn_one`."""
        self.learn_one(x, label, w=weight)  # type: ignore[no-untyped-call]

    def part(self, name: str) -> Part:
        """Everything but the factors."""
        return Part(
            name=name,
            part_class="serve",
            arrays=columns_of("weights", self.weights) | columns_of("squares", self.squares.g2),
            meta={"intercept": float(self.intercept), "iterations": self.squares.n_iterations},
        )

    def restore(self, part: Part) -> None:
        """Take what `part` gave."""
        stores: tuple[tuple[dict[Any, Any], str], ...] = (
            (self.weights, "weights"),
            (self.squares.g2, "squares"),
        )
        for values, name in stores:
            values.clear()
            values.update(dict_of(part, name))
        self.intercept = part.meta["intercept"]
        self.squares.n_iterations = part.meta["iterations"]


class Detector(drift.ADWIN):
    """River's ADWIN whose window can be taken out and put back."""

    def __init__(self, delta: float) -> None:
        super().__init__(delta=delta)  # type: ignore[no-untyped-call]

    def rises(self, x: float) -> bool:
        """Whether the mean has gone up, seen with `x` as the newest value."""
        before = self.estimation
        self.update(x)  # type: ignore[no-untyped-call]
        return bool(self.drift_detected) and self.estimation > before

    def part(self, name: str) -> Part:
        """The window as the bytes that River's own copy protocol gives."""
        return Part(
            name=name,
            part_class="train",
            arrays={"adwin": np.frombuffer(self._helper.__getstate__(), np.uint8).copy()},
            meta={"detected": bool(self.drift_detected), "river": RIVER},
        )

    def restore(self, part: Part) -> None:
        """Take the window; raises ValueError where another River wrote it."""
        if part.meta["river"] != RIVER:
            raise ValueError(
                f"part '{part.name}': ADWIN's window was written by River {part.meta['river']}, "
                f"here is {RIVER}; install that version, or begin anew"
            )
        self._helper.__setstate__(part.array("adwin", np.uint8).tobytes())
        self._drift_detected = part.meta["detected"]
