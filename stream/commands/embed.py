"""`millrace embed`: the embedder process. The work is in `stream/kafka/embed`."""

from __future__ import annotations

import asyncio
import json
import logging

import click

from stream.commands.kafka_options import kafka_options, shell_config


@click.command()
@kafka_options
@click.option("--until-end", is_flag=True, help="Stop once all items that are there are embedded.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(
    *,
    config_file: str | None,
    overrides: tuple[str, ...],
    broker: str | None,
    until_end: bool,
    as_json: bool,
) -> None:
    """Read item events, write item vectors; until Ctrl-C or SIGTERM.

    Several embedders of one group share the partitions. Without --config the encoder of the
    default preset is used.
    """
    from infra.errors import InputError
    from stream.composition import embedder_of, load_config
    from stream.kafka.connection import admin_client
    from stream.kafka.embed import run_embedder
    from stream.kafka.logs import set_up_logs
    from stream.kafka.topics import describe

    set_up_logs()
    config = shell_config(config_file, overrides, broker)
    topics = config.topics
    embedder = embedder_of(load_config(config_file, overrides))
    embedder.load()
    with admin_client(config.kafka) as admin:
        facts = describe(admin, [topics.items, topics.item_vectors, topics.dead_letters])
    for name in (topics.items, topics.item_vectors, topics.dead_letters):
        if name not in facts:
            raise InputError(f"topic '{name}' does not exist (`millrace topics` creates it)")
    same = facts[topics.items].partitions == facts[topics.item_vectors].partitions
    logging.getLogger(__name__).info("encoder %s", embedder.version)
    counts = asyncio.run(run_embedder(config, embedder, same_partitions=same, until_end=until_end))
    if as_json:
        click.echo(json.dumps({"items": counts.items, "vectors": counts.vectors}))
        return
    click.echo(
        f"{counts.items:,} items, {counts.vectors:,} vectors written, "
        f"{counts.unchanged:,} unchanged, {counts.rejected:,} rejected"
    )
