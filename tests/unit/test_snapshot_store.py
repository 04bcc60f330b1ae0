import errno
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from infra.clock import FixedClock
from infra.file_system import PosixFileSystem
from infra.snapshot_format import (
    MANIFEST,
    SnapshotCorrupt,
    SnapshotMissing,
    SnapshotRef,
    SnapshotVersionMismatch,
    pack,
    part_file,
    unpack,
)
from infra.snapshot_store import EpochFenced, SnapshotStore, StoreUnwritable
from infra.snapshot_writer import SnapshotWriter
from infra.state import Part

DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")


@pytest.fixture
def store(tmp_path):
    return SnapshotStore(tmp_path / "store", clock=FixedClock(1000))


def part(value, name="join", **options):
    arrays = {"x": np.full(3, value, np.int64)}
    return Part(name=name, part_class="train", arrays=arrays, meta={"value": value}, **options)


def value_of(store, ref):
    parts, meta = store.load(ref)
    assert parts["join"].array("x").tolist() == [parts["join"].meta["value"]] * 3
    assert meta["value"] == parts["join"].meta["value"]
    return meta["value"]


def write(store, epoch, step, value=None):
    value = step if value is None else value
    return store.write(epoch, step, [part(value)], {"value": value})


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def test_parts_come_back_as_they_were(store):
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 2, (4, 3)).astype(name) for name in DTYPES}
    arrays |= {name: rng.normal(size=5).astype(name) for name in FLOATS}
    arrays |= {
        "empty": np.zeros((0, 7), np.float32),
        "scalar": np.array(2.5, np.float64),
        "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "strided": np.arange(10, dtype=np.int64)[::3],
        "big_endian": np.arange(3, dtype=">i4"),
        "nan": np.array([np.nan, -0.0, np.inf], np.float32),
    }
    meta = {"n": 2**63 - 1, "s": "é", "b": b"\x00\xff", "f": 0.1, "l": [1, [2]], "m": {3: None}}
    both = [
        Part(name="a.b/c", part_class="serve", arrays=arrays, meta=meta),
        Part(name="bare", part_class="train", delta=True),
    ]
    ref = store.write(store.claim_epoch(None), 7, both, {"positions": [[1, 2]]})
    parts, stored_meta = store.load(ref)
    assert stored_meta == {"positions": [[1, 2]]}
    assert list(parts) == ["a.b/c", "bare"]
    assert parts["a.b/c"].meta == meta
    assert (parts["bare"].part_class, parts["bare"].delta) == ("train", True)
    assert set(parts["a.b/c"].arrays) == set(arrays)
    for name, array in arrays.items():
        got = parts["a.b/c"].arrays[name]
        assert got.dtype == array.dtype.newbyteorder("="), name
        assert got.shape == array.shape, name
        assert got.tobytes() == np.ascontiguousarray(array, got.dtype).tobytes(), name
        assert got.flags.writeable, name


def test_layout_is_the_published_one(store):
    store.write(store.claim_epoch(None), 1234, [part(1)], {})
    folder = store.folder / "epochs" / "1" / "000000001234"
    assert sorted(p.name for p in folder.iterdir()) == [
        "join.msgpack",
        "join.safetensors",
        MANIFEST,
    ]


def test_the_manifest_tells_without_reading_parts(store):
    ref = store.write(store.claim_epoch(None), 5, [part(1), Part(name="q", part_class="serve")], {})
    manifest = store.manifest(ref)
    assert manifest.created_ms == 1000
    assert [(p.name, p.part_class, len(p.files)) for p in manifest.parts] == [
        ("join", "train", 2),
        ("q", "serve", 1),
    ]
    folder = store.path(ref)
    files = [p for p in folder.iterdir() if p.name != MANIFEST]
    assert manifest.size_bytes() == sum(p.stat().st_size for p in files)


@pytest.mark.parametrize(
    "array", (np.array(["x"]), np.array([None]), np.zeros(2, [("a", "i4")]), np.zeros(1, "c16"))
)
def test_arrays_that_are_not_plain_are_refused(store, array):
    epoch = store.claim_epoch(None)
    bad = Part(name="p", part_class="serve", arrays={"x": array})
    with pytest.raises(TypeError, match="part 'p', array 'x': expected bool, integers or floats"):
        store.write(epoch, 1, [bad], {})
    assert store.refs() == []
    assert [p.name for p in (store.epochs / "1").iterdir()] == ["claim.msgpack"]


