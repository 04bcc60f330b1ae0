"""What holds for every tracked file: sizes, docstrings, layers listed, no names of machines."""

import ast
import gc
import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("stream", "learners", "embeddings", "infra")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
# A compiled kernel and every function it calls share a file: numba's cache of a kernel would not
# see that a function of another file has changed.
LONG_FILES = {"stream/kernels.py": 950, "stream/scan_kernels.py": 830}
# Modules that may know Kafka, files, clocks or SDKs. All others are the pure core: pyproject.toml.
SHELLS = (
    "embeddings.codebook_file",
    "embeddings.store_reader",
    "embeddings.vector_file",
    "embeddings.vector_store",
    "infra.array_file",
    "infra.broker_process",
    "infra.clock",
    "infra.demo",
    "infra.docker",
    "infra.config",
    "infra.config_text",
    "infra.errors",
    "infra.file_system",
    "infra.kafka_broker",
    "infra.local_broker",
    "infra.otel",
    "infra.snapshot_format",
    "infra.snapshot_reader",
    "infra.snapshot_store",
    "infra.snapshot_writer",
    "stream.catalogue",
    "stream.checkpoint",
    "stream.code_adoption",
    "stream.cli",
    "stream.commands",
    "stream.composition",
    "stream.demo",
    "stream.demo_catalogue",
    "stream.event_schemas",
    "stream.importers",
    "stream.interactions",
    "stream.pretraining",
    "stream.pretraining_flip",
    "stream.pretraining_make",
    "stream.pretraining_past",
    "stream.pretraining_tiers",
    "stream.kafka",
    "stream.late_vectors",
    "stream.ledger_check",
    "stream.logged_actions",
    "stream.metrics",
    "stream.migration_state",
    "stream.policy_file",
    "stream.prediction_log",
    "stream.queries",
    "stream.record_log",
    "stream.replay",
    "stream.report.page",
    "stream.report.pages",
    "stream.scoring",
    "stream.table_parts",
    "stream.validate",
    "stream.version_adoption",
    "stream.warm_up",
)
DATA_SET = "kuai" + "rand"
DATA_SET_PLACES = re.compile(
    rf"(stream/importers/{DATA_SET}\.py|stream/commands/(import_|demo)\.py|infra/presets/({DATA_SET}"
    rf"[a-z0-9_-]*|default)\.toml|infra/demo/.*|docs/.*|tests/.*|README\.md|NOTICE|CHANGELOG\.md"
    rf"|CONTRIBUTING\.md|stream/demo/.*|\.gitignore)"
)
OTHER_SETS = re.compile(r"\b(movielens|globo|open[ _-]?bandit)\b", re.IGNORECASE)
OTHER_SETS_PLACES = re.compile(
    r"(stream/importers/[a-z_]+\.py|stream/commands/import_\.py|infra/presets/.*\.toml|docs/.*|tests/.*"
    r"|README\.md|NOTICE|CHANGELOG\.md|CONTRIBUTING\.md|Makefile)"
)
# Written in pieces, so that this file does not find itself.
HOSTS = tuple(
    "".join(parts)
    for parts in (
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("npm", "js.org"),
        ("npm", "js.com"),
        ("maven", ".org/maven2"),
        ("maven.apache", ".org/maven2"),
        ("crates", ".io"),
        ("proxy.golang", ".org"),
        ("deb.debian", ".org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|farm|root|home)/[A-Za-z]")
PROCESS_WORDS = re.compile(
    r"\b(issue|ticket|task) #?\d|\bmilestone M?\d|\bTODO\b|\bFIXME\b", re.IGNORECASE
)


@cache
def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def name_of(path):
    return str(path.relative_to(ROOT))


def python_files(*, tests=False):
    return [
        path
        for path in tracked()
        if path.suffix == ".py"
        and (path.relative_to(ROOT).parts[0] in PACKAGES or (tests and "tests" in path.parts))
    ]


@dataclass
class Source:
    """What the tests ask of a Python file."""

    docstring: str | None
    functions: list[tuple[str, int, int]] = field(default_factory=list)
    imported: set[str] = field(default_factory=set)
    pickled: list[int] = field(default_factory=list)


@cache
def source(path):
    # A tree has thousands of nodes, and most of the time goes into walking them: each is read once
    # and let go. Nothing in it is a cycle.
    gc.disable()
    try:
        return read_source(ast.parse(path.read_text(), name_of(path)))
    finally:
        gc.enable()


def read_source(tree):
    found = Source(docstring=ast.get_docstring(tree))
    safe, loads = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((node.name, node.lineno, node.end_lineno - node.lineno + 1))
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            found.imported |= names
            found.pickled += [node.lineno] * ("pickle" in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.imported.add(node.module)
            found.imported.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.pickled += [node.lineno] * (node.module == "pickle")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.imported.add(node.value)  # import_module("stream.…") and the table of verbs
        elif isinstance(node, ast.Call):
            if any(
                word.arg == "weights_only" and getattr(word.value, "value", None) is True
                for word in node.keywords
            ):
                safe.add(node.func)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("torch", "save"), ("torch", "load")}
        ):
            loads.append(node)
    found.pickled += [node.lineno for node in loads if node not in safe]
    return found


@cache
def texts():
    found = {}
    for path in tracked():
        try:
            found[name_of(path)] = path.read_text()
        except UnicodeDecodeError:
            continue
    return found


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_functions_fit_on_a_screen():
    long = [
        f"{name_of(path)}:{line} {name}: {lines} lines"
        for path in python_files(tests=True)
        for name, line, lines in source(path).functions
        if lines > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_files_are_short():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in python_files()}
    long = {n: k for n, k in lines.items() if k > LONG_FILES.get(n, FILE_LINES_MAX)}
    assert long == {}


def test_modules_say_what_they_are_for():
    assert [name_of(path) for path in python_files() if not source(path).docstring] == []


def test_every_module_is_either_pure_or_a_shell():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    pure = next(c["source_modules"] for c in contracts if c["type"] == "forbidden")

    def listed(module, names):
        return any(module == name or module.startswith(f"{name}.") for name in names)

    modules = [module_of(path) for path in python_files()]
    leaves = [m for m in modules if m not in PACKAGES and m != "embeddings.encoders"]
    assert [m for m in leaves if not listed(m, pure) and not listed(m, SHELLS)] == []
    assert [m for m in pure if listed(m, SHELLS)] == []
    assert [m for m in pure if not listed(m, modules)] == []


def test_no_module_is_dead():
    """Each is imported by another of the packages, a verb, a program, or in pyproject.toml."""
    imported = {m for p in python_files() if "__main__" in p.read_text() for m in [module_of(p)]}
    for path in python_files():
        imported |= source(path).imported
    project = (ROOT / "pyproject.toml").read_text()
    modules = [module_of(p) for p in python_files() if p.name not in {"__init__.py", "__main__.py"}]
    assert [m for m in modules if m not in imported and f'"{m}:' not in project] == []


def test_nothing_is_pickled():
    """Loading a pickle runs what it contains; `weights_only` keeps torch.load from that."""
    found = [f"{name_of(path)}:{line}" for path in python_files() for line in source(path).pickled]
    assert found == []
    bad = "import pickle\nfrom pickle import load\ntorch.load(a)\ntorch.load(b, weights_only=False)"
    good = "torch.load(c, weights_only=True)"
    assert read_source(ast.parse(f"{bad}\n{good}\ntorch.save(d)")).pickled == [1, 2, 3, 4, 6]


def test_no_registry_is_named():
    found = [f"{name}: {host}" for name, text in texts().items() for host in HOSTS if host in text]
    assert found == []


def test_no_path_of_a_machine_is_named():
    found = [
        f"{name}: {match[0]}"
        for name, text in texts().items()
        if (match := MACHINE_PATH.search(text))
    ]
    assert found == []


def test_files_speak_of_the_software_alone():
    found = [
        f"{name}: {match[0]}"
        for name, text in texts().items()
        if name != "tests/test_tidy.py" and not name.endswith(".lock")
        if (match := PROCESS_WORDS.search(text))
    ]
    assert found == []


def test_the_data_set_is_named_only_where_it_belongs():
    found = [
        name
        for name, text in texts().items()
        if not DATA_SET_PLACES.fullmatch(name) and DATA_SET in text.lower()
    ]
    assert found == []


def test_other_data_sets_are_named_only_where_they_belong():
    found = [
        name
        for name, text in texts().items()
        if not OTHER_SETS_PLACES.fullmatch(name) and OTHER_SETS.search(text)
    ]
    assert found == []


def test_no_third_partys_code_is_tracked():
    folders = {"vendor", "vendored", "third_party", "node_modules"}
    found = [
        name
        for name in map(name_of, tracked())
        if folders & set(Path(name).parts) or name.endswith((".min.js", ".min.css", ".jar", ".so"))
    ]
    foreign = re.compile("Copyright " + r"(\(c\)|©|19|20)", re.IGNORECASE)
    found += [
        name
        for name, text in texts().items()
        if foreign.search(text) and name not in {"LICENSE", "NOTICE"} and "infra/demo/" not in name
    ]
    assert found == []


def test_tracked_files_are_small():
    assert [name_of(p) for p in tracked() if p.stat().st_size > 4 << 20] == []


def test_tests_neither_sleep_nor_assert_nothing():
    bad = re.compile(r"\btime\.sleep\(|asyncio\.sleep\([1-9]|assert " + r"True\b")
    found = [
        f"{name_of(path)}:{i}"
        for path in python_files(tests=True)
        if path.name.startswith("test_") and path.name != "test_tidy.py"
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if bad.search(line)
    ]
    assert found == []
