"""The table of method presets in docs/learners.md says what the presets do."""

import re
import tomllib
from pathlib import Path

from infra.config import PRESETS
from learners.modules.catalog import BUILDERS

PAGE = Path(__file__).parents[2] / "docs" / "learners.md"


def test_each_method_preset_is_there_with_the_modules_that_it_turns_on():
    text = PAGE.read_text()
    table = text[text.index("| preset, joined") : text.index("| module | what it adds")]
    rows = dict(re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", table, re.MULTILINE))
    told = {
        name: set(re.findall(r"`(\w+)`", words)) & set(BUILDERS)
        for names, words in rows.items()
        for name in re.findall(r"`([\w-]+)`", names)
    }
    for name in ("make", "em3", "fgcnn"):
        assert told[name] == set()
        told[name] = {name}
    found = {}
    for file in PRESETS.glob("*.toml"):
        preset = tomllib.loads(file.read_text())
        if "label" not in preset:
            options = preset.get("ranker", {}).get("options", {})
            found[file.stem] = {name for name in options if name in BUILDERS}
    assert told == found
