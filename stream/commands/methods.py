"""`millrace methods`: which presets, learners and modules there are, and their options. Runs none.

What each is worth is measured, and stands in the documentation: nothing here repeats a figure.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import tomllib
from collections.abc import Container
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.config import PRESETS
from infra.errors import InputError

_FIGURES = (
    "What each gives and costs, measured: docs/quality.md (Methods) and its page in docs/methods/."
)
Facts = dict[str, Any]


@click.command("methods")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(*, name: str | None, as_json: bool) -> None:
    """Show the presets, learners and modules there are; with NAME, the options of one of them."""
    facts = facts_of()
    if name is not None:
        facts = {part: rows for part, rows in facts.items() if name in rows}
        if not facts:
            raise InputError(_unknown(name))
        facts = {part: {name: rows[name]} for part, rows in facts.items()}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part, rows in facts.items():
        console.print(_table(part, rows), "")
        if name is not None and "options" in rows[name]:
            console.print(_options(rows[name]["options"]), "")
    if name is None:
        console.print("Options of one: millrace methods NAME. " + _FIGURES, highlight=False)


def facts_of() -> dict[str, dict[str, Facts]]:
    """By part and name: `about`, a sentence; `use`, how it is chosen; `options` with defaults."""
    # Here, because learners import torch: seconds.
    from learners.catalog import ENTRIES
    from learners.modules.catalog import BUILDERS, ModulesConfig

    modules = ModulesConfig()
    data, methods = _presets()
    return {
        "presets of data sets": data,
        "presets of methods": methods,
        "modules of id_content": {
            name: {
                "about": _about(name, builder),
                "use": f"ranker.options.{name}.on = true",
                "needs": _needs(name, builder),
                "options": _defaults(type(getattr(modules, name)), ()),
            }
            for name, builder in BUILDERS.items()
        },
        "learners": {
            name: {
                "about": _about(name, entry.config),
                "use": f"ranker.name = {name}",
                "options": _defaults(entry.config, BUILDERS),
            }
            for name, entry in ENTRIES.items()
        },
    }


def _needs(name: str, module: Any) -> str:
    if name == "qarm":
        return "items.codebook"
    return "item vectors" if module.reads_vectors else ""


def _presets() -> tuple[dict[str, Facts], dict[str, Facts]]:
    """Those that say what is predicted, and those that only change another one."""
    data: dict[str, Facts] = {}
    methods: dict[str, Facts] = {}
    for file in sorted(PRESETS.glob("*.toml")):
        text = file.read_text()
        comment = re.match(r"(?:# .*\n)*", text)
        assert comment is not None
        words = " ".join(line.removeprefix("# ") for line in comment[0].splitlines())
        is_whole = "label" in tomllib.loads(text)
        into, name = (data, file.stem) if is_whole else (methods, f"default+{file.stem}")
        into[file.stem] = {"about": _sentence(words), "use": f"--config {name}"}
    return data, methods


def _sentence(words: str) -> str:
    """The first sentence, without the command in brackets that the column beside it shows."""
    first = re.split(r"(?<=\.)\s", re.sub(r"\s*\(`--config [^)]*\)|: `--config [^`]*`", "", words))
    return first[0]


def _about(name: str, what: Any) -> str:
    """The first line of a module's docstring, which begins with the name; else the object's own."""
    line = (sys.modules[what.__module__].__doc__ or "").splitlines()[0]
    own = f"`{name}`: "
    if not line.startswith(own):
        return (what.__doc__ or "").splitlines()[0]
    return line.removeprefix(own)


def _defaults(config_type: Any, leave_out: Container[str]) -> Facts:
    """Of each option but those; a configuration of defaults alone need not be a valid one."""
    out: Facts = {}
    for field in dataclasses.fields(config_type):
        if field.name in leave_out:
            continue
        make: Any = field.default_factory
        value: Any = field.default if make is dataclasses.MISSING else make()
        is_table = dataclasses.is_dataclass(value) and not isinstance(value, type)
        out[field.name] = dataclasses.asdict(value) if is_table else value
    return out


def _unknown(name: str) -> str:
    known = sorted({own for rows in facts_of().values() for own in rows})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    return f"methods: no preset, learner or module '{name}'; {hint}"


def _table(title: str, rows: dict[str, Facts]) -> Table:
    parts = [
        part for part in ("about", "needs", "use") if any(part in row for row in rows.values())
    ]
    heads = {"about": "what it is", "needs": "needs", "use": "to use it"}
    columns = ["name", *(heads[part] for part in parts)]
    table = Table(*columns, title=title, title_justify="left", box=None)
    for name, row in rows.items():
        table.add_row(Text(name), *(Text(row[part]) for part in parts))
    return table


def _options(options: Facts) -> Table:
    table = Table("option", "default", title="options", title_justify="left", box=None)
    for name, value in options.items():
        table.add_row(Text(name), Text(json.dumps(value)))
    return table
