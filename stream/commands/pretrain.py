"""`millrace pretrain`: groups the ways of learning vectors from recorded behaviour."""

from __future__ import annotations

import click

from stream.commands.pretrain_behaviour import behaviour
from stream.commands.pretrain_flip import flip
from stream.commands.pretrain_make import make
from stream.commands.pretrain_mean import mean
from stream.commands.pretrain_scl import scl
from stream.commands.pretrain_tiers import tiers

_SHORT = {
    behaviour: "Item vectors of who took what, for items.vectors_file.",
    flip: "MiniLM fitted to items by FLIP's losses, for items.vectors_file.",
    make: "A release of MAKE's extractor, for make.releases.",
    mean: "The mean vector of each encoder, for items.mean_file.",
    scl: "A projection of what users take together, for items.projection.",
    tiers: "Tiers of equal mass, for simtier.tiers_file.",
}


@click.group("pretrain")
def command() -> None:
    """Learn from record logs what items people find alike."""


for _verb, _words in _SHORT.items():
    _verb.short_help = _words
    command.add_command(_verb)
