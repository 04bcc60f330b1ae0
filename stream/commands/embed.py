"""`millrace embed`: the embedder process. The work is in `stream/kafka/embed`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import click

from stream.commands.kafka_options import kafka_options


@click.command()
@kafka_options
@click.option("--until-end", is_flag=True, help="Stop once all items that are there are embedded.")
@click.option("--backfill", is_flag=True,
              help="Go through all items from the beginning on, then stop.")  # fmt: skip
@click.option("--state", type=click.Path(path_type=Path, file_okay=False),
              help="Keep here what was encoded, instead of reading it at each start.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(
    *,
    config_file: str | None,
    overrides: tuple[str, ...],
    broker: str | None,
    until_end: bool,
    backfill: bool,
    state: Path | None,
    as_json: bool,
) -> None:
    """Read item events, write item vectors; until Ctrl-C or SIGTERM.

    Several embedders of one group share the partitions. Each content of an item is encoded once.
    --backfill goes through the whole catalogue, shows how far it is, and needs the group for
    itself; begun again after an interruption, it encodes only what is missing. Without --config
    the encoder of the default preset is used.
    """
    import torch

    from infra.otel import connect
    from stream.commands.embed_progress import embed_progress
    from stream.commands.replay import package_version
    from stream.composition import embedder_of, load_config
    from stream.kafka.embed import EmbedOptions, run_embedder
    from stream.kafka.embed_sources import embed_sources
    from stream.kafka.logs import set_up_logs
    from stream.kafka.settings import ShellConfig, with_broker
    from stream.metric_table import METRICS

    set_up_logs()
    config = load_config(config_file, overrides)
    settings = replace(config.embed, state=str(state)) if state else config.embed
    shell = with_broker(
        ShellConfig(kafka=config.kafka, topics=config.topics, worker=config.worker, embed=settings),
        broker,
    )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    embedder = embedder_of(config)
    embedder.load()
    sources = embed_sources(shell)
    logging.getLogger(__name__).info("encoder %s", embedder.version)
    with contextlib.ExitStack() as stack:
        telemetry = connect(
            config.telemetry, METRICS, service="millrace-embed", version=package_version()
        )
        stack.callback(telemetry.close)
        told = stack.enter_context(embed_progress()) if backfill else _silent
        options = EmbedOptions(
            until_end=until_end, backfill=backfill, told=told, telemetry=telemetry
        )
        counts = asyncio.run(run_embedder(shell, embedder, sources, options))
    click.echo(json.dumps(counts.to_map()) if as_json else counts.text())


def _silent(_done: int, _total: int, _items: int) -> None:
    pass
