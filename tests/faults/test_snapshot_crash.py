"""A crash at every single file system call leaves the old or the new snapshot, never a mixture."""

from pathlib import Path

import numpy as np
import pytest

from infra.file_system import PosixFileSystem
from infra.snapshot_store import SnapshotStore, StoreUnwritable
from infra.state import Part


class Crash(OSError):
    """The process is gone: this call and all later ones fail."""


class CrashingFileSystem(PosixFileSystem):
    """Works for `calls_left` calls, then fails for ever.

    `torn`: the failing call itself has half an effect. `power_loss` on `end`: what was never
    synced is cut to half, as after a power cut.
    """

    def __init__(self, calls_left, *, torn=False):
        self.calls_left, self.torn, self.calls = calls_left, torn, 0
        self.unsynced: set[Path] = set()

    def _step(self, half=None):
        self.calls += 1
        if self.calls_left is not None:
            if self.calls_left <= 0:
                if self.torn and half and self.calls_left == 0:
                    self.calls_left -= 1
                    half()
                raise Crash(5, "crashed")
            self.calls_left -= 1

    def make_dir(self, path):
        self._step(path.mkdir)
        super().make_dir(path)

    def write(self, path, data):
        self._step(lambda: path.write_bytes(data[: len(data) // 2]))
        super().write(path, data)
        self.unsynced.add(path)

    def save_arrays(self, path, arrays):
        self._step(lambda: path.write_bytes(b"\x40"))
        super().save_arrays(path, arrays)
        self.unsynced.add(path)

    def link(self, source, target):
        self._step(lambda: target.write_bytes(b""))
        super().link(source, target)

    def sync(self, path):
        self._step()
        super().sync(path)
        self.unsynced.discard(path)

    def rename(self, source, target):
        self._step()
        super().rename(source, target)
        self.unsynced = {
            target / p.relative_to(source) if p.is_relative_to(source) else p for p in self.unsynced
        }

    def remove_tree(self, path):
        def half():
            if path.is_dir():
                for file in sorted(p for p in path.rglob("*") if p.is_file())[::2]:
                    file.unlink()

        self._step(half)
        super().remove_tree(path)

    def power_loss(self):
        for path in self.unsynced:
            if path.is_file():
                data = path.read_bytes()
                path.write_bytes(data[: len(data) // 2])


def parts(value):
    return [
        Part(name="join", part_class="train", arrays={"x": np.full(50, value, np.int64)}),
        Part(name="ranker", part_class="serve", arrays={"w": np.full(9, value, np.float32)}),
        Part(name="bare", part_class="train", meta={"value": value}),
    ]


def checkpoint(folder, value):
    (folder / "sub").mkdir(parents=True)
    (folder / "a.sst").write_text(str(value))
    (folder / "sub" / "b.sst").write_text(str(value))
    return folder


def write(store, epoch, value, tmp_path):
    source = tmp_path / f"checkpoint-{value}"
    if not source.exists():
        checkpoint(source, value)
    meta = {"value": value}
    return store.write(epoch, value, parts(value), meta, linked_dirs={"vectors": source})


def state(folder, tmp_path):
    """The value of the newest valid snapshot, after checking that all of it is of one piece."""
    store = SnapshotStore(folder)
    found = store.latest_valid()
    assert found.damaged == (), [str(one) for one in found.damaged]
    if found.ref is None:
        return None
    loaded, meta = store.load(found.ref)
    value = meta["value"]
    assert loaded["join"].array("x").tolist() == [value] * 50
    assert loaded["ranker"].array("w").tolist() == [value] * 9
    assert loaded["bare"].meta == {"value": value}
    for name in ("a.sst", "sub/b.sst"):
        assert (store.path(found.ref) / "vectors" / name).read_text() == str(value)
    return value


def one_life(folder, files, tmp_path):
    """What a worker does: claim an epoch, write, prune. Returns how many snapshots it wrote."""
    store = SnapshotStore(folder, files=files)
    epoch = store.claim_epoch(store.latest_valid().ref)
    write(store, epoch, 2, tmp_path)
    store.prune(1)


def prepared(folder, tmp_path):
    store = SnapshotStore(folder)
    write(store, store.claim_epoch(None), 1, tmp_path)


def calls_of_one_life(tmp_path):
    prepared(tmp_path / "count", tmp_path)
    files = CrashingFileSystem(None)
    one_life(tmp_path / "count", files, tmp_path)
    return files.calls


@pytest.mark.parametrize("torn", (False, True))
@pytest.mark.parametrize("power_loss", (False, True))
def test_a_crash_at_any_call_leaves_the_old_or_the_new_snapshot(tmp_path, torn, power_loss):
    total = calls_of_one_life(tmp_path)
    assert total > 25
    seen = []
    for k in range(total):
        folder = tmp_path / f"store-{k}"
        prepared(folder, tmp_path)
        files = CrashingFileSystem(k, torn=torn)
        with pytest.raises(StoreUnwritable):
            one_life(folder, files, tmp_path)
        if power_loss:
            files.power_loss()
        seen.append(state(folder, tmp_path))
        # The next life claims a later epoch, writes on and clears what was left.
        store = SnapshotStore(folder)
        epoch = store.claim_epoch(store.latest_valid().ref)
        write(store, epoch, 3, tmp_path)
        store.prune(1)
        assert state(folder, tmp_path) == 3
        assert not [p for p in store.epochs.rglob(".*") if not p.name.startswith(".claim")]
    assert set(seen) == {1, 2}
    assert seen == sorted(seen), "once the new one is visible it stays"


def test_a_crash_while_the_first_snapshot_is_written_leaves_none(tmp_path):
    def first_life(folder, files):
        store = SnapshotStore(folder, files=files)
        write(store, store.claim_epoch(None), 1, tmp_path)

    files = CrashingFileSystem(None)
    first_life(tmp_path / "count", files)
    seen = []
    for k in range(files.calls):
        folder = tmp_path / f"store-{k}"
        with pytest.raises(StoreUnwritable):
            first_life(folder, CrashingFileSystem(k, torn=True))
        seen.append(state(folder, tmp_path))
    assert set(seen) == {None, 1}
