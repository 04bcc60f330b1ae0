"""`millrace ope`: what another policy would have earned on a log with propensities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from infra.errors import InputError
from stream.columns import I64
from stream.evaluation.ope import ESTIMATORS, LoggedRows, OnPolicyRows, OpeConfig, off_policy
from stream.evaluation.ope_policies import (
    CellPolicy,
    cross_fitted_rates,
    empirical_policy,
    uniform_policy,
)
from stream.logged_actions import LoggedActions, read_actions, value_keys
from stream.policy_file import PolicyRows, read_policy

UNIFORM = "uniform"


@dataclass(frozen=True, slots=True)
class Selector:
    """Rows whose field `path` has `value`."""

    path: str
    value: str

    def rows(self, actions: LoggedActions) -> NDArray[np.bool_]:
        """Which rows these are; raises InputError where there is none."""
        found = np.isin(actions.fields[self.path], value_keys(self.path, self.value))
        if not found.any():
            raise InputError(f"no impression has {self.path} = {self.value}")
        return found


@click.command("ope")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--logged", metavar="FIELD=VALUE",
              help="Rows of the logging policy, such as context.policy=random [all].")  # fmt: skip
@click.option("--target", required=True, metavar="POLICY",
              help="FIELD=VALUE, 'uniform' or FILE.parquet: the policy to judge.")  # fmt: skip
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Only these rows.")
@click.option("--cell", "cells", multiple=True, metavar="FIELD",
              help="What the target's choice depends on, such as impression.position.")  # fmt: skip
@click.option("--label", default="click", show_default=True, help="Kind of click: the reward.")
@click.option("--window-ms", default=60_000, show_default=True, help="How late it may come.")
@click.option("--clip", default=0.0, metavar="W", help="Bound of the weights [none].")
@click.option("--blocks", default="user", type=click.Choice(["user", "request"]),
              show_default=True, help="What is resampled whole.")  # fmt: skip
@click.option("--prior-weight", default=100.0, show_default=True,
              help="Impressions that pull the reward model's rates to their mean.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Of the resampling.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(  # one parameter an option
    *,
    logs: tuple[Path, ...],
    logged: str | None,
    target: str,
    where: tuple[str, ...],
    cells: tuple[str, ...],
    label: str,
    window_ms: int,
    clip: float,
    blocks: str,
    prior_weight: float,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Estimate the value of another policy from record LOGS whose impressions have propensities.

    With --target FIELD=VALUE, such as context.policy=bts, the target is what another policy did, on
    average in each cell, in the rows selected; their own mean reward is shown beside the estimates.
    A file has its probability of each logged choice: request_id, item_id, probability.
    """
    try:
        config = OpeConfig(clip=clip, seed=seed)
    except ValueError as error:
        raise InputError(f"--clip: {error}") from error
    if prior_weight <= 0:
        raise InputError(f"--prior-weight: expected a number above 0, got {prior_weight}")
    selectors = [_selector("--where", text) for text in where]
    file = Path(target) if target.endswith(".parquet") else None
    own = None if target == UNIFORM or file is not None else _selector("--target", target)
    chosen = None if logged is None else _selector("--logged", logged)
    used = [s.path for s in (*selectors, own, chosen) if s is not None]
    actions = read_actions(logs, [*used, *cells], label=label, window_ms=window_ms)
    inside = np.ones(len(actions), np.bool_)
    for selector in selectors:
        inside &= selector.rows(actions)
    rows = inside if chosen is None else inside & chosen.rows(actions)
    own_rows = None if own is None else inside & own.rows(actions)
    if not rows.any() or (own_rows is not None and not own_rows.any()):
        raise InputError("no impression is left: --where excludes all of --logged or of --target")
    block_n = actions.user_n if blocks == "user" else actions.request_n
    if file is None:
        result = _by_cells(actions, rows, own_rows, cells, block_n, prior_weight, config)
    else:
        result = _by_file(actions, rows, read_policy(file, actions), block_n, config)
    result |= {"blocks_by": blocks, "rejected": actions.rejected}
    text = json.dumps(result, indent=2)
    if out is not None:
        try:
            out.write_text(text + "\n")
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error})") from error
    if as_json:
        click.echo(text)
    else:
        _show(result)


def _selector(option: str, text: str) -> Selector:
    path, equals, value = text.partition("=")
    if not equals or not path or not value:
        raise InputError(f"{option} '{text}': expected FIELD=VALUE, such as context.policy=random")
    return Selector(path, value)


