"""JSON Schemas of all wire events, from their structs. Run as a module to write them again.

msgpack has bytes where JSON Schema has base64 strings; nothing else differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from stream.events import SCHEMA_VERSION, TYPES_OF_ROLE

FOLDER: Final = Path(__file__).parent / "schemas"


def schemas() -> dict[str, dict[str, Any]]:
    """One self-contained schema for each value of `type`."""
    found: dict[str, dict[str, Any]] = {}
    for role, structs in TYPES_OF_ROLE.items():
        for struct in structs:
            name = str(struct.__struct_config__.tag)
            schema = msgspec.json.schema(struct)
            # `v` has a default in Python only: it must be on the wire.
            definition = schema["$defs"][struct.__name__]
            definition["required"] = sorted({*definition.get("required", ()), "v"})
            topics = found.get(name, {}).get("x-topics", [])
            found[name] = {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "title": f"{name}, schema version {SCHEMA_VERSION}",
                "x-topics": [*topics, role.value],
                **schema,
            }
    return found


def rendered(schema: dict[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def write(folder: Path = FOLDER) -> None:
    """Write `TYPE.v1.json` for every type."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / f"{name}.v{SCHEMA_VERSION}.json").write_text(rendered(schema))


if __name__ == "__main__":
    write()
