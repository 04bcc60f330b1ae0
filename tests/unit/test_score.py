"""Scores are the logits that the pipeline itself would give, and scoring changes nothing."""

import hashlib
import json
import shutil

import msgpack
import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from infra.snapshot_format import SnapshotCorrupt
from infra.snapshot_store import SnapshotStore
from stream import cli
from stream import kernels as k
from stream.checkpoint import Checkpointer, Restored
from stream.codec_write import encode_envelope, impression_body
from stream.composition import compose
from stream.record_log import RecordLog
from stream.records import TopicPartition
from stream.scoring import Scorer
from tests.support.logs import write_log
from tests.support.replays import Killed, ranked_config, replay
from tests.support.streams import T0, impression, record_batch

HOUR_MS = 3_600_000
CONFIG = ranked_config(snapshot={"every_samples": 150, "keep": 100})
TP = TopicPartition("impressions", 0)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """The folder of a run's snapshots, all taken in the middle of its log."""
    folder = tmp_path_factory.mktemp("run")
    log = write_log(folder / "a.parquet", samples=500)
    with pytest.raises(Killed):
        replay(CONFIG, (log,), folder / "r", kill_after=25, chunk_records=29, snapshots=True)
    assert len(SnapshotStore(folder / "r" / "snapshots").refs()) > 1
    return folder / "r" / "snapshots"


@pytest.fixture(scope="module")
def scorer(snapshots):
    with Scorer(snapshots) as made:
        yield made


def clock_of(snapshots):
    store = SnapshotStore(snapshots)
    return store.manifest(store.refs()[-1]).meta["clock_ms"]


def requests(ts):
    """Impressions at one time: known and new users and items, several items a request."""
    return [
        impression(10**6 + n, user, ts - T0, items, tab=n % 4)
        for n, (user, items) in enumerate(
            [(3, [1, 2, 39]), (4, [7]), (59, [0, 1000]), (10**9, [5, 6]), (3, [1])]
        )
    ]


def logits_of_the_pipeline(snapshots, scratch, records, ref=None):
    """The pipeline goes on from the snapshot and predicts what it is shown, before any step."""
    checkpoints = Checkpointer(snapshots, scratch)
    found = checkpoints.find()
    if ref is not None:
        found = Restored(ref=ref, meta=checkpoints.store.manifest(ref).meta)
    checkpoints.prepare_vectors(found.ref, scratch / "vectors")
    composition = compose(CONFIG, scratch / "vectors")
    try:
        checkpoints.restore(found, composition)
        pipeline = composition.pipeline
        join = pipeline.join
        settled = join.queues.tallies[0, [k.POSITIVE, k.NEGATIVE]].sum()
        admitted = join.scalar(k.ADMITTED)
        batch = record_batch(TP, pipeline.positions()[TP].next_offset, records)
        report = pipeline.process([batch], 0, finished=pipeline.sequencer.partitions)
        assert report.steps == 0, "a step came between"
        assert join.queues.tallies[0, [k.POSITIVE, k.NEGATIVE]].sum() == settled
        pipeline._predict()
        slots = np.flatnonzero(join.opened.number >= admitted)
        slots = slots[np.argsort(join.opened.number[slots])]
        return pipeline.predicted.get(slots).logit_nA[:, 0]
    finally:
        composition.close()


def test_scores_are_the_pipelines_own_logits_bit_for_bit(snapshots, scorer, tmp_path):
    records = requests(clock_of(snapshots) + 1)
    expected = logits_of_the_pipeline(snapshots, tmp_path, records)
    scores = scorer.score([record_batch(TP, 0, records)])
    assert len(scores) == len(expected) == 9
    assert scores.logit_n.tobytes() == expected.tobytes()
    assert len(set(expected.tolist())) > 5  # the model tells them apart
    assert scores.request_ids == [10**6, 10**6, 10**6, 10**6 + 1, 10**6 + 2, 10**6 + 2, 10**6 + 3,
                                  10**6 + 3, 10**6 + 4]  # fmt: skip
    assert scores.item_ids == [1, 2, 39, 7, 0, 1000, 5, 6, 1]
    assert scores.user_ids == [3, 3, 3, 4, 59, 59, 10**9, 10**9, 3]
    p = 1 / (1 + np.exp(-scores.logit_n.astype(float)))
    np.testing.assert_allclose(scores.probability_n, p, rtol=1e-6)


