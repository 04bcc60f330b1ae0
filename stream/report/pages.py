"""The page and the text of a run, from what its report.json holds. Evaluates nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import config as loader
from infra.config_text import render
from infra.errors import InputError
from stream.evaluation import markdown
from stream.report.page import write_page

CONTENT, PAGE, TEXT = "report.json", "report.html", "report.md"
Content = Mapping[str, Any]


def write_pages(content: Content, folder: Path, *, title: str = "") -> None:
    """report.html and report.md of a report's content, in `folder`.

    `content` holds `evaluation` (docs/evaluation.md) and, where the run noted them, `title`,
    `config` or `configs` by name, `options` with `offset_minutes`, and `version`.
    """
    evaluation = content["evaluation"]
    write_page(
        evaluation, folder / PAGE, title=title or content.get("title") or _title(evaluation),
        config_text=config_text(content), offset_minutes=offset_minutes(content),
        version=str(content.get("version", "")),
    )  # fmt: skip
    (folder / TEXT).write_text(markdown(evaluation), encoding="utf-8")


def read_content(place: Path) -> dict[str, Any]:
    """What the report.json of a folder, or that file, holds.

    Raises InputError where there is none, or no evaluation in it.
    """
    path = place / CONTENT if place.is_dir() else place
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"report '{path}': cannot be read ({error.strerror}); name the folder of a finished "
            "replay or comparison"
        ) from error
    except ValueError as error:
        raise InputError(f"report '{path}': is not JSON ({error}); run the replay again") from error
    evaluation = content.get("evaluation") if isinstance(content, dict) else None
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("arms"), list):
        raise InputError(
            f"report '{path}': holds no evaluation with arms; it is of another version or of "
            "another program: run the replay again"
        )
    assert isinstance(content, dict)
    return content


def config_text(content: Content) -> str:
    """The first configuration as TOML, then in what each other one differs from it."""
    configs = _configs(content)
    if not configs:
        return ""
    (name, first), *others = configs.items()
    texts = [f"# {name}\n{render(first)}" if others else render(first)]
    texts += [
        f"# {other} differs in\n"
        + "\n".join(f"# {line}" for line in loader.differences(first, config) or ["nothing"])
        for other, config in others
    ]
    return "\n\n".join(texts)


def offset_minutes(content: Content) -> int:
    """Zone of days and times: that of the run, or of its first configuration, or UTC."""
    options = content.get("options") or {}
    if "offset_minutes" in options:
        return int(options["offset_minutes"])
    first: Content = next(iter(_configs(content).values()), {})
    return int(first.get("stream", {}).get("timezone_offset_minutes", 0))


def _configs(content: Content) -> dict[str, Content]:
    if content.get("configs"):
        return dict(content["configs"])
    return {"": content["config"]} if content.get("config") else {}


def _title(evaluation: Content) -> str:
    names = [arm["name"] for arm in evaluation["arms"]]
    if len(names) == 2:
        return f"{names[0]} against {names[1]}"
    if len(names) > 3:
        return f"{names[0]} and {len(names) - 1} others"
    return ("Comparison of " if len(names) > 1 else "Replay of ") + ", ".join(names)