@pytest.mark.parametrize("name", ("", "manifest", "x" * 300, ".hidden"))
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(ValueError, match="expected a name of 1 to 200 letters"):
        part_file(name, "msgpack")


def test_a_step_written_twice_gives_two_snapshots_in_order(store):
    epoch = store.claim_epoch(None)
    first, second = write(store, epoch, 3, 1), write(store, epoch, 3, 2)
    assert str(second) == "1/000000000003-001"
    assert store.refs() == [first, second]
    assert value_of(store, first) == 1
    assert store.latest_valid().ref == second
    assert store.find("1/000000000003-001") == second


def test_an_empty_or_absent_store_has_no_snapshot(store):
    assert store.latest_valid().ref is None
    store.claim_epoch(None)
    assert store.latest_valid().ref is None


def test_find_takes_short_names_and_names_what_there_is(store):
    ref = write(store, store.claim_epoch(None), 42)
    assert store.find("1/42") == store.find("latest") == ref
    for text in ("1/43", "x", "2/42", "1/", "", "1/x"):
        with pytest.raises(SnapshotMissing, match=r"newest: 1/000000000042"):
            store.find(text)
    with pytest.raises(SnapshotMissing, match="no snapshot 1/000000000009"):
        store.load(SnapshotRef(1, 9))


# -- damage


def test_every_byte_of_every_file_is_guarded(store):
    epoch = store.claim_epoch(None)
    old, new = write(store, epoch, 1), write(store, epoch, 2)
    for path in sorted(store.path(new).iterdir()):
        whole = path.read_bytes()
        for position in range(0, len(whole), 5):
            flip(path, position)
            found = store.latest_valid()
            assert found.ref == old, (path.name, position)
            assert found.damaged[0].snapshot == str(new)
            assert store.verify(new)
            path.write_bytes(whole)
    assert store.verify(new) == []


def test_truncated_and_missing_files_say_what_where_expected_got(store):
    epoch = store.claim_epoch(None)
    old, new = write(store, epoch, 1), write(store, epoch, 2)
    path = store.path(new) / "join.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    found = store.latest_valid()
    assert found.ref == old
    assert str(found.damaged[0]) == (
        f"snapshot 1/000000000002: join.safetensors: expected {size} bytes, got {size - 1}"
    )
    with pytest.raises(SnapshotCorrupt, match=r"join\.safetensors"):
        store.load(new)
    path.unlink()
    assert "No such file" in str(store.verify(new)[0])
    (store.path(new) / MANIFEST).unlink()
    assert store.verify(new)[0].what == MANIFEST


def test_all_damaged_is_an_error_and_never_an_empty_state(store):
    ref = write(store, store.claim_epoch(None), 1)
    flip(store.path(ref) / MANIFEST)
    with pytest.raises(SnapshotCorrupt, match="no valid snapshot: snapshot 1/000000000001"):
        store.latest_valid()


def test_another_format_version_is_refused_and_not_skipped(store):
    epoch = store.claim_epoch(None)
    write(store, epoch, 1)
    path = store.path(write(store, epoch, 2)) / MANIFEST
    outer = unpack(path.read_bytes())
    body = unpack(outer["body"]) | {"version": 99}
    outer["body"] = pack(body)
    outer["sha256"] = hashlib.sha256(outer["body"]).digest()
    path.write_bytes(pack(outer))
    with pytest.raises(SnapshotVersionMismatch, match="expected format version 1, got 99"):
        store.latest_valid()


def test_a_file_name_that_leads_outside_is_damage(store):
    ref = write(store, store.claim_epoch(None), 1)
    path = store.path(ref) / MANIFEST
    outer = unpack(path.read_bytes())
    body = unpack(outer["body"])
    body["parts"][0][3][0][0] = "../../claim.msgpack"
    outer["body"] = pack(body)
    outer["sha256"] = hashlib.sha256(outer["body"]).digest()
    path.write_bytes(pack(outer))
    assert "lies outside the snapshot" in str(store.verify(ref)[0])


def test_a_snapshot_moved_to_another_place_is_damage(store):
    epoch = store.claim_epoch(None)
    old, new = write(store, epoch, 1), write(store, epoch, 2)
    store.path(new).rename(store.path(SnapshotRef(epoch, 3)))
    found = store.latest_valid()
    assert found.ref == old
    assert found.damaged[0].expected == "place 1/000000000003"


# -- epochs


