"""`millrace produce`: sends a record log to Kafka. The sending is in `stream/kafka/produce`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from infra.errors import InputError
from stream.commands.kafka_options import kafka_options, shell_config
from stream.commands.progress import progress
from stream.record_log import RecordLog, RecordLogUnusable


class Speed(click.ParamType):
    """A factor above 0, or `max`."""

    name = "X"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        """None for `max`."""
        if value is None or value == "max":
            return None
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            self.fail(f"expected a factor above 0 or 'max', got '{value}'", param, ctx)
        return speed


@click.command()
@click.argument("log_file", metavar="LOG", type=click.Path(path_type=Path))
@kafka_options
@click.option("--speed", type=Speed(), default="max", show_default=True,
              help="Event time over wall time, such as 60; or max.")  # fmt: skip
@click.option("--no-watermark", is_flag=True, help="Leave the windows open at the end.")
@click.option("--items-only", is_flag=True, help="Send items and item vectors only.")
@click.option("--skip-items", is_flag=True, help="Send no items and no item vectors.")
def command(
    *,
    log_file: Path,
    config_file: str | None,
    overrides: tuple[str, ...],
    broker: str | None,
    speed: float | None,
    no_watermark: bool,
    items_only: bool,
    skip_items: bool,
) -> None:
    """Send the records of LOG to the topics and partitions they came from.

    Kafka's timestamps are the time of sending. The stream ends with watermark records that close
    all windows; how far they lie behind the last event follows from the configuration.
    """
    from stream.kafka.logs import set_up_logs
    from stream.kafka.produce import ProduceOptions, check_partitions, produce

    set_up_logs()
    if items_only and skip_items:
        raise click.UsageError("--items-only and --skip-items leave nothing to send")
    config = shell_config(config_file, overrides, broker)
    try:
        log = RecordLog(log_file)
    except RecordLogUnusable as error:
        raise InputError(str(error)) from error
    side = {config.topics.items, config.topics.item_vectors}
    stream = set(config.topics.stream)
    topics = (side if items_only else stream if skip_items else side | stream) & set(log.partitions)
    if not topics:
        raise InputError(f"log {log_file} has only {sorted(log.partitions)}: nothing to send")
    close_ms = None
    if not no_watermark and not items_only:
        close_ms = _close_ms(config_file, overrides)
    options = ProduceOptions(topics=topics, speed=speed, close_ms=close_ms)
    check_partitions(config, log, topics)
    began = time.monotonic()
    with progress("produce") as told:
        sent = asyncio.run(produce(config, log, options, told))
    seconds = time.monotonic() - began
    click.echo(
        f"sent {sent:,} records to {config.kafka.broker} in {seconds:.1f} s"
        f"{'' if close_ms is None else ', watermarks at the end'}"
    )


def _close_ms(config_file: str | None, overrides: tuple[str, ...]) -> int:
    """Longest window + lateness + linger + 1: after that nothing is open (rule 2)."""
    from stream.composition import load_config

    config = load_config(config_file, overrides)
    return config.window_ms + config.stream.lateness_ms + config.stream.linger_ms + 1
