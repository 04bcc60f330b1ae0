"""Both vector stores keep the same contract; the one on RocksDB keeps it across processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rocksdict

from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig, restore_checkpoint
from embeddings.vectors import (
    NO_KEYS,
    MemoryVectorStore,
    StoreFailed,
    StoreLocked,
    StoreMismatch,
    StoreUnusable,
)
from infra.errors import FaultError, InputError

ROOT = Path(__file__).parents[2]


def rocks(path, encoder="e1"):
    return RocksVectorStore(RocksVectorStoreConfig(path=path), encoder)


def keys(*values):
    return np.array(values, np.int64)


@pytest.fixture(params=["memory", "rocks"])
def store(request, tmp_path):
    made = MemoryVectorStore("e1") if request.param == "memory" else rocks(tmp_path / "store")
    yield made
    made.close()
    made.close()


def reopened(store, path, tmp_path):
    """The store that a checkpoint at `path` stands for."""
    if isinstance(store, MemoryVectorStore):
        return MemoryVectorStore.from_checkpoint(path, "e1")
    restore_checkpoint(path, tmp_path / "restored")
    return rocks(tmp_path / "restored")


def test_get_many_answers_in_order_and_none_for_absent_keys(store):
    store.put_many(keys(3, -(2**63), 2**63 - 1), [b"3", b"low", b"high"], NO_KEYS, {})
    asked = keys(2**63 - 1, 5, 3, 3, -(2**63))
    assert store.get_many(asked) == [b"high", None, b"3", b"3", b"low"]
    assert store.get_many(NO_KEYS) == []
    assert store.encoder_version == "e1"


def test_upserts_and_deletions_replace(store):
    store.put_many(keys(1, 2), [b"a", b"b"], NO_KEYS, {})
    store.put_many(keys(1), [b""], keys(2, 9), {})
    assert store.get_many(keys(1, 2, 9)) == [b"", None, None]


def test_positions_are_kept_by_name_and_are_no_items(store):
    store.put_many(NO_KEYS, [], NO_KEYS, {"t/0": b"x", "t/10": b"y"})
    store.put_many(keys(1), [b"a"], NO_KEYS, {"t/0": b"z"})
    assert store.positions() == {"t/0": b"z", "t/10": b"y"}
    lookalike = np.frombuffer(b"millrace", ">i8").astype(np.int64)
    store.put_many(lookalike, [b"item"], NO_KEYS, {})
    assert store.positions() == {"t/0": b"z", "t/10": b"y"}
    assert store.get_many(lookalike) == [b"item"]


def test_a_checkpoint_is_what_was_there_at_that_moment(store, tmp_path):
    store.put_many(keys(1, 2), [b"a", b"b"], NO_KEYS, {"t/0": b"1"})
    store.checkpoint(tmp_path / "copy")
    store.put_many(keys(1), [b"later"], keys(2), {"t/0": b"2"})
    old = reopened(store, tmp_path / "copy", tmp_path)
    assert old.get_many(keys(1, 2)) == [b"a", b"b"]
    assert old.positions() == {"t/0": b"1"}
    old.put_many(keys(1), [b"other"], NO_KEYS, {})
    old.close()
    assert store.get_many(keys(1)) == [b"later"]
    once_more = reopened(store, tmp_path / "copy", tmp_path)
    assert once_more.get_many(keys(1)) == [b"a"]
    once_more.close()


def test_a_checkpoint_never_overwrites(store, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(StoreFailed, match="copy"):
        store.checkpoint(tmp_path / "copy")


def test_a_key_that_occurs_twice_in_one_write_is_our_mistake(store):
    with pytest.raises(AssertionError, match="twice"):
        store.put_many(keys(1), [b"a"], keys(1), {})


def test_memory_has_a_limit_and_leaves_nothing_half_written(tmp_path):
    small = MemoryVectorStore("e1", rows_max=2)
    small.put_many(keys(1, 2), [b"a", b"b"], NO_KEYS, {})
    small.put_many(keys(2), [b"c"], NO_KEYS, {})
    with pytest.raises(StoreFailed, match="limit of 2"):
        small.put_many(keys(2, 3), [b"d", b"e"], NO_KEYS, {})
    assert small.get_many(keys(2, 3)) == [b"c", None]
    with pytest.raises(StoreUnusable, match="cannot be read"):
        MemoryVectorStore.from_checkpoint(tmp_path / "absent", "e1")


def test_what_was_written_is_there_after_closing(tmp_path):
    first = rocks(tmp_path / "deep" / "store")
    first.put_many(keys(1), [b"a"], NO_KEYS, {"t/0": b"x"})
    first.close()
    again = rocks(tmp_path / "deep" / "store")
    assert again.get_many(keys(1)) == [b"a"]
    assert again.positions() == {"t/0": b"x"}
    again.close()


def test_another_encoder_version_is_refused_by_name(tmp_path):
    rocks(tmp_path / "store").close()
    with pytest.raises(StoreMismatch, match=r"'e1'.*'e2'"):
        rocks(tmp_path / "store", "e2")
    rocks(tmp_path / "store").close()  # the refused one has let go of it
    memory = MemoryVectorStore("e1")
    memory.checkpoint(tmp_path / "memory")
    with pytest.raises(StoreMismatch, match=r"'e1'.*'e2'"):
        MemoryVectorStore.from_checkpoint(tmp_path / "memory", "e2")


def test_a_foreign_database_is_refused(tmp_path):
    foreign = rocksdict.Rdict(str(tmp_path / "store"), rocksdict.Options(raw_mode=True))
    foreign[b"key"] = b"value"
    foreign.close()
    with pytest.raises(StoreMismatch, match="not a vector store"):
        rocks(tmp_path / "store")


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embeddings.vector_store.FORMAT", 99)
    rocks(tmp_path / "store").close()
    monkeypatch.undo()
    with pytest.raises(StoreMismatch, match="expected format 1, got 99"):
        rocks(tmp_path / "store")


def test_a_second_writer_is_refused(tmp_path):
    first = rocks(tmp_path / "store")
    with pytest.raises(StoreLocked, match="open in another place"):
        rocks(tmp_path / "store")
    code = (
        "from pathlib import Path; import sys\n"
        "from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig\n"
        "RocksVectorStore(RocksVectorStoreConfig(path=Path(sys.argv[1])), 'e1')\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert other.returncode != 0
    assert "StoreLocked" in other.stderr
    first.close()


def test_a_writer_that_was_killed_leaves_a_whole_store(tmp_path):
    code = (
        "from pathlib import Path; import os, signal, sys\n"
        "import numpy as np\n"
        "from embeddings.vector_store import RocksVectorStore, RocksVectorStoreConfig\n"
        "from embeddings.vectors import NO_KEYS\n"
        "store = RocksVectorStore(RocksVectorStoreConfig(path=Path(sys.argv[1])), 'e1')\n"
        "for n in range(1, 50):\n"
        "    size, text = n * 100, b'%d' % n\n"
        "    store.put_many(np.arange(size), [text] * size, NO_KEYS, {'t/0': text})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], cwd=ROOT, check=False, timeout=60
    )
    assert killed.returncode == -9
    left = rocks(tmp_path / "store")
    assert left.positions() == {"t/0": b"49"}
    assert set(left.get_many(np.arange(4900))) == {b"49"}
    left.close()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnusable, match="file"):
        rocks(tmp_path / "file")
    with pytest.raises(StoreUnusable, match="cannot be made"):
        rocks(tmp_path / "file" / "below")


def test_restoring_needs_a_checkpoint_and_replaces_what_was_there(tmp_path):
    with pytest.raises(StoreUnusable, match="no CURRENT"):
        restore_checkpoint(tmp_path, tmp_path / "target")
    store = rocks(tmp_path / "store")
    store.put_many(keys(1), [b"a"], NO_KEYS, {})
    store.checkpoint(tmp_path / "copy")
    store.put_many(keys(1, 2), [b"b", b"c"], NO_KEYS, {})
    store.close()
    restore_checkpoint(tmp_path / "copy", tmp_path / "store")
    back = rocks(tmp_path / "store")
    assert back.get_many(keys(1, 2)) == [b"a", None]
    back.close()


def test_errors_tell_wrong_input_from_faults():
    assert all(issubclass(e, InputError) for e in (StoreMismatch, StoreLocked, StoreUnusable))
    assert issubclass(StoreFailed, FaultError)


def test_a_config_without_room_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        RocksVectorStoreConfig(path=tmp_path, block_cache_mb=0)
