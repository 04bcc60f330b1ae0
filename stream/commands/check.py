"""`millrace check`: how each configured field gets into the model. Runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text


@click.command("check")
@click.option("--config", "config_file", help="TOML file or name of a preset [default].")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting.")
@click.option("--log", type=click.Path(path_type=Path),
              help="A record log: how many of its events have each field.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    *, config_file: str | None, overrides: tuple[str, ...], log: Path | None, as_json: bool
) -> None:
    """Show how each configured field gets into the model, and what the times imply."""
    # Here, because a configuration names encoders, and those import torch: seconds.
    from stream.commands.check_facts import facts_of, log_facts
    from stream.composition import load_config

    config = load_config(config_file, overrides)
    facts = facts_of(config)
    if log is not None:
        facts["log"] = log_facts(config, log)
        facts["warnings"] += facts["log"].pop("warnings")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    for table in (
        _features(facts), _counters(facts), _histories(facts), _labels(facts), _times(facts),
        _model(facts), _memory(facts),
    ):  # fmt: skip
        console.print(table, "")
    if log is not None:
        _print_log(console, facts["log"])
    for line in facts["warnings"]:
        console.print(f"warning: {line}", markup=False, highlight=False, style="yellow")


def _features(facts: dict[str, Any]) -> Table:
    shares = facts.get("log", {}).get("share_with_field")
    columns = ["field", "path", "kind", "decoded", "table", "dim", "admitted", "rows", "column"]
    table = _table("fields", [*columns, "in log"] if shares is not None else columns)
    for f in facts["features"]:
        after = f["admit_after"]
        admitted = "" if after is None else f"after {after}" if after else "at once"
        kind = f"{f['kind']} × {f['length']}" if f["length"] else f["kind"]
        if f["scale"] not in (None, "none"):
            kind += f", {f['scale']}"
        rows = f"{f['rows_max']:,}" if f["rows_max"] else ""
        if f["expire_ms"]:
            rows += f", unused for {duration(f['expire_ms'])} expire"
        cells = [f["name"], f["path"], kind, f["decoded"], f["table"] or "standardised",
                 str(f["dim"] or ""), admitted, rows, f["column"]]  # fmt: skip
        if shares is not None:
            share = shares[f["name"]]
            cells.append("-" if share is None else f"{share:.1%}")
        _add(table, *cells)
    return table


def _counters(facts: dict[str, Any]) -> Table:
    names = ["counter", "keys", "state", "half-life", "prior weight", "dense inputs"]
    table = _table("counters", names)
    for c in facts["counters"]:
        decay = f"{c['half_life_hours']:g} h" if c["half_life_hours"] else "none"
        inputs = ", ".join(f"{name} [{place}]" for name, place in c["columns"].items())
        weight = f"{c['prior_weight']:g}" if c["prior_weight"] else ""
        keys = " × ".join(c["keys"]) or "everything"
        _add(table, c["name"], keys, c["state"], decay, weight, inputs)
    return table


def _histories(facts: dict[str, Any]) -> Table:
    table = _table("histories", ["history", "kinds", "length", "table", "content", "column"])
    for h in facts["histories"]:
        _add(table, h["name"], ", ".join(h["kinds"]), str(h["length"]), h["table"],
                      h["content"], h["column"])  # fmt: skip
    return table


def _labels(facts: dict[str, Any]) -> Table:
    table = _table("labels", ["kind", "window", "use"])
    for label in facts["labels"]:
        _add(table, label["kind"], duration(label["window_ms"]), label["use"])
    return table


def _times(facts: dict[str, Any]) -> Table:
    t = facts["times"]
    table = _table("times (event time)", ["what", "after", "made of"])
    rows = [
        ("a click changes features", "features_fresh_after_ms", "lateness"),
        ("a sample changes weights, full batches", "weights_fresh_after_ms_busy",
         "longest window + lateness"),
        ("a sample changes weights, quiet stream", "weights_fresh_after_ms",
         "longest window + lateness + linger"),
        ("an event is too late", "too_late_after_ms", "longest window + lateness + dedup horizon"),
    ]  # fmt: skip
    for what, name, parts in rows:
        _add(table, what, duration(t[name]), parts)
    _add(table, "predictions are made", "", f"at {t['predict_at']}")
    _add(table, "batches", "", f"{t['batch_size']:,} samples or linger {duration(t['linger_ms'])}")
    return table


def _model(facts: dict[str, Any]) -> Table:
    items, ranker = facts["items"], facts["ranker"]
    table = _table("model", ["what", "setting"])
    if items["content"]:
        used = items["attributes"]
        _add(table, "item encoder", items["encoder"])
        _add(table, "attributes encoded", used if isinstance(used, str) else ", ".join(used))
        for name in ("ignore", "numeric"):
            if items[name]:
                _add(table, f"attributes, {name}", ", ".join(items[name]))
        _add(table, "vectors", f"{items['dim']} × {items['dtype']}")
    else:
        _add(table, "item encoder", "none (items.dim = 0)")
    _add(table, "ranker", f"{ranker['name']}, trained on {ranker['label']}")
    _add(table, "inputs", f"{ranker['id_fields']} tables of ids, {ranker['dense_inputs']} numbers")
    off = [
        name for name, value in ranker["options"].items()
        if isinstance(value, dict) and value.get("on") is False
    ]  # fmt: skip
    if off or ranker["modules"]:
        _add(table, "modules on", ", ".join(ranker["modules"]) or "none")
        _add(table, "modules off", f"{', '.join(off) or 'none'} (`millrace methods` tells of them)")
    for name, value in _flat(ranker["options"]):
        if name.partition(".")[0] not in off:
            _add(table, f"  {name}", str(value))
    return table


def _memory(facts: dict[str, Any]) -> Table:
    table = _table("memory, at most", ["what", "setting", "rows", "bytes a row", "MiB"])
    for m in facts["memory"]:
        mib = f"{m['bytes_max'] / (1 << 20):,.0f}"
        rows, size = f"{m['rows_max']:,}", str(m["bytes_per_row"])
        _add(table, m["what"], m["setting"], rows, size, mib)
    return table


def _print_log(console: Console, log: dict[str, Any]) -> None:
    table = _table(f"log {log['path']}", ["what", "number"])
    rows = [("impressions", log["impressions"]), ("item events", log["items"])]
    rows += [(f"clicks '{kind}'", n) for kind, n in log["click_kinds"].items()]
    rows += [(f"rejected, {reason}", n) for reason, n in log["rejected_by_reason"].items()]
    rows += [(f"field nobody reads: {name}", n) for name, n in log["unknown_fields"].items()]
    for what, n in rows:
        _add(table, what, f"{n:,}")
    console.print(table, "")


def _flat(options: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in options.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))  # names may hold what rich takes for markup


def _table(title: str, columns: list[str]) -> Table:
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def duration(ms: float) -> str:
    """Milliseconds in the largest unit that keeps them short: `0.5 s`, `15 min`, `6 h`."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if ms >= size or (unit == "s" and ms >= 100):
            return f"{ms / size:.3g} {unit}"
    return f"{ms:g} ms"
