"""A configuration as TOML text, for `--print-config`. Reads nothing: the loader is infra.config."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from infra.config import to_dict

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def render(config: Any) -> str:
    """TOML that loads back into an equal configuration; every default is written out."""
    lines: list[str] = []
    _table(to_dict(config), (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    """Scalars first: in TOML what follows a `[header]` belongs to it."""
    nested = {key: value for key, value in table.items() if _is_table(value) or _is_tables(value)}
    lines += [f"{_key(key)} = {_value(table[key])}" for key in table if key not in nested]
    for key, value in nested.items():
        place = (*path, key)
        header = ".".join(_key(part) for part in place)
        for element in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{header}]]" if isinstance(value, list) else f"[{header}]"]
            _table(element, place, lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(e, dict) for e in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's but for DEL, and but for surrogate pairs, which it must not make.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            if math.isfinite(value):
                return repr(value)
            return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
        case str():
            return _string(value)
        case list():
            return f"[{', '.join(_value(element) for element in value)}]"
        case dict():
            pairs = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            raise TypeError(f"a {type(value).__name__} has no TOML form")
