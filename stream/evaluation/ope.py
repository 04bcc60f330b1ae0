"""What another policy would have earned, from rows that a known policy chose: IPS, SNIPS, DM, DR.

Reads no log and fits no model: probabilities and a reward model's values come as arrays. Assumes
that rewards depend on nothing that a policy's other choices change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ESTIMATORS: Final = ("ips", "snips", "dm", "dr")
BLOCKS_MIN: Final = 10
"""Blocks that an interval needs."""
BLOCKS_MAX: Final = 20_000
"""More are joined at random into as many: the interval keeps its width, memory its bound."""
_DRAWS_AT_ONCE: Final = 1_000_000

_FAR: Final = (
    "the mean weight is not 1: the target takes actions that the logging policy cannot take, or "
    "probabilities or propensities are wrong; no estimate but dm can be trusted"
)

# Columns of sums over rows.
_ROWS, _REWARD, _WEIGHT, _WEIGHTED, _MODEL, _DOUBLY, _OWN_ROWS, _OWN_REWARD = range(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeConfig:
    """`clip` bounds the weights (0: no bound); intervals hold the middle `level` of resamples."""

    clip: float = 0.0
    resamples: int = 1_000
    level: float = 0.95
    seed: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.clip < 0:
            raise ValueError(f"clip must be positive, or 0 for no bound, got {self.clip}")
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError("resamples must be at least 1 and level between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRows:
    """n logged choices, as the estimators need them.

    `reward_n`; `propensity_n` the logging policy's probability of the action it took; `target_n`
    the target policy's probability of that action in that context; `block_n` what is resampled
    whole (user or request). A reward model, where there is one: `model_logged_n` its reward of the
    action taken, `model_target_n` its expected reward under the target policy.
    """

    reward_n: F64
    propensity_n: F64
    target_n: F64
    block_n: I64
    model_logged_n: F64 | None = None
    model_target_n: F64 | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.reward_n)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPolicyRows:
    """Rewards of rows that the target policy itself chose, to check the estimates against."""

    reward_n: F64
    block_n: I64


def off_policy(
    rows: LoggedRows, config: OpeConfig, on_policy: OnPolicyRows | None = None
) -> dict[str, Any]:
    """Estimated value of the target policy, with intervals and what the weights look like.

    With w = target / propensity (at most `clip`), q the model, and means over rows:
    `ips` mean(w r) (Horvitz and Thompson 1952); `snips` sum(w r) / sum(w) (Swaminathan and
    Joachims 2015); `dm` mean(q(target)); `dr` mean(q(target) + w (r - q(logged))) (Dudik, Langford
    and Li 2011, equation 1). Each is `{value, low, high}`; `logged` is the mean reward of the rows.
    Intervals are of block resamples with the model held fixed: `dm`'s says nothing of how wrong the
    model is. `on_policy` adds its own mean and each estimate's `difference` to it, resampled
    together. `weights`: see `weight_facts`. What cannot be said is None and has an entry in
    `reasons`, a map from dotted path to words.
    """
    broken = _unusable(rows)
    sums = _Sums(rows, config, on_policy)
    total_1S = sums.of_all()
    few = "" if sums.blocks >= BLOCKS_MIN else f"fewer than {BLOCKS_MIN} blocks"
    draws_RS = total_1S[:0] if few else sums.resampled(config)
    reasons: dict[str, str] = {}

    def value(path: str, ratio: Callable[[F64], F64], why: str) -> dict[str, Any]:
        if why:
            reasons[path] = why
            return {"value": None, "low": None, "high": None}
        low, high = _interval(ratio(draws_RS), config)
        if low is None:
            reasons[f"{path}.low"] = few or "most resamples have no row that counts"
        return {"value": float(ratio(total_1S)[0]), "low": low, "high": high}

    needs = dict.fromkeys(("logged", "on_policy"), _no_rewards(rows)) | dict.fromkeys(
        ESTIMATORS, broken
    )
    names = ["logged", *ESTIMATORS, *(["on_policy"] if on_policy is not None else [])]
    result: dict[str, Any] = {"rows": len(rows), "blocks": sums.blocks, "clip": config.clip or None}
    with np.errstate(divide="ignore", invalid="ignore"):
        result |= {
            name: value(name, _RATIOS[name], needs[name] or sums.why_not(name)) for name in names
        }
        if on_policy is not None:
            result["difference"] = {
                name: value(
                    f"difference.{name}",
                    lambda s, ratio=_RATIOS[name]: ratio(s) - _RATIOS["on_policy"](s),  # type: ignore[misc]  # bound here
                    broken or sums.why_not(name) or sums.why_not("on_policy"),
                )
                for name in ESTIMATORS
            }
        mean = value("mean_weight", _RATIOS["mean_weight"], broken)
    result |= {"mean_weight": mean, "weights": {} if broken else weight_facts(rows, config.clip)}
    far = mean["low"] is not None and not mean["low"] <= 1 <= mean["high"]
    return {**result, "warnings": [_FAR] if far and not config.clip else [], "reasons": reasons}


def weight_facts(rows: LoggedRows, clip: float = 0.0) -> dict[str, Any]:
    """How far the weights w = target / propensity can be trusted, before any clipping.

    `mean`: near 1 if the logging policy takes all that the target takes; `max`; `ess` the effective
    number of rows, sum(w)^2 / sum(w^2) (Kish 1965), and `ess_share` of all rows; `zero_share` of
    rows that the target would never have chosen; `clipped_share` of rows above `clip`, and
    `clipped_mass`, the share of all weight that clipping takes away; `top_block_share` of all
    weight in the heaviest block.
    """
    weight_n = rows.target_n / rows.propensity_n
    total = float(weight_n.sum())
    _, block_n = np.unique(rows.block_n, return_inverse=True)
    squares = float((weight_n**2).sum())
    cut_n = np.maximum(weight_n - clip, 0) if clip else np.zeros(1)
    return {
        "mean": float(weight_n.mean()),
        "max": float(weight_n.max()),
        "ess": total**2 / squares if squares else 0.0,
        "ess_share": total**2 / squares / len(rows) if squares else 0.0,
        "zero_share": float((weight_n == 0).mean()),
        "clipped_share": float((cut_n > 0).mean()) if clip else 0.0,
        "clipped_mass": float(cut_n.sum()) / total if total else 0.0,
        "top_block_share": float(np.bincount(block_n, weight_n).max()) / total if total else 0.0,
    }


def _no_rewards(rows: LoggedRows) -> str:
    """Why there is not even a mean reward; empty if there is one."""
    if not len(rows):
        return "no logged rows"
    return "" if np.isfinite(rows.reward_n).all() else "rewards are not finite"


def _unusable(rows: LoggedRows) -> str:
    """Why no estimate can be made at all; empty if one can."""
    bad = ~((rows.propensity_n > 0) & (rows.propensity_n <= 1))
    if bad.any():
        return (
            f"{int(bad.sum())} of {len(rows)} rows have no propensity above 0 and at most 1; "
            "leaving them out would change what is estimated"
        )
    if not ((rows.target_n >= 0) & (rows.target_n <= 1 + 1e-9)).all():
        return "the target policy's probabilities are not between 0 and 1"
    return _no_rewards(rows)


class _Sums:
    """All estimators are ratios of sums over rows, so a resample is a weighting of block sums."""

    def __init__(self, rows: LoggedRows, config: OpeConfig, on_policy: OnPolicyRows | None) -> None:
        own = on_policy or OnPolicyRows(reward_n=np.zeros(0), block_n=rows.block_n[:0])
        self._without = {
            "dm": _no_model(rows),
            "dr": _no_model(rows) or _no_weight(rows),
            "ips": _no_weight(rows),
            "snips": _no_weight(rows),
            "on_policy": "" if len(own.reward_n) else "the target policy has no rows of its own",
        }
        names_C, code_n = np.unique(
            np.concatenate([rows.block_n, own.block_n]), return_inverse=True
        )
        self.blocks, units = len(names_C), min(len(names_C), BLOCKS_MAX)
        if self.blocks > BLOCKS_MAX:
            code_n = (np.random.default_rng(config.seed).permutation(self.blocks) % units)[code_n]
        n = len(rows)
        columns = [(column, code_n[:n]) for column in _logged_columns(rows, config.clip)]
        columns += [(column, code_n[n:]) for column in (np.ones(len(own.reward_n)), own.reward_n)]
        self._by_CS = np.stack(
            [np.bincount(code, column, minlength=units) for column, code in columns], axis=1
        )

    def of_all(self) -> F64:
        """Sums over all rows, [1, S]."""
        total: F64 = self._by_CS.sum(0, keepdims=True)
        return total

    def resampled(self, config: OpeConfig) -> F64:
        """Sums of each resample, [R, S]: every block counts Poisson(1) times."""
        rng = np.random.default_rng(config.seed)
        units, columns = self._by_CS.shape
        sums_RS = np.empty((config.resamples, columns))
        step = max(1, _DRAWS_AT_ONCE // max(units, 1))
        for start in range(0, config.resamples, step):
            part_RS = sums_RS[start : start + step]
            part_RS[:] = rng.poisson(1.0, (len(part_RS), units)) @ self._by_CS
        return sums_RS

    def why_not(self, name: str) -> str:
        """Why an estimate does not exist; empty if it does."""
        return self._without.get(name, "")


def _no_model(rows: LoggedRows) -> str:
    known = rows.model_logged_n is not None and rows.model_target_n is not None
    return "" if known else "no reward model was given"


def _no_weight(rows: LoggedRows) -> str:
    taken = (rows.target_n > 0).any()
    return "" if taken else "the target policy takes none of the logged actions"


def _logged_columns(rows: LoggedRows, clip: float) -> list[F64]:
    """Columns of the sums that logged rows have, in their order."""
    with np.errstate(divide="ignore", invalid="ignore"):
        weight_n = rows.target_n / rows.propensity_n
    if clip:
        weight_n = np.minimum(weight_n, clip)
    none = np.zeros(len(rows))
    logged_n = none if rows.model_logged_n is None else rows.model_logged_n
    target_n = none if rows.model_target_n is None else rows.model_target_n
    doubly_n = target_n + weight_n * (rows.reward_n - logged_n)
    return [np.ones(len(rows)), rows.reward_n, weight_n, weight_n * rows.reward_n, target_n,
            doubly_n]  # fmt: skip


_RATIOS: Final[dict[str, Callable[[F64], F64]]] = {
    "logged": lambda s: s[:, _REWARD] / s[:, _ROWS],
    "ips": lambda s: s[:, _WEIGHTED] / s[:, _ROWS],
    "snips": lambda s: s[:, _WEIGHTED] / s[:, _WEIGHT],
    "dm": lambda s: s[:, _MODEL] / s[:, _ROWS],
    "dr": lambda s: s[:, _DOUBLY] / s[:, _ROWS],
    "on_policy": lambda s: s[:, _OWN_REWARD] / s[:, _OWN_ROWS],
    "mean_weight": lambda s: s[:, _WEIGHT] / s[:, _ROWS],
}


def _interval(made_R: F64, config: OpeConfig) -> tuple[float, float] | tuple[None, None]:
    # A resample may hold no row that the target takes, or none at all: a ratio of zeros.
    made_R = made_R[np.isfinite(made_R)]
    if len(made_R) <= config.resamples // 2:
        return None, None
    outside = (1 - config.level) / 2
    low, high = np.quantile(made_R, [outside, 1 - outside])
    return float(low), float(high)
