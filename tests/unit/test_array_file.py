"""Files of arrays: what is written comes back, and each way to be unusable is one typed error."""

from __future__ import annotations

import numpy as np
import pytest

from infra.array_file import FileKind, array_file, check_format, write_array_file
from infra.errors import InputError


class RecipeUnusable(InputError):
    """No recipe."""


RECIPE = FileKind(what="recipe", maker="`cook`", error=RecipeUnusable)
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((0, 2), np.int64)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file"


def test_arrays_and_header_come_back_and_nothing_else_is_left(path):
    for header in ({"k": "old"}, {"k": "v", "more": "ü\n"}):
        write_array_file(path, ARRAYS | {"t": ARRAYS["a"].T}, header)
    with array_file(path, RECIPE) as (arrays, read):
        assert read == {"k": "v", "more": "ü\n"}
    assert {n: (a.dtype, a.tolist()) for n, a in arrays.items()} == {
        "a": (np.float32, [[0, 1, 2], [3, 4, 5]]),
        "none": (np.int64, []),
        "t": (np.float32, [[0, 3], [1, 4], [2, 5]]),
    }
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    write_array_file(path, ARRAYS, {"k": "old"})
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_array_file(path, ARRAYS, {"k": "new"})
    monkeypatch.undo()
    with array_file(path, RECIPE) as (_, header):
        assert header == {"k": "old"}
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def use(path, work=lambda arrays, header: None):
    with array_file(path, RECIPE) as (arrays, header):
        work(arrays, header)


def test_every_way_to_be_unusable_is_the_kinds_own_error_in_one_line(path):
    with pytest.raises(RecipeUnusable, match=r"^recipe .*file: cannot be used \(.*\); `cook` mak"):
        use(path)
    write_array_file(path, ARRAYS, {})
    for work, why in (
        (lambda arrays, _: arrays["b"], "no 'b'"),
        (lambda _, header: header["format"], "no 'format'"),
        (lambda *_: check_format("2", "1"), "expected format 1, got 2: a newer millrace"),
        (lambda *_: None + 1, "unsupported operand"),
        (lambda *_: int("one\ntwo"), "invalid literal"),
    ):
        with pytest.raises(RecipeUnusable, match=why) as caught:
            use(path, work)
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecipeUnusable):
        use(path)
    for bad in (np.nan, np.inf):
        write_array_file(path, {"a": np.array([1, bad])}, {})
        with pytest.raises(RecipeUnusable, match="array 'a' is not finite"):
            use(path)


def test_our_own_mistakes_stay_what_they_are(path):
    write_array_file(path, ARRAYS, {})

    def mistaken(arrays, header):
        assert not arrays, "ours"

    with pytest.raises(AssertionError, match="ours"):
        use(path, mistaken)