def test_epochs_are_claimed_once_each(tmp_path):
    stores = [SnapshotStore(tmp_path) for _ in range(8)]
    claimed = []

    def claim(store):
        claimed.extend(store.claim_epoch(None) for _ in range(5))

    threads = [threading.Thread(target=claim, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(1, 41))


def test_two_first_owners_do_not_trip_over_the_folder(tmp_path, monkeypatch):
    """Both see that there is no folder of epochs yet; the slower one finds it made."""
    store = SnapshotStore(tmp_path)
    make_dir = store._files.make_dir

    def beaten(path):
        make_dir(path)
        if path == store.epochs:
            raise FileExistsError(path)

    monkeypatch.setattr(store._files, "make_dir", beaten)
    assert store.claim_epoch(None) == 1


def test_a_worker_that_lost_its_place_is_told_and_its_writes_are_not_looked_at(store):
    first = store.claim_epoch(None)
    loaded = write(store, first, 10)
    second = store.claim_epoch(loaded)
    assert store.fenced(first)
    assert not store.fenced(second)
    with pytest.raises(EpochFenced, match="epoch 1"):
        write(store, first, 11)
    # A zombie that was stopped after its check: its snapshot appears below the old epoch.
    store.fenced = lambda epoch: False
    late = write(store, first, 12)
    del store.fenced
    assert late > loaded
    assert store.latest_valid().ref == loaded  # the claim's parent, not the zombie's newer one
    newer = write(store, second, 11)
    assert store.latest_valid().ref == newer


def test_falls_back_along_recorded_parents(store):
    one = write(store, store.claim_epoch(None), 1)
    two = write(store, store.claim_epoch(one), 2)
    three = write(store, store.claim_epoch(two), 3)
    store.claim_epoch(three)
    assert store.latest_valid().ref == three
    flip(store.path(three) / "join.msgpack")
    assert store.latest_valid().ref == two
    flip(store.path(two) / "join.msgpack")
    found = store.latest_valid()
    assert found.ref == one
    assert [d.snapshot for d in found.damaged] == [str(three), str(two)]


def test_an_epoch_started_anew_does_not_fall_back(store):
    write(store, store.claim_epoch(None), 1)
    store.claim_epoch(None)
    assert store.latest_valid().ref is None


@pytest.mark.parametrize("content", (b"", b"\xc1", pack({"parent": [9, 9, 9]}), pack([1])))
def test_a_damaged_claim_is_reported_and_older_epochs_are_used(store, content):
    one = write(store, store.claim_epoch(None), 1)
    (store.epochs / str(store.claim_epoch(one)) / "claim.msgpack").write_bytes(content)
    found = store.latest_valid()
    assert found.ref == one
    assert found.damaged[0].what == "claim"


# -- deltas, linked directories, pruning


def test_a_delta_is_valid_only_with_its_parents(store):
    epoch = store.claim_epoch(None)
    full = write(store, epoch, 1)
    kinds = {"kind": "delta", "parent": full}
    second = store.write(epoch, 2, [part(2, delta=True)], {}, **kinds)
    third = store.write(epoch, 3, [part(3, delta=True)], {}, kind="delta", parent=second)
    assert store.chain(third) == [full, second, third]
    assert store.verify(third) == []
    flip(store.path(second) / "join.safetensors")
    assert store.latest_valid().ref == full
    assert "1/000000000002" in str(store.verify(third)[0])


def linked(folder, **contents):
    folder.mkdir(parents=True)
    for name, text in contents.items():
        (folder / f"{name}.sst").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "CURRENT").write_text("c")
    return folder


def test_linked_directories_share_their_files_and_come_back_as_copies(store, tmp_path):
    source = linked(tmp_path / "checkpoint", a="one", b="two")
    epoch = store.claim_epoch(None)
    ref = store.write(epoch, 1, [], {}, linked_dirs={"vectors": source})
    inside = store.path(ref) / "vectors"
    assert (inside / "a.sst").samefile(source / "a.sst")
    assert [f.name for f in store.manifest(ref).linked["vectors"]] == [
        "vectors/a.sst",
        "vectors/b.sst",
        "vectors/sub/CURRENT",
    ]
    store.copy_linked(ref, "vectors", tmp_path / "live", link_suffixes=(".sst",))
    assert (tmp_path / "live" / "a.sst").samefile(source / "a.sst")
    live = tmp_path / "live" / "sub" / "CURRENT"
    assert live.read_text() == "c"
    live.write_text("changed")
    assert store.verify(ref) == []
    with pytest.raises(SnapshotMissing, match="no linked directory 'other'"):
        store.copy_linked(ref, "other", tmp_path / "x")
    flip(inside / "b.sst")
    assert "vectors/b.sst" in str(store.verify(ref)[0])
    with pytest.raises(SnapshotCorrupt, match=r"vectors/b\.sst"):
        store.copy_linked(ref, "vectors", tmp_path / "y")


