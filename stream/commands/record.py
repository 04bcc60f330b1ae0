"""`millrace record`: topics to a record log. The reading is in `stream/kafka/record`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from infra.errors import FaultError, InputError
from stream.commands.kafka_options import kafka_options, shell_config
from stream.commands.progress import progress
from stream.kafka.settings import ShellConfig


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@kafka_options
@click.option("--to-end", is_flag=True, help="What is there now (the default).")
@click.option("--until-watermark", is_flag=True,
              help="Wait until impressions and clicks end with watermark records.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0), help="Wait so long, then what is there.")
@click.option("--no-items", is_flag=True, help="Leave items and item-vectors out.")
def command(
    *,
    out: Path,
    config_file: str | None,
    overrides: tuple[str, ...],
    broker: str | None,
    to_end: bool,
    until_watermark: bool,
    seconds: float | None,
    no_items: bool,
) -> None:
    """Write the topics to the record log OUT, in the order in which a worker uses the records.

    All partitions are read from the beginning, to an end that is fixed before reading.
    """
    if sum((to_end, until_watermark, seconds is not None)) > 1:
        raise click.UsageError("choose one of --to-end, --until-watermark and --seconds")
    if out.exists():
        raise InputError(f"record log {out}: is there already; choose another name")
    config = shell_config(config_file, overrides, broker)
    written = asyncio.run(
        _record(
            config, out, until_watermark=until_watermark, seconds=seconds, with_items=not no_items
        )
    )
    click.echo(f"wrote {written:,} records of {config.kafka.broker} to {out}")


async def _record(
    config: ShellConfig,
    out: Path,
    *,
    until_watermark: bool,
    seconds: float | None,
    with_items: bool,
) -> int:
    from aiokafka.errors import KafkaError

    from stream.kafka.connection import admin_client
    from stream.kafka.logs import set_up_logs
    from stream.kafka.record import Recorder
    from stream.kafka.topics import describe, source_ids

    set_up_logs()
    topics = config.topics
    names = [*((topics.items, topics.item_vectors) if with_items else ()), *topics.stream]
    with admin_client(config.kafka) as admin:
        facts = describe(admin, names)
        missing = [name for name in topics.stream if name not in facts]
        if missing:
            raise InputError(f"topic '{missing[0]}' does not exist at {config.kafka.broker}")
        identities = source_ids(admin, facts)
    partitions = {name: facts[name].partitions for name in names if name in facts}
    try:
        async with Recorder(config.kafka, partitions) as recorder:
            if until_watermark:
                ends = " and ".join(f"'{name}'" for name in topics.stream)
                click.echo(f"waiting until {ends} end with watermark records", err=True)
                await recorder.until_watermark(topics.stream)
            elif seconds is not None:
                await asyncio.sleep(seconds)
            with progress("record") as told:
                return await recorder.write(out, "/".join(sorted(identities.values())), told)
    except KafkaError as error:
        raise FaultError(f"broker {config.kafka.broker}: {error}") from error
