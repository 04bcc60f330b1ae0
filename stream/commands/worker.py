"""`millrace worker`: join, train and snapshots from Kafka. The work is in `stream/kafka/worker`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from infra.errors import InputError
from stream.commands.kafka_options import kafka_options


@click.command()
@kafka_options
@click.option("--snapshots", "folder", required=True, type=click.Path(path_type=Path),
              help="Folder of this group's snapshots, shared by its standbys.")  # fmt: skip
@click.option("--new-log", is_flag=True,
              help="Keep model and user state, begin at the start of another log.")  # fmt: skip
@click.option(
    "--predictions",
    is_flag=True,
    help="Keep all predictions in the folder, and which item vectors came late.",
)
@click.option("--status", "status_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write here about once a second what the worker does, as JSON.")  # fmt: skip
@click.option("--role", help="Not built: the worker joins and trains in one process.")
@click.option("--print-config", is_flag=True, help="Print the configuration and stop.")
def command(
    *,
    config_file: str | None,
    overrides: tuple[str, ...],
    broker: str | None,
    folder: Path,
    new_log: bool,
    predictions: bool,
    status_file: Path | None,
    role: str | None,
    print_config: bool,
) -> None:
    """Learn from impressions and clicks until Ctrl-C or SIGTERM.

    A further worker of the same group stands by and takes over from the newest snapshot.
    """
    from infra.config_text import render
    from infra.otel import connect
    from stream.commands.replay import package_version
    from stream.composition import load_config
    from stream.kafka.engine import engine_maker
    from stream.kafka.logs import set_up_logs
    from stream.kafka.settings import ShellConfig, with_broker
    from stream.kafka.worker import run_worker
    from stream.metric_table import METRICS
    from stream.metrics import PipelineProbe
    from stream.warm_up import warm_up

    if role is not None:
        raise InputError(f"--role {role}: split roles are not built; run `millrace worker` alone")
    config = load_config(config_file, overrides)
    shell = with_broker(
        ShellConfig(kafka=config.kafka, topics=config.topics, worker=config.worker), broker
    )
    if status_file is not None:
        shell = replace(shell, worker=replace(shell.worker, status_file=str(status_file)))
    config = replace(config, kafka=shell.kafka, worker=shell.worker)
    if print_config:
        click.echo(render(config), nl=False)
        return
    _check_folder(folder)
    set_up_logs()
    warm_up(config)
    telemetry = connect(
        config.telemetry, METRICS, service="millrace-worker", version=package_version()
    )
    try:
        maker = engine_maker(
            config, folder, predictions=predictions, telemetry=telemetry,
            note=lambda line: click.echo(line, err=True),
        )  # fmt: skip
        run_worker(
            shell, maker, idle_ms=config.stream.idle_ms, new_log=new_log,
            note_lags=PipelineProbe(telemetry).lags,
        )  # fmt: skip
    finally:
        telemetry.close()
    click.echo(f"stopped; snapshots are in {folder}")


def _check_folder(folder: Path) -> None:
    """Raise InputError where snapshots could not be written, before anything is started."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--snapshots {folder}: cannot be written: {error.strerror or error}"
        ) from error
