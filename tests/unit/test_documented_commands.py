"""Every `millrace` command in the documentation's blocks is one that the program takes."""

import re
import shlex
from pathlib import Path

import click
import pytest

from infra.config import preset_path
from stream.cli import group

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```|((?:^    \S.*\n)+)", re.MULTILINE | re.DOTALL)
START = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?millrace (?=[a-z])")


def commands(text):
    """Words of each command after `millrace`; without comments, redirections and `&`."""
    for block in BLOCK.finditer(text):
        lines = (block[1] or block[2]).replace("\\\n", " ").splitlines()
        for line in lines:
            if found := START.match(line.strip()):
                words = shlex.split(line.strip()[found.end() :], comments=True)
                yield [word for word in words if word not in {"&", "…"}]


FOUND = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:60]}")
    for page in PAGES
    for words in commands(page.read_text())
]


def test_there_are_many():
    assert len(FOUND) > 60


@pytest.mark.parametrize("words", FOUND)
def test_it_is_taken(words):
    """Options are known, values have their type, presets are there; nothing is run."""
    command, names = group, ["millrace"]
    parent = click.Context(group, info_name="millrace")
    while isinstance(command, click.Group):
        assert words, f"{names}: no command"
        name, *words = words
        command = command.get_command(parent, name)
        assert command is not None, f"{' '.join(names)} has no command '{name}'"
        names.append(name)
    try:
        context = command.make_context(names[-1], list(words), parent=parent)
    except click.BadParameter as error:
        # A file that an earlier command of the page makes.
        assert "does not exist" in error.message  # noqa: PT017 - what else is amiss is raised
        return
    with context:
        joined = [context.params.get("config_file") or "", *context.params.get("inputs", ())]
    for name in "+".join(map(str, joined)).split("+"):
        if name.islower() and "." not in name and "/" not in name:
            preset_path(name)
