"""`millrace items migrate`: from one encoder version to another, in steps that survive a kill."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from infra.errors import InputError
from stream.commands.kafka_options import kafka_options
from stream.migration_state import MigrationState, read_state, write_state


@click.command("migrate")
@kafka_options
@click.option(
    "--to", "to", metavar="CONFIG", help="TOML file, or presets: its [items] make the new vectors."
)
@click.option(
    "--state",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep here how far it is.",
)
@click.option(
    "--min-coverage",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the items that must have a new vector.",
)
@click.option("--status", "only", flag_value="status", help="Only show how far it is.")
@click.option(
    "--adopt",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="SNAPSHOTS",
    help="Make a snapshot of the new version alone; the worker is stopped.",
)
@click.option(
    "--finish",
    "only",
    flag_value="finish",
    help="Take the vectors of the version before off the topic.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON.")
def migrate(
    *,
    config_file: str | None, overrides: tuple[str, ...], broker: str | None, to: str | None,
    folder: Path, min_coverage: float, only: str | None, adopt: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Change the encoder of a running model without a jump of any score.

    First, with --to: makes the new version's vectors of all items, beside those of --config, and
    tells how many items have one; interrupted, it goes on where it was. Then run the worker with
    items.next, which reads both and lets the present version fade; stop it, --adopt its snapshots,
    run it with the new configuration alone, and --finish.
    """
    state = read_state(folder)
    if only == "status":
        _show(_begun(state, folder), as_json=as_json)
        return
    run = _Run(config_file, overrides, broker, folder)
    if adopt is not None:
        state = run.adopt(_begun(state, folder), adopt)
    elif only == "finish":
        state = run.finish(_begun(state, folder))
    else:
        state = run.backfill(state, to, min_coverage)
    _show(state, as_json=as_json)


def _begun(state: MigrationState | None, folder: Path) -> MigrationState:
    if state is None:
        raise InputError(f"{folder}: no migration was begun here; begin it with --to CONFIG")
    return state


class _Run:
    """One call of the command."""

    def __init__(
        self, config_file: str | None, overrides: tuple[str, ...], broker: str | None, folder: Path
    ) -> None:
        from stream.composition import load_config
        from stream.kafka.logs import set_up_logs
        from stream.kafka.settings import ShellConfig, with_broker

        set_up_logs()
        self.folder = folder
        self.config = c = load_config(config_file, overrides)
        self.shell = with_broker(
            ShellConfig(kafka=c.kafka, topics=c.topics, worker=c.worker, embed=c.embed), broker
        )

    def backfill(
        self, state: MigrationState | None, to: str | None, min_coverage: float
    ) -> MigrationState:
        """Make what is missing of the new version, and count."""
        from stream.commands.embed_progress import embed_progress
        from stream.composition import embedder_of, load_config
        from stream.kafka.embed import EmbedOptions, run_embedder
        from stream.kafka.embed_sources import embed_sources

        to = to or (state.to if state else None)
        if to is None:
            raise InputError("--to: name the configuration whose [items] make the new vectors")
        items = load_config(to, ()).items
        embedder = embedder_of(replace(self.config, items=items))
        before = embedder_of(self.config).version
        fresh = MigrationState(before=before, version=embedder.version, to=to)
        if before == embedder.version:
            raise InputError(f"--to {to}: makes vectors of the present encoder '{before}' already")
        if state and (state.before, state.version) != (fresh.before, fresh.version):
            raise InputError(
                f"{self.folder}: a migration from '{state.before}' to '{state.version}' was begun "
                f"here, not from '{fresh.before}' to '{fresh.version}'; use another --state"
            )
        write_state(self.folder, state or fresh)
        embedder.load()
        sources = embed_sources(self.shell)
        shell = replace(
            self.shell, embed=replace(self.shell.embed, state=str(self.folder / "embedded"))
        )
        with embed_progress() as told:
            options = EmbedOptions(backfill=True, told=told)
            counts = asyncio.run(run_embedder(shell, embedder, sources, options))
        click.echo(counts.text(), err=True)
        covered, total = self._coverage(before, embedder.version, sources.vectors_partitions)
        counted = replace(state or fresh, covered=covered, items=total)
        enough = counted.coverage >= min_coverage
        state = counted.at("ready" if enough else "backfill")
        write_state(self.folder, state)
        return state

    def adopt(self, state: MigrationState, snapshots: Path) -> MigrationState:
        """Make a snapshot of the new version alone."""
        from stream.version_adoption import adopt_version

        if state.phase == "backfill":
            raise InputError(
                f"{self.folder}: {state.covered:,} of {state.items:,} items have a new vector; go "
                "on with --to first"
            )
        scratch = Path(tempfile.mkdtemp(prefix=".adopt-", dir=_existing(snapshots)))
        try:
            adopted = adopt_version(snapshots, scratch, (state.before, state.version))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        state = state.at("adopted", snapshot=str(adopted.ref))
        write_state(self.folder, state)
        return state

    def finish(self, state: MigrationState) -> MigrationState:
        """Take the rows of the version before off the topic."""
        from stream.kafka.embed_sources import embed_sources
        from stream.kafka.version_topic import remove_version

        if state.phase not in ("adopted", "done"):
            raise InputError(
                f"{self.folder}: the migration is in phase '{state.phase}': the vectors of "
                f"'{state.before}' are still needed; --adopt comes first"
            )
        partitions = embed_sources(self.shell).vectors_partitions
        with _progress("tombstones") as told:
            removed = asyncio.run(remove_version(self.shell, partitions, state.before, told))
        state = state.at("done", removed=state.removed + removed)
        write_state(self.folder, state)
        return state

    def _coverage(self, before: str, version: str, partitions: int) -> tuple[int, int]:
        from stream.kafka.version_topic import read_versions

        with _progress("coverage") as told:
            rows = asyncio.run(read_versions(self.shell, partitions, told))
        return rows.coverage(before, version)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the worker's snapshot folder")
    return folder


def _progress(what: str) -> Any:
    """Tells of records read, on a terminal alone."""
    import sys
    from contextlib import contextmanager

    @contextmanager
    def telling() -> Any:
        silent: Callable[[int, int], None] = lambda _done, _total: None  # noqa: E731
        if not sys.stderr.isatty():
            yield silent
            return
        with click.progressbar(length=1, label=what, file=sys.stderr) as bar:

            def tell(done: int, total: int) -> None:
                bar.length = max(total, 1)
                bar.update(done - bar.pos)

            yield tell

    return telling()


def _show(state: MigrationState, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(state.to_map()))
        return
    click.echo(f"phase       {state.phase}")
    click.echo(f"from        {state.before}")
    click.echo(f"to          {state.version} ({state.to})")
    click.echo(f"coverage    {state.covered:,} of {state.items:,} items ({state.coverage:.2%})")
    if state.snapshot:
        click.echo(f"snapshot    {state.snapshot}")
    if state.removed:
        click.echo(f"removed     {state.removed:,} rows of the version before")
    click.echo(f"next        {_NEXT[state.phase].format(to=state.to)}")


_NEXT = {
    "backfill": "some items have no new vector: call again, or lower --min-coverage",
    "ready": "millrace embed --config {to}, beside the present embedder; then the worker with "
    "--set items.next={to}",
    "adopted": "the worker with --config {to} alone; when all workers have changed, --finish",
    "done": "nothing: only the new version is there",
}