def test_the_clicks_of_the_last_key_time_are_known(snapshots, scorer, tmp_path):
    """A snapshot between two events of one time holds changes that wait; they count."""
    store = SnapshotStore(snapshots)
    for ref in store.refs():
        parts, meta = store.load(ref)
        if len(parts["join"].array("pending")):
            break
    else:
        pytest.fail("no snapshot holds waiting changes")
    records = requests(meta["clock_ms"] + 1)
    with Scorer(store.path(ref)) as one:
        assert one.restored.ref == ref
        first = one.score([record_batch(TP, 0, records)])
        again = one.score([record_batch(TP, 0, records)])
    assert first.logit_n.tobytes() == again.logit_n.tobytes()
    expected = logits_of_the_pipeline(snapshots, tmp_path, records, ref)
    assert first.logit_n.tobytes() == expected.tobytes()


def test_no_impression_changes_another(snapshots, scorer):
    """Alone, together, twice, in any order and at any times: always the same score."""
    clock = clock_of(snapshots)
    records = [r for hours in (9, 0, 30, 1) for r in requests(clock + 1 + hours * HOUR_MS)]
    together = scorer.score([record_batch(TP, 0, records * 2)])
    alone = [scorer.score([record_batch(TP, 7, [record])]).logit_n for record in records]
    apart = np.concatenate(alone)
    assert together.logit_n.tobytes() == np.concatenate([apart, apart]).tobytes()
    assert together.logit_n[:9].tobytes() != together.logit_n[9:18].tobytes()  # counters decay
    backwards = scorer.score([record_batch(TP, 0, [r]) for r in records[::-1]])
    assert backwards.logit_n.tobytes() == np.concatenate(alone[::-1]).tobytes()


def test_an_old_impression_meets_the_state_of_the_snapshot(snapshots, scorer):
    clock = clock_of(snapshots)
    now = scorer.score([record_batch(TP, 0, requests(clock))])
    assert np.isfinite(now.logit_n).all()
    old = scorer.score([record_batch(TP, 0, requests(clock - 10 * HOUR_MS))])
    assert len(old) == len(now)
    assert old.rejected == []


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_snapshots_stay_as_they_are(snapshots):
    before = digest(snapshots)
    with Scorer(snapshots) as one:
        scratch = one._scratch
        one.score([record_batch(TP, 0, requests(clock_of(snapshots) + 1))])
    assert digest(snapshots) == before
    assert not scratch.exists()


def events_of(ts):
    """Impression events as a person would write them."""
    return [
        {"request_id": "r1", "user_id": "someone", "ts_ms": ts,
         "items": [{"item_id": 1}, {"item_id": "two"}], "context": {"tab": 1}},
        {"v": 1, "type": "impression", "request_id": 2, "user_id": 3, "ts_ms": ts,
         "items": [{"item_id": 1}], "context": {"tab": 1}},
    ]  # fmt: skip


def test_maps_bytes_and_records_score_alike(snapshots, scorer):
    ts = clock_of(snapshots) + 1
    maps = scorer.score(events_of(ts))
    assert maps.request_ids == ["r1", "r1", 2]
    assert maps.item_ids == [1, "two", 1]
    assert maps.user_ids == ["someone", "someone", 3]
    wire = [msgpack.packb({"v": 1, "type": "impression", **e}) for e in events_of(ts)]
    assert scorer.score(wire).logit_n.tobytes() == maps.logit_n.tobytes()
    records = record_batch(TP, 0, [(None, value) for value in wire])
    assert scorer.score([records]).logit_n.tobytes() == maps.logit_n.tobytes()
    bodies = [impression_body(**{k: v for k, v in e.items() if k not in ("v", "type")})
              for e in events_of(ts)]  # fmt: skip
    envelope = encode_envelope("impressions", bodies)
    assert scorer.score([envelope]).logit_n.tobytes() == maps.logit_n.tobytes()
    row = maps.rows()[1]
    assert row["request_id"] == "r1"
    assert row["ts_ms"] == ts
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(-row["logit"])))


