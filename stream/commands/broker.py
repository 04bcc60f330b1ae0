"""`millrace broker`: a broker in the foreground, for trying out. Creates no topic."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from infra.errors import FaultError
from infra.kafka_broker import KafkaBroker
from infra.local_broker import LocalBroker


@click.command()
@click.option("--kafka", is_flag=True, help="Real Kafka from Maven's jars (needs Java and Maven).")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: a free one.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="With --kafka: keep the data in this folder."
)
def command(*, kafka: bool, port: int | None, data: Path | None) -> None:
    """Run a broker on loopback until Ctrl-C.

    Without --kafka it is the embedded one: memory only, all data ends with it.
    """
    if data is not None and not kafka:
        raise click.UsageError("--data needs --kafka: the embedded broker keeps nothing")
    broker = KafkaBroker(data, port=port) if kafka else LocalBroker(port)
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    with broker:
        kind = "Kafka, one node" if kafka else "embedded broker, memory only"
        click.echo(f"{kind}, for trying out: {broker.address}")
        while not asked.wait(0.5):
            if broker.pid is None:
                raise FaultError(f"the broker at {broker.address} ended with code {broker.wait()}")
