import json
import sys
import types

import numpy as np
import pytest

from infra.clock import FixedClock
from infra.snapshot_store import SnapshotStore
from infra.state import Part
from stream import cli


@pytest.fixture
def store(tmp_path):
    store = SnapshotStore(tmp_path, clock=FixedClock(1_650_000_000_000))
    part = Part(name="join", part_class="train", arrays={"x": np.arange(3)})
    epoch = store.claim_epoch(None)
    full = store.write(epoch, 1, [part], {"seed": 7, "hash": b"\x01\xff"})
    store.write(epoch, 2, [part], {}, kind="delta", parent=full)
    return store


def run(*arguments):
    return cli.run(["snapshot", *map(str, arguments)])


def damage(store, name):
    (store.path(store.find(name)) / "join.safetensors").write_bytes(b"x")


def test_ls_names_each_with_kind_parent_and_time(store, capsys):
    assert run("ls", store.folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["1/000000000001", "full", "2022-04-15", "05:20:00"]
    assert lines[2].split()[:3] == ["1/000000000002", "delta", "1/000000000001"]


def test_ls_tells_a_damaged_manifest(store, capsys):
    (store.path(store.find("1/2")) / "manifest.msgpack").write_bytes(b"")
    assert run("ls", store.folder, "--json") == 1
    rows = json.loads(capsys.readouterr().out)["snapshots"]
    assert [row["kind"] for row in rows] == ["full", "damaged"]


def test_show_prints_parts_and_meta(store, capsys):
    assert run("show", store.folder, "1/1", "--json") == 0
    details = json.loads(capsys.readouterr().out)
    assert details["meta"] == {"seed": 7, "hash": "01ff"}
    assert [f["name"] for f in details["parts"][0]["files"]] == ["join.msgpack", "join.safetensors"]
    assert run("show", store.folder) == 0
    assert "1/000000000002" in capsys.readouterr().out


def test_verify_is_zero_when_sound_and_one_when_damaged(store, capsys):
    assert run("verify", store.folder, "--all") == 0
    assert capsys.readouterr().out.count("valid") == 2
    damage(store, "1/1")
    assert run("verify", store.folder, "1/2", "--json") == 1  # its parent is damaged
    problems = json.loads(capsys.readouterr().out)["snapshots"]["1/000000000002"]
    assert problems == [problems[0]]
    assert "join.safetensors: expected" in problems[0]


@pytest.mark.parametrize("verb", ("ls", "show", "verify"))
def test_a_folder_that_is_no_store_is_two(tmp_path, verb, capsys):
    assert run(verb, tmp_path / "none") == 2
    assert "expected a snapshot store" in capsys.readouterr().err


def test_an_unknown_snapshot_is_two(store, capsys):
    assert run("verify", store.folder, "1/9") == 2
    assert "no snapshot '1/9'" in capsys.readouterr().err


def test_against_a_log_asks_the_ledger(store, monkeypatch, capsys):
    module = types.ModuleType("stream.ledger_check")
    module.verify_against = lambda meta, logs: [f"{meta['seed']} {logs[0].name}"]
    monkeypatch.setitem(sys.modules, "stream.ledger_check", module)
    assert run("verify", store.folder, "1/1", "--against", "a.parquet") == 1
    assert "7 a.parquet" in capsys.readouterr().out
