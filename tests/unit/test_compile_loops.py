"""Compiled loops are found again by the content of their source, wherever the clone lies."""

import hashlib
import os

import numba
import pytest

from tests.support import compile_loops

INDEX, DATA = "loops.f-3.py311.nbi", "loops.f-3.py311.1.nbc"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Makes clones with one file of loops each, and says where numba would keep them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def make(name, text):
        root = tmp_path / name
        source = root / "stream" / "loops.py"
        source.parent.mkdir(parents=True)
        source.write_text(f"f = numba.njit(cache=True)({text})")
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(root / "build"))
        own, _ = compile_loops.places(source, root)
        return root, own

    return make


def compiled(root, own, index=INDEX, data=DATA):
    """As numba leaves it: the digest of the source is in the index."""
    own.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((root / "stream" / "loops.py").read_bytes()).digest()
    (own / index).write_bytes(b"stamp " + digest + b" and names")
    (own / data).write_text(f"{data} of {root.name}")
    (own / "others.f-3.py311.nbi").write_text("of another file")


def test_another_clone_with_the_same_source_has_it_at_once(clone):
    root, own = clone("a", "one")
    assert not compile_loops.take(root)
    compiled(root, own)
    compile_loops.keep(root)
    other, there = clone("b", "one")
    assert there != own
    assert compile_loops.take(other)
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        name: (own / name).read_bytes() for name in (INDEX, DATA)
    }


def test_another_source_takes_nothing_and_what_is_there_stays(clone):
    root, own = clone("a", "one")
    compiled(root, own)
    compile_loops.keep(root)
    changed, there = clone("b", "two")
    assert not compile_loops.take(changed)
    assert not there.exists()
    same, there = clone("c", "one")
    compiled(same, there)
    assert compile_loops.take(same)
    assert (there / DATA).read_text().endswith("of c")


def test_what_was_made_of_an_older_source_gives_way_and_is_not_kept(clone):
    root, own = clone("a", "one")
    compiled(root, own)
    compile_loops.keep(root)
    (root / "stream" / "loops.py").write_text("njit, cache=True: another")
    assert not compile_loops.take(root)
    compiled(root, own, "loops.g-3.py311.nbi", "loops.g-3.py311.1.nbc")
    compile_loops.keep(root)
    kept = compile_loops.places(root / "stream" / "loops.py", root)[1]
    assert sorted(p.name for p in kept.iterdir()) == [
        "loops.g-3.py311.1.nbc", "loops.g-3.py311.nbi",
    ]  # fmt: skip


def test_a_larger_set_takes_the_place_of_a_smaller_one(clone):
    root, own = clone("a", "one")
    compiled(root, own)
    compile_loops.keep(root)
    compiled(root, own, data="loops.f-3.py311.2.nbc")
    compile_loops.keep(root)
    other, there = clone("b", "one")
    compiled(other, there)  # it has one of the two
    assert compile_loops.take(other)
    assert (there / "loops.f-3.py311.2.nbc").read_text().endswith("of a")


def test_few_versions_of_a_file_are_kept(clone):
    for i in range(compile_loops.VERSIONS_MAX + 2):
        root, own = clone(f"clone{i}", f"version {i}")
        compiled(root, own)
        compile_loops.keep(root)
        kept = compile_loops.places(root / "stream" / "loops.py", root)[1]
        os.utime(kept, (1_000 + i, 1_000 + i))
    versions = [path for path in kept.parent.iterdir() if path.is_dir()]
    assert len(versions) == compile_loops.VERSIONS_MAX
    assert kept in versions
