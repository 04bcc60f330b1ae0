"""`millrace snapshot`: list, show and verify snapshots. Changes nothing."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from infra.errors import InputError
from infra.snapshot_format import Manifest, SnapshotCorrupt, SnapshotRef
from infra.snapshot_store import SnapshotStore

EXIT_DAMAGED = 1


@click.group()
def command() -> None:
    """List, show and verify snapshots. Codes: 0 sound, 1 damaged, 2 not there."""


@command.command("ls")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def list_snapshots(*, folder: Path, as_json: bool) -> int:
    """All snapshots in FOLDER, oldest first."""
    store = _store(folder)
    rows = [_row(store, ref) for ref in store.refs()]
    if as_json:
        click.echo(json.dumps({"snapshots": rows}, indent=2))
    else:
        table = Table("snapshot", "kind", "parent", "written (UTC)", "parts", "bytes", box=None)
        for row in rows:
            values = [row.get(k, "") for k in ("kind", "parent", "created", "parts", "bytes")]
            table.add_row(row["snapshot"], *(str(v if v is not None else "") for v in values))
        Console().print(table)
    return EXIT_DAMAGED if any("damage" in row for row in rows) else 0


@command.command("show")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", default="latest")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def show(*, folder: Path, name: str, as_json: bool) -> int:
    """What snapshot NAME (`epoch/step`, `latest`) in FOLDER contains."""
    store = _store(folder)
    manifest = store.manifest(store.find(name))
    if as_json:
        click.echo(json.dumps(_details(manifest), indent=2, default=_json_value))
        return 0
    console = Console()
    details = _details(manifest)
    for key in ("snapshot", "kind", "parent", "created", "bytes"):
        console.print(f"{key:10}{details[key] if details[key] is not None else '-'}")
    table = Table("part", "class", "delta", "bytes", "sha256", box=None)
    for part in details["parts"]:
        for file in part["files"]:
            size, digest = f"{file['size']:,}", file["sha256"][:16]
            table.add_row(file["name"], part["class"], str(part["delta"]), size, digest)
    for group, files in details["linked"].items():
        size = sum(file["size"] for file in files)
        table.add_row(f"{group}/ ({len(files)} files)", "linked", "", f"{size:,}", "")
    console.print(table)
    console.print_json(json.dumps(manifest.meta, default=_json_value))
    return 0


@command.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", default="latest")
@click.option("--all", "every", is_flag=True, help="Verify every snapshot.")
@click.option(
    "--against",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A record log: prove that each of its samples was learned exactly once.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def verify(*, folder: Path, name: str, every: bool, logs: tuple[Path, ...], as_json: bool) -> int:
    """Check every byte of snapshot NAME (`epoch/step`, `latest`) in FOLDER."""
    store = _store(folder)
    refs = store.refs() if every else [store.find(name)]
    result: dict[str, list[str]] = {str(ref): [str(d) for d in store.verify(ref)] for ref in refs}
    sound = "valid"
    if logs:
        sound = "valid; each sample of the logs was learned exactly once"
        # Here, because it brings the pipeline and with it torch: seconds.
        from stream.ledger_check import verify_against

        for ref in refs:
            if not result[str(ref)]:
                result[str(ref)] += verify_against(store.manifest(ref).meta, logs)
    if as_json:
        click.echo(json.dumps({"snapshots": result}, indent=2))
    else:
        for text, problems in result.items():
            click.echo(f"snapshot {text}: {'not valid' if problems else sound}")
            for problem in problems:
                click.echo(f"  {problem}")
    return EXIT_DAMAGED if any(result.values()) else 0


def _store(folder: Path) -> SnapshotStore:
    store = SnapshotStore(folder)
    if not store.epochs.is_dir():
        raise InputError(f"'{folder}': expected a snapshot store (a folder with 'epochs/' in it)")
    return store


def _row(store: SnapshotStore, ref: SnapshotRef) -> dict[str, Any]:
    try:
        manifest = store.manifest(ref)
    except SnapshotCorrupt as error:
        return {"snapshot": str(ref), "kind": "damaged", "damage": str(error)}
    return {
        "snapshot": str(ref),
        "kind": manifest.kind,
        "parent": str(manifest.parent) if manifest.parent else None,
        "created": _utc(manifest.created_ms),
        "parts": len(manifest.parts),
        "bytes": manifest.size_bytes(),
    }


def _details(manifest: Manifest) -> dict[str, Any]:
    def files(entries: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in entries]

    return {
        "snapshot": str(manifest.ref),
        "kind": manifest.kind,
        "parent": str(manifest.parent) if manifest.parent else None,
        "created": _utc(manifest.created_ms),
        "bytes": manifest.size_bytes(),
        "parts": [
            {"name": p.name, "class": p.part_class, "delta": p.delta, "files": files(p.files)}
            for p in manifest.parts
        ],
        "linked": {name: files(entries) for name, entries in manifest.linked.items()},
        "meta": manifest.meta,
    }


def _utc(time_ms: int) -> str:
    time = dt.datetime.fromtimestamp(time_ms / 1000, tz=dt.UTC)
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _json_value(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
