"""The documentation names what exists: every verb and setting, and no link leads nowhere."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from stream.cli import group

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
DECISION_LINES_MAX = 40


def text(*pages):
    return "\n".join((ROOT / page).read_text() for page in pages)


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for target in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def test_every_verb_is_documented():
    written = "\n".join(page.read_text() for page in PAGES)
    verbs = group.list_commands(None)
    assert verbs
    assert [verb for verb in verbs if not re.search(rf"millrace {verb}\b", written)] == []


def test_no_verb_is_shown_in_use_that_does_not_exist():
    """In the blocks of commands; the table of verbs may name what is yet to come."""
    blocks = re.findall(r"^```.*?^```", text("README.md"), re.MULTILINE | re.DOTALL)
    command = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?millrace ([a-z]+)\b", re.MULTILINE)
    named = {verb for block in blocks for verb in command.findall(block)}
    assert named <= set(group.list_commands(None))


def settings(config_type, path=""):
    """Path of every field of a configuration and of what it contains."""
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        here = f"{path}.{field.name}".lstrip(".")
        inner = [hints[field.name], *typing.get_args(hints[field.name])]
        nested = [kind for kind in inner if dataclasses.is_dataclass(kind)]
        if nested:
            yield from settings(nested[0], here)
        else:
            yield here


def test_every_setting_is_documented():
    from stream.config import Config

    page = text("docs/configuration.md")
    names = list(settings(Config))
    assert len(names) > 20
    assert [name for name in names if f"`{name.rpartition('.')[2]}`" not in page] == []


def test_decisions_are_short_and_say_their_status():
    pages = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert pages
    for page in pages:
        content = page.read_text()
        assert len(content.splitlines()) <= DECISION_LINES_MAX, page.name
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in content, (page.name, heading)
        assert re.search(r"^Status: (accepted|superseded by \d{4})", content, re.MULTILINE), (
            page.name
        )
    numbers = [page.name[:4] for page in pages]
    assert len(set(numbers)) == len(numbers)
