from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.config import ConfigError, build, differences, load, preset_path, to_dict
from infra.config_text import render


@dataclass(frozen=True, kw_only=True)
class Label:
    window_ms: int
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Feature:
    name: str
    kind: Literal["id", "dense"] = "id"
    dims: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Stream:
    linger_ms: int = 1000
    rate: float = 1.0
    deep: bool = False
    folder: Path = Path("out")
    limit: int | None = None

    def __post_init__(self):
        if self.linger_ms < 0:
            raise ValueError(f"linger_ms must be at least 0, got {self.linger_ms}")


@dataclass(frozen=True, kw_only=True)
class Config:
    stream: Stream = field(default_factory=Stream)
    label: dict[str, Label] = field(default_factory=dict)
    feature: tuple[Feature, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def file(tmp_path):
    return write(
        tmp_path / "a.toml",
        """
        [stream]
        linger_ms = 5
        [label.click]
        window_ms = 60_000
        [[feature]]
        name = "tab"
        [[feature]]
        name = "age"
        kind = "dense"
        dims = [4]
        [options]
        lr = 0.1
        """,
    )


def test_loads_nested_tables_lists_and_maps(file):
    config = load(Config, [file])
    assert config.stream == Stream(linger_ms=5)
    assert config.label == {"click": Label(window_ms=60_000)}
    assert config.feature == (Feature(name="tab"), Feature(name="age", kind="dense", dims=(4,)))
    assert config.options == {"lr": 0.1}


def test_later_files_and_overrides_win_and_merge_tables(file, tmp_path):
    second = write(tmp_path / "b.toml", "[stream]\nrate = 2\n[label.like]\nwindow_ms = 7\n")
    overrides = [
        "stream.deep=true",
        "stream.folder=/a/b",
        "feature.1.name=old",
        'label.like.name="q"',
    ]
    config = load(Config, [file, second], overrides)
    assert config.stream == Stream(linger_ms=5, rate=2.0, deep=True, folder=Path("/a/b"))
    assert set(config.label) == {"click", "like"}
    assert config.label["like"].name == "q"
    assert [f.name for f in config.feature] == ["tab", "old"]


def test_an_unknown_key_names_file_path_and_nearest(file, tmp_path):
    second = write(tmp_path / "b.toml", "[label.click]\nwindow = 7\n")
    with pytest.raises(ConfigError) as caught:
        load(Config, [file, second])
    assert str(caught.value) == (
        f"config '{second}': unknown key 'label.click.window'; did you mean 'window_ms'?"
    )


def test_an_unknown_key_in_a_list_and_far_from_all_names_the_known(file):
    with pytest.raises(ConfigError, match=r"'feature\.0\.zzz'; known keys: dims, kind, name"):
        load(Config, [file], ["feature.0.zzz=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    (
        ("stream.linger_ms=soon", r"--set .*'stream\.linger_ms': Expected int, got str"),
        ("stream.linger_ms=1.5", r"'stream\.linger_ms': Expected int, got float"),
        ("stream.linger_ms=-1", r"'stream': linger_ms must be at least 0, got -1"),
        ("stream.deep=1", r"'stream\.deep': Expected bool, got int"),
        ("stream.linger_ms=true", r"'stream\.linger_ms': Expected int, got bool"),
        ("stream.rate=fast", r"'stream\.rate': Expected float, got str"),
        ("feature.0.kind=blob", r"Invalid enum value 'blob'"),
        ("feature.9.kind=id", r"expected an index below 2, got '9'"),
        ("feature.9=id", r"expected an index below 2, got '9'"),
        ("stream.linger_ms.x=1", r"'stream\.linger_ms' is a value, not a table"),
        ("stream", r"expected KEY=VALUE"),
        ("=1", r"expected KEY=VALUE"),
    ),
)
def test_wrong_values_say_where_expected_and_got(file, override, message):
    with pytest.raises(ConfigError, match=message):
        load(Config, [file], [override])


def test_a_missing_required_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing required field window_ms"):
        load(Config, [write(tmp_path / "a.toml", "[label.click]\nname='x'\n")])


@pytest.mark.parametrize("text", ("[stream", "a = \x01", "x = 1\nx = 2\n"))
def test_a_file_that_is_not_toml_is_one_clear_error(tmp_path, text):
    with pytest.raises(ConfigError, match=r"a\.toml': not TOML"):
        load(Config, [write(tmp_path / "a.toml", text)])


def test_absent_binary_and_huge_files_are_clear_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(Config, [tmp_path / "none.toml"])
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load(Config, [tmp_path / "b.toml"])
    (tmp_path / "c.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="expected at most 1048576 bytes"):
        load(Config, [tmp_path / "c.toml"])


def test_build_names_the_path_it_stands_at():
    with pytest.raises(ConfigError, match=r"unknown key 'ranker\.limger_ms'; did you mean"):
        build(Stream, {"limger_ms": 1}, at="ranker")
    with pytest.raises(ConfigError, match=r"'ranker\.rate': Expected float"):
        build(Stream, {"rate": "x"}, at="ranker")


def test_an_unknown_preset_is_a_clear_error():
    with pytest.raises(ConfigError, match="preset 'nope': not there"):
        preset_path("nope")


def test_differences_name_path_and_both_values(file):
    old = to_dict(load(Config, [file]))
    new = to_dict(load(Config, [file], ["feature.1.kind=id", "stream.limit=3"]))
    assert differences(old, old) == []
    assert differences(old, new) == [
        "feature[age].kind: dense -> id",
        "stream.limit: (absent) -> 3",
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    text=TEXT,
    key=TEXT,
    rate=st.floats(allow_nan=False),
    linger=st.integers(0, 2**62),
    dims=st.lists(st.integers(-9, 9), max_size=3),
    limit=st.none() | st.integers(0, 9),
)
def test_rendered_configurations_load_back_equal(
    tmp_path_factory, text, key, rate, linger, dims, limit
):
    config = Config(
        stream=Stream(linger_ms=linger, rate=rate, deep=True, limit=limit),
        label={key: Label(window_ms=1, name=text)},
        feature=(Feature(name=text, dims=tuple(dims)), Feature(name="b")),
        options={"lr": rate, "names": [text, "x"], "nested": {key: 1}, "empty": {}},
    )
    path = tmp_path_factory.mktemp("config") / "a.toml"
    path.write_bytes(render(config).encode())
    assert load(Config, [path]) == config
