"""`millrace topics`: creates the topics that are missing and says what is wrong with the others."""

from __future__ import annotations

import click

from infra.errors import InputError
from stream.commands.kafka_options import kafka_options, shell_config


@click.command()
@kafka_options
@click.option("--check", "only_check", is_flag=True, help="Create nothing.")
def command(
    *, config_file: str | None, overrides: tuple[str, ...], broker: str | None, only_check: bool
) -> None:
    """Create and check the topics: partitions, co-partitioning, compaction, retention.

    Ends with code 2 where something keeps a worker from running.
    """
    from stream.kafka.connection import admin_client
    from stream.kafka.logs import set_up_logs
    from stream.kafka.topics import check, create_missing

    set_up_logs()
    config = shell_config(config_file, overrides, broker)
    with admin_client(config.kafka) as admin:
        for name in () if only_check else create_missing(admin, config.topics):
            click.echo(f"created '{name}'")
        findings = check(admin, config.topics)
    for finding in findings:
        click.echo(f"{finding.level}: {finding.text}", err=True)
    if any(finding.level == "error" for finding in findings):
        raise InputError("the topics are not fit for a worker: see above")
    click.echo(f"topics at {config.kafka.broker} are as they should be" if not findings else
               f"topics at {config.kafka.broker} can be used")  # fmt: skip
