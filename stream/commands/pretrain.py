"""`millrace pretrain`: groups the ways of learning vectors from recorded behaviour."""

from __future__ import annotations

import click

from stream.commands.pretrain_behaviour import behaviour
from stream.commands.pretrain_flip import flip
from stream.commands.pretrain_make import make
from stream.commands.pretrain_mean import mean
from stream.commands.pretrain_scl import scl
from stream.commands.pretrain_tiers import tiers


@click.group("pretrain")
def command() -> None:
    """Learn from record logs what items people find alike."""


command.add_command(behaviour)
command.add_command(flip)
command.add_command(make)
command.add_command(mean)
command.add_command(scl)
command.add_command(tiers)
