"""Compiled loops are found again by the content of their source, wherever the clone lies."""

import os

import numba
import pytest

from tests.support import compile_loops


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Makes clones with one file of loops each, and says where numba would keep them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def make(name, text):
        root = tmp_path / name
        source = root / "stream" / "loops.py"
        source.parent.mkdir(parents=True)
        source.write_text(f"import numba\n{text}")
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(root / "build"))
        own, _ = compile_loops.places(source, root)
        return root, own

    return make


def compiled(own, text):
    own.mkdir(parents=True)
    for name in ("loops.f-3.py311.1.nbc", "loops.f-3.py311.nbi"):
        (own / name).write_text(f"{name} of {text}")
    (own / "others.f-3.py311.nbi").write_text("of another file")


def test_another_clone_with_the_same_source_has_it_at_once(clone):
    root, own = clone("a", "one")
    compiled(own, "one")
    compile_loops.keep(root)
    other, there = clone("b", "one")
    assert there != own
    compile_loops.take(other)
    assert {p.name: p.read_text() for p in there.iterdir()} == {
        name: f"{name} of one" for name in ("loops.f-3.py311.1.nbc", "loops.f-3.py311.nbi")
    }


def test_another_source_takes_nothing_and_what_is_there_stays(clone):
    root, own = clone("a", "one")
    compiled(own, "one")
    compile_loops.keep(root)
    changed, there = clone("b", "two")
    compile_loops.take(changed)
    assert not there.exists()
    same, there = clone("c", "one")
    compiled(there, "one, by itself")
    compile_loops.take(same)
    assert (there / "loops.f-3.py311.nbi").read_text().endswith("by itself")
    compile_loops.keep(same)
    compile_loops.take(root)
    last, there = clone("d", "one")
    compile_loops.take(last)
    assert (there / "loops.f-3.py311.nbi").read_text().endswith("of one")


def test_few_versions_of_a_file_are_kept(clone):
    for i in range(compile_loops.VERSIONS_MAX + 2):
        root, own = clone(f"clone{i}", f"version {i}")
        compiled(own, i)
        compile_loops.keep(root)
        kept = compile_loops.places(root / "stream" / "loops.py", root)[1]
        os.utime(kept, (1_000 + i, 1_000 + i))
    versions = [path for path in kept.parent.iterdir() if path.is_dir()]
    assert len(versions) == compile_loops.VERSIONS_MAX
    assert kept in versions
