"""What mypy knows is found again by clones that have nothing of their own."""

import pytest

from tests.support import kept_types


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """Makes clones; one with a text has it in mypy's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def make(name, text=None):
        root = tmp_path / name
        root.mkdir()
        if text is not None:
            (root / kept_types.NAME / "3.11").mkdir(parents=True)
            (root / kept_types.NAME / "3.11" / "cache.0.db").write_text(text)
        return root

    return make


def known(root):
    found = root / kept_types.NAME / "3.11" / "cache.0.db"
    return found.read_text() if found.exists() else None


def test_a_fresh_clone_has_the_newest_and_one_with_its_own_keeps_it(clone):
    first = clone("a")
    kept_types.take(first)
    kept_types.keep(first)
    assert known(first) is None
    kept_types.keep(clone("b", "old"))
    kept_types.keep(clone("c", "new"))
    kept_types.take(first)
    assert known(first) == "new"
    own = clone("d", "own")
    kept_types.take(own)
    assert known(own) == "own"
    assert [p.name for p in first.iterdir()] == [kept_types.NAME]
    assert [p.name for p in kept_types.shelf().parent.iterdir()] == ["types"]


def test_a_copy_that_fails_leaves_what_was_there(clone, monkeypatch):
    kept_types.keep(clone("a", "old"))

    def torn(source, target):
        target.mkdir()
        raise OSError("the source went away")

    monkeypatch.setattr(kept_types.shutil, "copytree", torn)
    kept_types.keep(clone("b", "new"))
    fresh = clone("c")
    kept_types.take(fresh)
    assert list(fresh.iterdir()) == []
    assert known_on_shelf() == "old"


def known_on_shelf():
    return (kept_types.shelf() / "3.11" / "cache.0.db").read_text()
