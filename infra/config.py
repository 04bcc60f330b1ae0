"""Frozen dataclasses from TOML files and `--set` overrides. Knows no setting of its own."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from infra.errors import InputError

CONFIG_BYTES_MAX = 1 << 20
PRESETS = Path(__file__).parent / "presets"

T = TypeVar("T")
Table = dict[str, Any]


class ConfigError(InputError):
    """A configuration that cannot be used: which key, where it came from, expected, got."""


def load(
    config_type: type[T],
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    only_own_tables: bool = False,
) -> T:
    """An instance of the dataclass `config_type`: files in order, then overrides `a.b=c`.

    Later files and overrides win: tables are merged, everything else is replaced. Raises
    ConfigError naming the file or override, the key and its path, expected and got.
    `only_own_tables` leaves out top-level tables that no field of `config_type` is named after, for
    tools that read a part of a larger configuration.
    """
    merged: Table = {}
    origins: dict[str, str] = {}
    for file in files:
        _merge(merged, read_toml(file), "", f"config '{file}'", origins)
    for override in overrides:
        _override(merged, override, origins)
    if only_own_tables:
        own = get_type_hints(config_type)
        merged = {name: table for name, table in merged.items() if name in own}
    return build(config_type, merged, origins=origins)


def build(
    config_type: type[T],
    table: Mapping[str, Any],
    *,
    at: str = "",
    origins: Mapping[str, str] | None = None,
) -> T:
    """The dataclass `config_type` from a plain table that stands at path `at`.

    Strict: unknown keys raise ConfigError with the nearest known key, and no value is converted
    but integers to floats and lists to tuples. `origins` maps a path to what set it.
    """
    known = origins or {}
    for path, names, key in _unknown_keys(config_type, table, at):
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(names))}"
        raise ConfigError(f"{_origin(known, path)}: unknown key '{path}'; {hint}")
    try:
        return msgspec.convert(table, config_type, strict=True, dec_hook=_path_of_text)
    except msgspec.ValidationError as error:
        place, text = explained(error, config_type)
        path = _join(at, place)
        where = _origin(known, path) if path else _sources(known)
        # Without a place it is about several tables, and says so itself.
        raise ConfigError(f"{where}: '{path}': {text}" if path else f"{where}: {text}") from error


def explained(error: msgspec.ValidationError, config_type: Any) -> tuple[str, str]:
    """Where in a configuration an error arose ("" where that is all of it), and what it says.

    Of a value that is none of those allowed it names these.
    """
    text, _, place = str(error).partition(" - at `$")
    path = place.rstrip("`").removeprefix(".").replace("[...]", ".*")
    text = text.replace("`", "")
    if text.startswith("Invalid enum value") and (names := _allowed(config_type, path)):
        text += f", expected one of {', '.join(map(repr, names))}"
    return path, text


def _allowed(kind: Any, path: str) -> tuple[Any, ...]:
    """The values of the literal at `path`; none where there is no literal."""
    for key in path.split("."):
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            kind = get_type_hints(kind).get(key)
        else:  # of a list or a table: what its values are
            kind = next((a for a in reversed(get_args(kind)) if a is not Ellipsis), None)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _sources(origins: Mapping[str, str]) -> str:
    """All that a configuration was made of, in order."""
    return ", ".join(dict.fromkeys(origins.values())) or "config"


def read_toml(file: Path) -> Table:
    """The tables of a TOML file; raises ConfigError if it is absent, too large or not TOML."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"config '{file}': cannot be read: {error.strerror}") from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(
            f"config '{file}': expected at most {CONFIG_BYTES_MAX} bytes, got {len(data)}"
        )
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config '{file}': not TOML: {error}") from error


def preset_path(name: str) -> Path:
    """The file of a preset that comes with the package; raises ConfigError naming the others."""
    names = sorted(file.stem for file in PRESETS.glob("*.toml"))
    if name not in names:
        have = ", ".join(names) or "none"
        raise ConfigError(f"preset '{name}': not there; presets: {have}")
    return PRESETS / f"{name}.toml"


def config_files(name: str) -> list[Path]:
    """The files that `--config NAME` means: a file, a preset, or several joined by `+`.

    Later ones change what earlier ones say (`default+simtier`). Raises ConfigError.
    """
    if Path(name).is_file():
        return [Path(name)]
    return [Path(part) if Path(part).suffix else preset_path(part) for part in name.split("+")]


def to_dict(config: Any) -> Table:
    """Plain tables, lists and scalars; what is None is left out, as TOML has no word for it."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each value in which two plain configurations differ: `a.b: 1 -> 2`."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    lines = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path, "(absent)"), after.get(path, "(absent)")
        if was != now:
            lines.append(f"{path}: {was} -> {now}")
    return lines


def _merge(into: Table, table: Table, path: str, source: str, origins: dict[str, str]) -> None:
    for key, value in table.items():
        place = _join(path, key)
        origins[place] = source
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, place, source, origins)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value, place, source, origins)
        else:
            into[key] = value


def _override(into: Table, override: str, origins: dict[str, str]) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected KEY=VALUE with a key such as stream.seed")
    node: Any = into
    for i, key in enumerate(keys[:-1]):
        node = _child(node, key, ".".join(keys[: i + 1]), override)
    last: Any = keys[-1]
    if isinstance(node, list):
        _child(node, last, path, override)
        last = int(last)
    node[last] = _value(text.strip())
    origins[path.strip()] = f"--set {override}"


def _child(node: Any, key: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise ConfigError(
                f"--set {override}: '{path}': expected an index below {len(node)}, got '{key}'"
            )
        return node[int(key)]
    child = node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: '{path}' is a value, not a table")
    return child


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word, as shells hand it over


def _unknown_keys(kind: Any, value: Any, path: str) -> Iterator[tuple[str, list[str], str]]:
    """Keys no field is named after, as (path, known names, key)."""
    kind_origin, arguments = get_origin(kind), get_args(kind)
    if kind_origin in {Union, types.UnionType}:
        inner = [a for a in arguments if a is not type(None)]
        if len(inner) == 1:
            yield from _unknown_keys(inner[0], value, path)
    elif kind_origin in {list, tuple, Sequence} and isinstance(value, list | tuple) and arguments:
        for i, element in enumerate(value):
            yield from _unknown_keys(arguments[0], element, f"{path}.{i}")
    elif kind_origin in {dict, Mapping} and isinstance(value, Mapping):
        for key, element in value.items():
            yield from _unknown_keys(arguments[1], element, _join(path, str(key)))
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        assert isinstance(kind, type)
        hints = get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        for key, element in value.items():
            if key not in names:
                yield _join(path, key), names, key
            else:
                yield from _unknown_keys(hints[key], element, _join(path, key))


def _origin(origins: Mapping[str, str], path: str) -> str:
    """What set the value at `path`: the entry of its longest known prefix."""
    keys = path.replace("[", ".").replace("]", "").split(".")
    for n in range(len(keys), 0, -1):
        if source := origins.get(".".join(keys[:n])):
            return source
    return "config"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _path_of_text(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"a {kind.__name__} cannot be configured")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {key: _plain(element) for key, element in pairs.items() if element is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [_plain(element) for element in value]
    return str(value) if isinstance(value, Path) else value


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _leaves(element, _join(path, str(key)))
    elif isinstance(value, list | tuple) and any(isinstance(e, Mapping) for e in value):
        for i, element in enumerate(value):
            name = element.get("name", i) if isinstance(element, Mapping) else i
            yield from _leaves(element, f"{path}[{name}]")
    else:
        yield path, list(value) if isinstance(value, tuple) else value