def test_what_is_not_understood_is_told_and_the_rest_scored(snapshots, scorer):
    ts = clock_of(snapshots) + 1
    good = events_of(ts)
    bad = [{"request_id": 1}, {**good[0], "user_id": 2**70}, b"\xc1", {**good[0], "ts_ms": 5}]
    scores = scorer.score([good[0], *bad, good[1]])
    assert scores.request_ids == ["r1", "r1", 2]
    assert [(d.offset, d.reason) for d in scores.rejected] == [
        (1, "missing_field"), (2, "malformed"), (3, "malformed"), (4, "bad_time")
    ]  # fmt: skip
    assert scores.logit_n.tobytes() == scorer.score(good).logit_n.tobytes()


def test_nothing_to_score(scorer):
    scores = scorer.score([])
    assert len(scores) == 0
    assert scores.rows() == []


def test_a_log_is_scored_whole(snapshots, scorer, tmp_path):
    log = RecordLog(write_log(tmp_path / "b.parquet", samples=100, seed=4))
    scores = scorer.score_log(log)
    assert len(scores) >= 100  # also what is there twice
    assert set(scores.request_ids) == {(4 << 32) + n for n in range(100)}


def score(*arguments):
    return cli.run(["score", *map(str, arguments)])


@pytest.mark.parametrize("form", ("json", "msgpack"))
def test_the_command_reads_events_and_writes_rows(snapshots, scorer, tmp_path, capsys, form):
    ts = clock_of(snapshots) + 1
    expected = scorer.score(events_of(ts)).rows()
    events = tmp_path / "events"
    if form == "json":
        text = "\n".join(json.dumps(e) for e in events_of(ts)) + "\n\nnot json\n"
        events.write_text(text)
    else:
        good = b"".join(msgpack.packb(e) for e in events_of(ts))
        events.write_bytes(good + msgpack.packb([1, 2]))
    assert score(snapshots, events) == 0
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == expected
    assert "3 rows scored for 'click', 1 events rejected" in captured.err
    assert score(snapshots, events, "--out", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["logit"].to_pylist() == pytest.approx([r["logit"] for r in expected])
    assert table["item_id"].to_pylist() == ["1", "two", "1"]
    assert score(snapshots, events, "--out", tmp_path / "out.jsonl") == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_the_command_reads_record_logs(snapshots, tmp_path, capsys):
    log = write_log(tmp_path / "b.parquet", samples=30, seed=4)
    assert score(snapshots, log, "--out", tmp_path / "out.parquet") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows >= 30
    assert str(table.schema.field("item_id").type) == "int64"


def test_wrong_input_is_one_line_and_code_two(snapshots, tmp_path, capsys):
    (tmp_path / "cut").write_bytes(msgpack.packb(events_of(T0)[0])[:-3])
    (tmp_path / "noise").write_bytes(b"\xc1\xc1")
    (tmp_path / "events").write_text(json.dumps(events_of(T0)[0]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "store" / "epochs").mkdir(parents=True)
    for arguments, words in (
        ((snapshots, tmp_path / "none"), "cannot be read"),
        ((snapshots, tmp_path / "cut"), "cut short"),
        ((snapshots, tmp_path / "noise"), "no msgpack at byte 0"),
        ((tmp_path / "empty", tmp_path / "events"), "expected a folder of snapshots"),
        ((tmp_path / "store", tmp_path / "events"), "there is no snapshot"),
        ((snapshots, tmp_path / "events", "--out", tmp_path / "cut" / "x"), "cannot be written"),
    ):
        assert score(*arguments) == 2, words
        error = capsys.readouterr().err
        assert words in error
        assert error.count("millrace:") == 1


def test_a_damaged_snapshot_falls_back_or_is_refused(snapshots, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(snapshots, folder)
    store = SnapshotStore(folder)
    *_, older, newest = store.refs()
    part = next(store.path(newest).glob("join*.safetensors"))
    part.write_bytes(b"\x00")
    with Scorer(folder) as one:
        assert one.restored.ref == older
        assert any("damaged" in note for note in one.notes)
    with pytest.raises(SnapshotCorrupt):
        Scorer(store.path(newest))
    with pytest.raises(InputError, match="expected a folder"):
        Scorer(store.path(newest).parent)
