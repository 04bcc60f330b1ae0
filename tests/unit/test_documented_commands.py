"""Every `millrace` command in the documentation's blocks is one that the program takes."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from infra.errors import InputError
from learners import catalog
from stream.cli import group
from stream.composition import load_config
from stream.feature_plan import plan

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```|((?:^    \S.*\n)+)", re.MULTILINE | re.DOTALL)
PRESETS_ALONE = re.compile(r"[a-z0-9-]+(\+[a-z0-9-]+)*")
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
    """Options are known, values have their type, configurations fit; nothing is run."""
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
        given = context.params
        configs = [given.get("config_file"), *given.get("inputs", ())]
    for config in configs:
        if isinstance(config, str) and PRESETS_ALONE.fullmatch(config):
            assert_ranker_fits(config, given.get("overrides", ()))


def assert_ranker_fits(presets, overrides):
    """The ranker of a documented configuration can be built; what files hold is left out."""
    config = load_config(presets, overrides)
    try:
        catalog.build(config.ranker.name, plan(config).spec, config.ranker.options)
    except InputError as error:
        assert "No such file" in str(error)  # noqa: PT017 - what else is amiss is raised


MODULES = sorted(
    {
        m
        for page in PAGES
        for m in re.findall(r"python -m (tests\.benchmarks\.\w+)", page.read_text())
    }
    | {f"tests.benchmarks.{file.stem}" for file in (ROOT / "tests" / "benchmarks").glob("*_*.py")}
)


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_can_be_imported(module):
    assert importlib.import_module(module).__doc__
