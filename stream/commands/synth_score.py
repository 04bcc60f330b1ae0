"""`millrace synth-score`: predictions of a synthetic stream against its truth."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from infra.errors import InputError
from stream.importers.synthetic_log import read_truth
from stream.importers.synthetic_truth import TruthScore, rows_of, score
from stream.times import time_ms

_IDS = ("request_id", "item_id", "ts_ms", "label")
_LINES = {
    "floor": "expected log loss of the truth",
    "floor_ne": "expected NE of the truth",
    "log_loss": "expected log loss of the model",
    "regret": "regret: mean KL(truth || model)",
    "calibration": "predictions over true probabilities",
    "z": "drawn clicks against the truth, standard errors",
}


def scores_of(truth_file: Path, predictions: Path, from_ms: int) -> dict[str, TruthScore]:
    """Scores of each arm of a prediction log, of impressions from `from_ms` on.

    Raises InputError where a file cannot be read or they do not belong together.
    """
    truth, _ = read_truth(truth_file)
    try:
        table = pq.read_table(predictions)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{predictions}: not a readable Parquet file ({error})") from error
    arms = {n: n.removeprefix("logit").lstrip(".") for n in table.column_names if "logit" in n}
    missing = [name for name in _IDS if name not in table.column_names]
    if missing or not arms:
        raise InputError(f"{predictions}: expected a prediction log, found no {missing or 'logit'}")
    columns = {name: table[name].to_numpy() for name in (*_IDS, *arms)}
    keep = columns["ts_ms"] >= from_ms
    if not keep.any():
        raise InputError(f"{predictions}: no prediction from {from_ms} on")
    columns = {name: column[keep] for name, column in columns.items()}
    try:
        rows = rows_of(truth, columns["request_id"], columns["item_id"])
    except (ValueError, TypeError) as error:
        raise InputError(f"{predictions}: {error}") from error
    p = truth["probability"][rows]
    return {arm: score(p, columns[name], columns["label"]) for name, arm in arms.items()}


@click.command("synth-score")
@click.argument("truth", type=click.Path(path_type=Path), metavar="TRUTH")
@click.argument("predictions", type=click.Path(path_type=Path), metavar="PREDICTIONS")
@click.option("--from", "from_", metavar="TIME", help="First impression (ISO 8601, UTC).")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def command(*, truth: Path, predictions: Path, from_: str | None, as_json: bool) -> None:
    """Say how far PREDICTIONS of a replay are from the TRUTH that `millrace synth` wrote.

    The label window of the configuration must be the one that the truth is about.
    """
    scores = scores_of(truth, predictions, time_ms(from_) if from_ else 0)
    if as_json:
        click.echo(json.dumps({arm or "all": asdict(s) for arm, s in scores.items()}))
        return
    for arm, found in scores.items():
        table = Table(title=f"{arm + ': ' if arm else ''}{found.rows:,} predictions")
        table.add_column("score")
        table.add_column("value", justify="right")
        for name, words in _LINES.items():
            table.add_row(words, f"{getattr(found, name):.5f}")
        Console().print(table)
