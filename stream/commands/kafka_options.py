"""Options that all commands around Kafka share. Is no command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from infra.config import config_files
from stream.kafka.settings import ShellConfig, load_shell

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--config", "config_file", help="TOML file, or name of a preset."),
    click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a setting."),
    click.option("--broker", metavar="HOST:PORT", help="Instead of kafka.broker."),
)


def kafka_options(function: F) -> F:
    """--config, --set and --broker."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def shell_config(
    config_file: str | None, overrides: tuple[str, ...], broker: str | None
) -> ShellConfig:
    """The broker's and topics' settings; without a configuration file, the defaults."""
    files = [] if config_file is None else config_files(config_file)
    return load_shell(files, overrides, broker=broker)
