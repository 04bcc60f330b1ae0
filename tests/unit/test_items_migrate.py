"""The migration's own parts: rows by version, the state file, the command's refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from embeddings.vector_codec import encode_item_vector
from infra.errors import InputError
from stream import cli
from stream.codec_write import encode_key, encode_vector_key
from stream.migration_state import FILE, MigrationState, read_state, write_state
from stream.version_rows import VERSIONS_MAX, VersionRows
from tests.support.replays import ranked_config, write_config
from tests.support.streams import T0

STATE = MigrationState(before="old", version="new", to="new.toml")


def row(version, item, *, deleted=False, key=None):
    value = encode_item_vector(
        item_id=item, ts_ms=T0, encoder=version, vector=np.ones(2), deleted=deleted
    )
    return (encode_vector_key(version, item) if key is None else key), value


def test_rows_are_counted_by_version_and_item():
    rows = VersionRows()
    rows.take([row("old", item) for item in (*range(10), "a")])
    rows.take([row("new", item) for item in range(4)])
    rows.take([row("old", 3, deleted=True), row("new", 99)])
    assert rows.versions == ["new", "old"]
    assert len(rows.items("old")) == 10
    assert rows.coverage("old", "new") == (3, 10)
    assert rows.coverage("none", "new") == (0, 0)


def test_the_last_row_of_a_record_key_counts():
    """Rows of older embedders have the item alone as their key: a later one replaces them."""
    rows = VersionRows()
    rows.take([row("old", 1, key=encode_key(1)), row("old", 2), row("old", 3)])
    rows.take([row("new", 1, key=encode_key(1)), (encode_vector_key("old", 2), None)])
    assert rows.items("old").isdisjoint(rows.items("new"))
    assert len(rows.keys("old")) == 1
    assert rows.coverage("old", "new") == (0, 1)


def test_what_is_no_row_is_counted_and_left_out():
    rows = VersionRows()
    rows.take([(b"k", b"\xc1"), (None, b"x")])
    assert rows.unreadable == 2
    rows.take([row(f"v{i}", 1) for i in range(VERSIONS_MAX + 5)])
    assert len(rows.versions) == VERSIONS_MAX


def test_a_state_is_written_whole_and_read_back(tmp_path):
    assert read_state(tmp_path / "none") is None
    write_state(tmp_path / "s", STATE)
    assert read_state(tmp_path / "s") == STATE
    assert [path.name for path in (tmp_path / "s").iterdir()] == [FILE]
    (tmp_path / "s" / FILE).write_text("{")
    with pytest.raises(InputError, match="is no state of a migration"):
        read_state(tmp_path / "s")


def test_a_phase_never_goes_back():
    assert STATE.at("ready").at("backfill", covered=3).phase == "ready"
    assert STATE.at("ready").at("adopted").phase == "adopted"
    assert STATE.coverage == 1
    assert MigrationState(before="a", version="b", to="c", items=4, covered=3).coverage == 0.75


def command(*arguments):
    return cli.run(["items", "migrate", *(str(a) for a in arguments)])


def test_status_shows_how_far_it_is(tmp_path, capsys):
    write_state(tmp_path, MigrationState(
        before="old", version="new", to="new.toml", phase="ready", items=200, covered=199
    ))  # fmt: skip
    assert command("--state", tmp_path, "--status") == 0
    shown = capsys.readouterr().out
    assert "199 of 200 items (99.50%)" in shown
    assert "items.next=new.toml" in shown
    assert command("--state", tmp_path, "--status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["coverage"] == 0.995


def test_steps_in_the_wrong_order_are_refused(tmp_path, capsys):
    old = write_config(tmp_path / "old.toml", ranked_config())
    new = write_config(tmp_path / "new.toml", ranked_config(items={"dim": 24, "seed": 7}))

    def refused(*arguments, words):
        assert command("--config", old, "--state", tmp_path / "s", *arguments) == 2
        assert words in capsys.readouterr().err

    refused("--status", words="no migration was begun here")
    refused(words="--to: name the configuration")
    refused("--to", old, words="of the present encoder")
    write_state(tmp_path / "s", STATE)
    refused("--to", new, words="a migration from 'old' to 'new' was begun here")
    refused("--finish", words="--adopt comes first")
    refused("--adopt", tmp_path, words="go on with --to first")
    write_state(tmp_path / "s", STATE.at("ready"))
    refused("--adopt", tmp_path / "nowhere", words="expected the worker's snapshot folder")
    refused("--adopt", tmp_path, words="no valid snapshot")
