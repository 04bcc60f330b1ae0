"""The published JSON Schemas are those of the structs, and bad events do not fit them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from stream.event_schemas import FOLDER, rendered, schemas
from stream.events import TopicRole, type_names
from tests.support.records import T0, click, impression


@pytest.mark.parametrize("name", sorted(schemas()))
def test_the_files_are_current(name: str) -> None:
    file = FOLDER / f"{name}.v1.json"
    assert file.read_text() == rendered(schemas()[name]), "run: python -m stream.event_schemas"


def test_there_is_a_file_for_every_type_and_no_other() -> None:
    names = {name for role in TopicRole for name in type_names(role)}
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}.v1.json" for name in names}


@pytest.mark.parametrize(
    ("name", "body"),
    (
        ("click", click(item_id="")),
        ("click", click(ts_ms=5)),
        ("click", click(kind=...)),
        ("impression", impression(items=[])),
        ("impression", impression(user_id=1.5)),
        ("impression", impression(context={"a": {"b": 1}})),
    ),
)
def test_bad_events_do_not(name: str, body: dict[str, Any]) -> None:
    event = json.loads(json.dumps({"v": 1, "type": name, **body}))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event, schemas()[name])


def test_the_version_is_required() -> None:
    event = {"type": "watermark", "ts_ms": T0}
    with pytest.raises(jsonschema.ValidationError, match="'v' is a required property"):
        jsonschema.validate(event, schemas()["watermark"])