def _by_cells(
    actions: LoggedActions,
    rows: NDArray[np.bool_],
    own_rows: NDArray[np.bool_] | None,
    cells: tuple[str, ...],
    block_n: I64,
    prior_weight: float,
    config: OpeConfig,
) -> dict[str, Any]:
    """A target of shares by cell: those of `own_rows`, or all equal without these."""
    cell_n, cell_count = _codes([actions.fields[path] for path in cells], len(actions))
    item_n, item_count = _codes([actions.item_n], len(actions))
    shape = {"cells": cell_count, "actions": item_count}
    target: CellPolicy
    if own_rows is None:
        target = uniform_policy(cell_n[rows], item_n[rows], **shape)
    else:
        target = empirical_policy(cell_n[own_rows], item_n[own_rows], **shape)
    known = target.known()[cell_n]
    used = rows & known
    if not used.any():
        raise InputError("--cell: the target policy has no row in any cell of the logged ones")
    logged_r, expected_r = cross_fitted_rates(
        cell_n[used], item_n[used], actions.reward_n[used], block_n[used], target,
        prior_weight=prior_weight,
    )  # fmt: skip
    made = LoggedRows(
        reward_n=actions.reward_n[used],
        propensity_n=actions.propensity_n[used],
        target_n=target.share_CA[cell_n[used], item_n[used]],
        block_n=block_n[used],
        model_logged_n=logged_r,
        model_target_n=expected_r,
    )
    own = None
    if own_rows is not None:
        own = OnPolicyRows(reward_n=actions.reward_n[own_rows], block_n=block_n[own_rows])
    left_out = int((rows & ~known).sum())
    return {**off_policy(made, config, own), "rows_without_target": left_out}


def _by_file(
    actions: LoggedActions,
    rows: NDArray[np.bool_],
    policy: PolicyRows,
    block_n: I64,
    config: OpeConfig,
) -> dict[str, Any]:
    """A target, and perhaps a reward model, by row."""
    used = rows & policy.known_n
    if not used.any():
        raise InputError("--target: the file has none of the logged requests and items")
    model = (policy.model_logged_n, policy.model_target_n)
    made = LoggedRows(
        reward_n=actions.reward_n[used],
        propensity_n=actions.propensity_n[used],
        target_n=policy.probability_n[used],
        block_n=block_n[used],
        model_logged_n=None if model[0] is None else model[0][used],
        model_target_n=None if model[1] is None else model[1][used],
    )
    left_out = int((rows & ~policy.known_n).sum())
    return {**off_policy(made, config), "rows_without_target": left_out}


def _codes(columns: list[I64], rows: int) -> tuple[I64, int]:
    """A number for each distinct combination, and how many there are."""
    if not columns:
        return np.zeros(rows, np.int64), 1
    found, code_n = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return code_n.reshape(-1), len(found)


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['rows']:,} logged rows, {result['blocks']:,} blocks by "
                  f"{result['blocks_by']}", title_justify="left")  # fmt: skip
    for name in ("estimate", "value", "95 % interval", "minus the target's own rows"):
        table.add_column(name, justify="left" if name == "estimate" else "right")
    differences = result.get("difference", {})
    for name in ("logged", *ESTIMATORS, "on_policy"):
        if name in result:
            gap = differences.get(name)
            against = "" if gap is None else f"{_number(gap['value'])} {_interval(gap)}"
            table.add_row(name, _number(result[name]["value"]), _interval(result[name]), against)
    console = Console()
    console.print(table)
    w = result["weights"]
    if w:
        console.print(
            f"weights: mean {w['mean']:.3f}, max {w['max']:.1f}, effective rows {w['ess']:,.0f} "
            f"({w['ess_share']:.1%}), never chosen by the target {w['zero_share']:.1%}, clipped "
            f"{w['clipped_share']:.2%} of rows and {w['clipped_mass']:.2%} of weight, heaviest "
            f"block {w['top_block_share']:.1%}"
        )
    if result["rows_without_target"]:
        console.print(f"left out: {result['rows_without_target']:,} rows for which the target is "
                      "not known")  # fmt: skip
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    named: dict[str, list[str]] = {}
    for path, why in result["reasons"].items():
        named.setdefault(why, []).append(path)
    for why, paths in named.items():
        console.print(f"{', '.join(paths)}: {why}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _interval(value: dict[str, float | None]) -> str:
    return f"[{_number(value['low'])}, {_number(value['high'])}]"