def test_prune_keeps_the_newest_and_what_they_need(store):
    one = store.claim_epoch(None)
    refs = [write(store, one, step) for step in range(1, 5)]
    delta = store.write(one, 5, [part(5)], {"value": 5}, kind="delta", parent=refs[1])
    assert store.prune(2) == [refs[0], refs[2]]
    assert store.refs() == [refs[1], refs[3], delta]
    assert store.latest_valid().ref == delta
    assert store.prune(2) == []


def test_prune_keeps_what_a_resume_would_load(store):
    first = store.claim_epoch(None)
    loaded = write(store, first, 1)
    write(store, first, 2)
    newest = store.claim_epoch(loaded)
    store.prune(1)
    assert store.latest_valid().ref == loaded
    refs = [write(store, newest, step) for step in (3, 4)]
    store.prune(1)
    assert store.refs() == [refs[1]]
    assert store.epoch_numbers() == [2]  # an old epoch goes with its last snapshot
    assert store.claim_epoch(refs[1]) == 3


def test_prune_clears_what_crashes_left_behind(store):
    for name in (".trash-1", "1/.trash-2", "1/.writing-3", "2/.writing-4"):
        (store.epochs / name).mkdir(parents=True)
    ref = write(store, store.claim_epoch(None), 1)
    assert ref.epoch == 3
    store.prune(1)
    assert sorted(p.name for p in store.epochs.iterdir()) == ["3"]


# -- what the system refuses


def test_an_unwritable_directory_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnwritable, match=r"file/store.*Not a directory"):
        SnapshotStore(tmp_path / "file" / "store").claim_epoch(None)


class FullDisk(PosixFileSystem):
    full = False

    def sync(self, path):
        if self.full and path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().sync(path)


def test_a_full_disk_is_reported_and_nothing_is_left(tmp_path):
    disk = FullDisk()
    store = SnapshotStore(tmp_path, files=disk)
    epoch = store.claim_epoch(None)
    old = write(store, epoch, 1)
    disk.full = True
    with pytest.raises(StoreUnwritable, match="No space left on device"):
        write(store, epoch, 2)
    assert sorted(p.name for p in (store.epochs / "1").iterdir()) == [old.folder, "claim.msgpack"]
    disk.full = False
    assert store.latest_valid().ref == old
    assert value_of(store, write(store, epoch, 2)) == 2


# -- the writer's thread


class Gate(PosixFileSystem):
    """Lets the writer go on only when opened."""

    def __init__(self):
        self.open = threading.Event()

    def save_arrays(self, path, arrays):
        assert self.open.wait(30)
        super().save_arrays(path, arrays)


def test_the_writer_takes_one_at_a_time_and_reports_when_done(tmp_path):
    gate = Gate()
    store = SnapshotStore(tmp_path / "s", files=gate)
    checkpoint = linked(tmp_path / "c", a="x")
    with SnapshotWriter(store, store.claim_epoch(None)) as writer:
        assert writer.finished() is None
        assert writer.submit(1, [part(1)], {"value": 1}, linked_dirs={"vectors": checkpoint})
        assert writer.busy()
        assert not writer.submit(2, [part(2)], {"value": 2})
        with pytest.raises(TimeoutError):
            writer.wait(0)
        gate.open.set()
        ref = writer.wait()
        assert value_of(store, ref) == 1
        assert not checkpoint.exists()
        assert writer.finished() is None
        assert writer.submit(2, [part(2)], {"value": 2})
    assert [r.step for r in store.refs()] == [1, 2]


def test_the_writers_error_reaches_the_caller_once(tmp_path):
    disk = FullDisk()
    store = SnapshotStore(tmp_path, files=disk)
    writer = SnapshotWriter(store, store.claim_epoch(None))
    disk.full = True
    assert writer.submit(1, [part(1)], {})
    with pytest.raises(StoreUnwritable):
        writer.wait()
    disk.full = False
    assert writer.submit(2, [part(2)], {"value": 2})
    writer.close()
    assert value_of(store, store.latest_valid().ref) == 2
