"""A replay that is killed and resumed ends with the same bits; its snapshots prove exactly-once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from infra.snapshot_store import SnapshotStore
from stream import cli
from stream.ledger_check import verify_against
from stream.record_log import RecordLog, RecordLogWriter
from tests.support.logs import HOUR_MS, write_log
from tests.support.replays import (
    Killed,
    envelope_log,
    logit_hash,
    ranked_config,
    replay,
    weights_of,
    write_config,
)

ROOT = Path(__file__).parents[2]
CONFIG = ranked_config(snapshot={"every_samples": 150, "keep": 100})


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "a.parquet", samples=700)


@pytest.fixture(scope="module")
def envelopes(tmp_path_factory):
    return envelope_log(tmp_path_factory.mktemp("log") / "envelopes.parquet")


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """An uninterrupted run without any snapshot."""
    return replay(CONFIG, (log,), tmp_path_factory.mktemp("whole"))


def assert_same(result, whole):
    assert logit_hash(result.predictions) == logit_hash(whole.predictions)
    assert pq.read_table(result.predictions).equals(pq.read_table(whole.predictions))
    assert weights_of(result.composition) == weights_of(whole.composition)
    assert result.composition.pipeline.ledger == whole.composition.pipeline.ledger


def metas(report):
    store = SnapshotStore(report / "snapshots")
    return [store.manifest(ref).meta for ref in store.refs()]


def assert_proven(report, *logs):
    found = metas(report)
    assert found
    for meta in found:
        assert verify_against(meta, logs) == []


@pytest.mark.parametrize(("chunk", "kills"), ((50, (5, 13)), (333, (2, 3)), (4_096, (1,))))
def test_killed_at_chunks_and_resumed_is_bit_identical(log, whole, tmp_path, chunk, kills):
    for kill in kills:
        with pytest.raises(Killed):
            replay(CONFIG, (log,), tmp_path, kill_after=kill, chunk_records=chunk, snapshots=True,
                   resume=True)  # fmt: skip
    result = replay(CONFIG, (log,), tmp_path, chunk_records=71, snapshots=True, resume=True)
    assert_same(result, whole)
    assert_proven(tmp_path, log)


def test_sigkill_of_the_process_and_resume_is_bit_identical(log, whole, tmp_path):
    """The process kills itself by SIGKILL in the middle of writing its second snapshot."""
    config = write_config(tmp_path / "c.toml", CONFIG)
    script = (
        "import os, signal, sys\n"
        "from infra import snapshot_store as s\n"
        "whole = s.SnapshotStore._write_part\n"
        "calls = []\n"
        "def part(self, folder, part):\n"
        "    calls.append(part)\n"
        "    if len(calls) > 12: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole(self, folder, part)\n"
        "s.SnapshotStore._write_part = part\n"
        "from stream.cli import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    report = tmp_path / "report"
    arguments = ["replay", log, "--config", config, "--report", report, "--snapshot-every", "150"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=tmp_path, env=environment, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not (report / "predictions.parquet").exists()
    result = replay(CONFIG, (log,), report, snapshots=True, resume=True)
    assert_same(result, whole)
    assert_proven(report, log)


def test_release_inside_an_envelope_is_resumed_and_proven(envelopes, tmp_path):
    """Positions with an index: rows of a record that was begun are neither lost nor repeated."""
    whole = replay(CONFIG, (envelopes,), tmp_path / "whole")
    report, indices = tmp_path / "killed", set()
    for kill in (9, 7, 8):
        with pytest.raises(Killed):
            replay(CONFIG, (envelopes,), report, kill_after=kill, chunk_records=2, snapshots=True,
                   resume=True)  # fmt: skip
        indices |= {row["index"] for meta in metas(report) for row in meta["positions"]}
    assert len(indices) > 1, "no release stopped inside an envelope"
    result = replay(CONFIG, (envelopes,), report, chunk_records=3, snapshots=True, resume=True)
    assert_same(result, whole)
    assert_proven(report, envelopes)


def test_a_second_log_continues_the_first_like_one_log(log, whole, tmp_path):
    """Clicks at the tail of one log meet impressions of the one before."""
    records = records_of(log)
    names = {"a": records[: len(records) // 2], "b": records[len(records) // 2 :]}
    logs = tuple(write_records(tmp_path / f"{n}.parquet", rows) for n, rows in names.items())
    chained = replay(CONFIG, logs, tmp_path / "chain", snapshots=True)
    assert_same(chained, whole)
    for meta in metas(tmp_path / "chain"):
        assert verify_against(meta, logs) == []
    last = metas(tmp_path / "chain")[-1]
    assert any("none of the given logs" in line for line in verify_against(last, logs[:1]))
    assert any("give them too" in line for line in verify_against(last, logs[1:]))


def test_a_second_log_in_a_run_of_its_own_continues_the_first(tmp_path):
    first = write_log(tmp_path / "a.parquet", samples=400)
    second = write_log(tmp_path / "b.parquet", samples=300, seed=1, start_ms=HOUR_MS)
    together = replay(CONFIG, (first, second), tmp_path / "together")
    replay(CONFIG, (first,), tmp_path / "apart", snapshots=True)
    with pytest.raises(InputError, match="--new-log"):
        replay(CONFIG, (second,), tmp_path / "apart", snapshots=True, resume=True)
    result = replay(
        CONFIG, (second,), tmp_path / "apart", snapshots=True, resume=True, new_log=True
    )
    assert any("positions start anew" in note for note in result.restored.notes)
    assert_same(result, together)


def records_of(path):
    table = pq.read_table(path)
    names = ("topic", "partition", "offset", "timestamp_ms", "key", "value")
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def write_records(path, rows, source_id=None):
    partitions = {"items": 1, "impressions": 2, "clicks": 2}
    with RecordLogWriter(path, partitions, ordered=True, source_id=source_id) as out:
        for row in rows:
            out.write(*row)
    return path


def killed_run(log, report):
    with pytest.raises(Killed):
        replay(CONFIG, (log,), report, kill_after=12, chunk_records=60, snapshots=True)
    assert metas(report)


def resume(log, report, tmp_path, config=CONFIG):
    """Exit code of `millrace replay --resume`."""
    file = write_config(tmp_path / "resume.toml", config)
    return cli.run(["replay", str(log), "--config", str(file), "--report", str(report),
                    "--resume"])  # fmt: skip


def changed_log(log, tmp_path, change):
    rows = change(records_of(log))
    return write_records(tmp_path / "changed.parquet", rows, RecordLog(log).source_id)


def test_a_log_that_ends_before_the_position_is_refused(log, tmp_path, capsys):
    killed_run(log, tmp_path / "r")
    short = changed_log(log, tmp_path, lambda rows: rows[:100])
    assert resume(short, tmp_path / "r", tmp_path) == 2
    error = capsys.readouterr().err
    assert "ends before offset" in error
    assert len(error.splitlines()) == 1
    problems = verify_against(metas(tmp_path / "r")[-1], (short,))
    assert any("records consumed, the log has" in line for line in problems)


def test_a_log_that_was_changed_is_refused(log, tmp_path, capsys):
    killed_run(log, tmp_path / "r")

    def change(rows):
        return [(t, p, o, at, key, value + b"") if t == "items" else
                (t, p, o, at, key, rows[(i + 40) % len(rows)][5]) for i, (t, p, o, at, key, value)
                in enumerate(rows)]  # fmt: skip

    other = changed_log(log, tmp_path, change)
    assert resume(other, tmp_path / "r", tmp_path) == 2
    assert "the log was changed" in capsys.readouterr().err
    problems = verify_against(metas(tmp_path / "r")[-1], (other,))
    assert any("is not the one consumed" in line for line in problems)
    assert any(line.startswith("ledger") for line in problems)


def test_a_changed_configuration_is_refused_with_a_list(log, tmp_path, capsys):
    killed_run(log, tmp_path / "r")
    stream = {"lateness_ms": 400, "batch_size": 32, "max_slice_events": 7}
    other = ranked_config(
        stream={"linger_ms": 60_000, "dedup_horizon_ms": 20_000, **stream}, items={"dim": 8}
    )
    assert resume(log, tmp_path / "r", tmp_path, other) == 2
    error = capsys.readouterr().err
    for line in ("stream.lateness_ms: 500 -> 400", "stream.batch_size: 64 -> 32"):
        assert line in error
    assert "max_slice_events" not in error


def test_a_damaged_newest_snapshot_falls_back_and_says_so(log, whole, tmp_path, capsys):
    killed_run(log, tmp_path / "r")
    store = SnapshotStore(tmp_path / "r" / "snapshots")
    newest = store.refs()[-1]
    assert len(store.refs()) > 1
    part = next(store.path(newest).glob("join*.safetensors"))
    part.write_bytes(part.read_bytes()[:-8])
    assert resume(log, tmp_path / "r", tmp_path) == 0
    error = capsys.readouterr().err
    assert f"damaged snapshot {newest}: join" in error
    assert "an earlier one is used" in error
    assert logit_hash(tmp_path / "r" / "predictions.parquet") == logit_hash(whole.predictions)


def test_no_valid_snapshot_is_an_error_never_a_fresh_start(log, tmp_path, capsys):
    killed_run(log, tmp_path / "r")
    store = SnapshotStore(tmp_path / "r" / "snapshots")
    for ref in store.refs():
        (store.path(ref) / "manifest.msgpack").write_bytes(b"")
    assert resume(log, tmp_path / "r", tmp_path) == 1
    assert "SnapshotCorrupt" in capsys.readouterr().err


def test_the_command_proves_each_snapshot(log, tmp_path, capsys):
    killed_run(log, tmp_path / "r")
    arguments = ["snapshot", "verify", str(tmp_path / "r" / "snapshots"), "--all", "--against"]
    assert cli.run([*arguments, str(log)]) == 0
    assert "learned exactly once" in capsys.readouterr().out
    other = write_log(tmp_path / "other.parquet", samples=50)
    assert cli.run([*arguments, str(other)]) == 1
    assert "none of the given logs" in capsys.readouterr().out


def test_a_live_snapshot_is_proven_by_the_record_of_its_topics(log, tmp_path):
    """Positions of a worker name the broker's topics, which no log's name is."""
    killed_run(log, tmp_path / "r")
    meta = metas(tmp_path / "r")[-1]
    live = meta | {
        "positions": [{**row, "source_id": f"kafka:c:{row['topic']}"} for row in meta["positions"]]
    }
    assert verify_against(live, (log,)) == []
    other = write_log(tmp_path / "other.parquet", samples=50)
    assert any("records consumed, the log has" in line for line in verify_against(live, (other,)))
    assert "`millrace record` writes it" in verify_against(live, (log, other))[-1]


def test_no_file_of_vectors_or_codes_is_needed_for_the_proof(log, tmp_path):
    killed_run(log, tmp_path / "r")
    meta = metas(tmp_path / "r")[-1]
    items = {"dim": 64, "vectors_file": "gone.parquet", "codebook": "gone.safetensors"}
    coded = {"name": "code", "path": "item.attributes.codes.rq1"}
    changed = meta["config"] | {"items": items, "feature": [*meta["config"]["feature"], coded]}
    assert verify_against(meta | {"config": changed}, (log,)) == []


def test_a_ledger_that_counts_a_sample_twice_is_found(log, tmp_path):
    killed_run(log, tmp_path / "r")
    meta = metas(tmp_path / "r")[-1]
    ledger = meta["ledger"]
    twice = meta | {"ledger": ledger | {"samples": ledger["samples"] + 1}}
    assert any("samples learned, the logs give" in line for line in verify_against(twice, (log,)))
    other = meta | {"ledger": ledger | {"hash_sum": ledger["hash_sum"] ^ 1}}
    assert any("with other labels" in line for line in verify_against(other, (log,)))
    positions = [dict(row) for row in meta["positions"]]
    positions[0]["count"] += 1
    wrong = meta | {"positions": positions}
    assert any("records consumed" in line for line in verify_against(wrong, (log,)))
    fewer = meta | {"positions": positions[1:]}
    assert any("has no position" in line for line in verify_against(fewer, (log,)))


def test_a_partition_that_ended_before_the_snapshot_is_not_waited_for(tmp_path):
    """Resumed, its end must be seen again: else nothing is released until the log is over."""
    rows = records_of(write_log(tmp_path / "a.parquet", samples=600))
    early = [r for r in rows if r[:2] != ("clicks", 1) or r[3] < rows[len(rows) // 4][3]]
    first = write_records(tmp_path / "early.parquet", early)
    second = write_log(tmp_path / "b.parquet", samples=300, seed=1, start_ms=HOUR_MS)
    whole = replay(CONFIG, (first, second), tmp_path / "whole")
    with pytest.raises(Killed):
        replay(CONFIG, (first, second), tmp_path / "cut", kill_after=8, chunk_records=60,
               snapshots=True)  # fmt: skip
    result = replay(CONFIG, (first, second), tmp_path / "cut", snapshots=True, resume=True)
    assert_same(result, whole)
