"""Vectors that come after their time: a replay of the record sees them just as late."""

from __future__ import annotations

import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from embeddings.vector_codec import encode_item_vector
from infra.errors import InputError
from stream.codec_write import encode_vector_key
from stream.composition import compose
from stream.item_pending import LateUpdate, Place
from stream.kafka.engine import engine_maker
from stream.late_vectors import FILE, LateVectorLog, read_late_vectors
from stream.positions import Position
from stream.prediction_log import FILE as PREDICTIONS
from stream.record_log import RecordLogWriter
from stream.records import TopicPartition
from tests.support.replays import RANKED, ranked_config, replay
from tests.support.streams import T0, click, impression, record_batch, watermark

SHOWN, CLICKS = TopicPartition("impressions", 0), TopicPartition("clicks", 0)
VECTORS = TopicPartition("item-vectors", 0)
ITEMS, REQUESTS = 40, 400
STREAM = RANKED["stream"] | {"batch_size": 16, "linger_ms": 1_000}
CONFIG = ranked_config(stream=STREAM, label={"click": {"window_ms": 2_000}})


def rows_of(encoder):
    """(time, topic partition, key, value): new items, shown from the next second on, and clicks."""
    rng = random.Random(7)
    rows = []
    for item in range(ITEMS):
        born = item * 1_000
        vector = np.random.default_rng(item).normal(size=16)
        value = encode_item_vector(
            item_id=item, ts_ms=T0 + born, encoder=encoder, vector=vector,
            attributes={"tag": [f"t{item % 3}"]},
        )  # fmt: skip
        rows.append((born, VECTORS, encode_vector_key(encoder, item), value))
    for request in range(REQUESTS):
        now = 1_500 + request * 100
        user, item = rng.randrange(9), rng.randrange(max(0, now // 1_000 - 6), now // 1_000 + 1)
        item = min(item, ITEMS - 1)
        rows.append((now, SHOWN, *impression(request, user, now, [item])))
        if rng.random() < 0.2 + 0.5 * (item % 2):
            rows.append((now + 50, CLICKS, *click(user, item, now + 50, "click", request)))
    end = 1_500 + REQUESTS * 100 + 10_000
    rows += [(end, tp, *watermark(end)) for tp in (SHOWN, CLICKS)]
    return sorted(rows, key=lambda row: (row[0], row[1] != VECTORS))


def write_record(path, rows):
    offsets = dict.fromkeys((SHOWN, CLICKS, VECTORS), 0)
    with RecordLogWriter(path, {tp.topic: 1 for tp in offsets}, ordered=True) as log:
        for ts_ms, tp, key, value in rows:
            log.write(tp.topic, tp.partition, offsets[tp], T0 + ts_ms, key, value)
            offsets[tp] += 1
    return path


class Live:
    """A worker's engine that is fed by hand; vectors may come after their time."""

    def __init__(self, folder, rows):
        self.rows, self.make = rows, engine_maker(CONFIG, folder, predictions=True, note=print)
        self.offsets = offsets_of(rows)
        self.begin()

    def begin(self):
        """Start from the newest snapshot."""
        self.engine = self.make([SHOWN, CLICKS])
        pipeline = self.engine.pipeline
        held = dict(pipeline.positions())
        pipeline.assign({
            tp: held.get(tp) or Position(source_id="live", topic=tp.topic, partition=0)
            for tp in (SHOWN, CLICKS)
        })  # fmt: skip
        self.next = {tp: held[tp].next_offset if held else 0 for tp in (SHOWN, CLICKS)}
        self.next[VECTORS] = next((at.offset + 1 for at in pipeline.item_positions().values()), 0)

    def take(self, order):
        """Hand over the rows at these places; those that are behind the positions are no news."""
        for n in order:
            tp, offset = self.rows[n][1], self.offsets[n]
            if offset < self.next[tp]:
                continue
            batch = record_batch(tp, offset, [self.rows[n][2:]])
            if tp == VECTORS:
                assert not self.engine.pipeline.offer_items("live", [batch]).dead_letters
            else:
                self.engine.pipeline.process([batch], 0)

    def snapshot(self):
        self.engine.checkpoints.take()
        self.engine.checkpoints._checkpointer.wait(self.engine.checkpoints._composition)

    def kill(self):
        self.engine.checkpoints.close()

    def end(self):
        self.engine.checkpoints.final()
        late = self.engine.pipeline.status()["late_vectors"]
        self.kill()
        return late


def arrivals(rows, seed):
    """Places in `rows` in an order of arrival: events as they are, vectors up to 120 rows later."""
    rng = random.Random(seed)
    last, moved = -1, []
    for n, row in enumerate(rows):
        at = n
        if row[1] == VECTORS:  # a partition keeps its order
            at = last = max(last, n + rng.choice((0, 0, 40, 120)))
        moved.append((at, n))
    return [n for _, n in sorted(moved)]


def offsets_of(rows):
    counts = dict.fromkeys((SHOWN, CLICKS, VECTORS), -1)
    found = []
    for row in rows:
        counts[row[1]] += 1
        found.append(counts[row[1]])
    return found


def same_columns(a, b):
    """Names of the columns that two runs agree in bit for bit, and both tables."""
    one, other = (pq.read_table(folder / PREDICTIONS) for folder in (a, b))
    pairs = {
        name: [t[name].to_numpy().tobytes() for t in (one, other)] for name in one.schema.names
    }
    return {name for name, (x, y) in pairs.items() if x == y}, one, other


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A live run whose vectors come late, killed behind a snapshot and resumed; its record."""
    folder = tmp_path_factory.mktemp("late")
    probe = compose(CONFIG, None)
    rows = rows_of(probe.embedder.version)
    probe.close()
    record = write_record(folder / "record.parquet", rows)
    live = Live(folder / "worker", rows)
    order = arrivals(rows, 3)
    live.take(order[: len(order) // 3])
    live.snapshot()
    live.take(order[len(order) // 3 : len(order) // 2])
    live.kill()
    live.begin()
    live.take(arrivals(rows, 4))  # what it learns again it learns with other delays
    return folder, record, rows, live.end()


@pytest.mark.slow
def test_a_replay_that_follows_the_late_vectors_is_the_run(world):
    folder, record, _, late = world
    assert 5 < late < ITEMS
    assert len(read_late_vectors(folder / "worker")) == late
    result = replay(CONFIG, (record,), folder / "followed", late_vectors=folder / "worker")
    same, one, _ = same_columns(folder / "worker", folder / "followed")
    assert same == set(one.column_names)
    assert len(one) == REQUESTS
    assert result.composition.pipeline.items.counts.late == late


def test_without_them_it_is_another_run_and_says_who_had_no_vector(world):
    folder, record, _, _ = world
    replay(CONFIG, (record,), folder / "alone")
    same, live, alone = same_columns(folder / "worker", folder / "alone")
    assert set(live.column_names) - same == {"logit", "has_vector"}
    had, has = (table["has_vector"].to_numpy() for table in (live, alone))
    assert (~had & has).any()
    assert not (had & ~has).any(), "live, a vector is never there before its time"


@pytest.mark.slow
def test_predictions_tell_of_the_vector_when_they_were_made_not_when_learned(world):
    """A vector that came between prediction and learn step does not count for the prediction."""
    folder, _, rows, _ = world
    table = pq.read_table(folder / "worker" / PREDICTIONS)
    absent = ~table["has_vector"].to_numpy()
    assert absent.any()
    # At its learn step, a window of 2 s later, all items but the last few have theirs.
    assert table["ts_ms"].to_numpy()[absent].max() < T0 + rows[-1][0]


def test_a_killed_run_goes_on_with_the_late_vectors_of_its_snapshot(tmp_path):
    log = LateVectorLog(tmp_path)
    log.append(LateUpdate(0, 5, 0, T0))
    counted = log.flush()
    log.append(LateUpdate(1, 6, 0, T0 + 1))
    log.flush()
    again = LateVectorLog(tmp_path)
    again.begin(2, counted)
    again.append(LateUpdate(1, 6, 0, T0 + 9))
    again.finish()
    assert read_late_vectors(tmp_path / FILE) == {Place(0, 5, 0): T0, Place(1, 6, 0): T0 + 9}
    with pytest.raises(InputError, match="is missing"):
        LateVectorLog(tmp_path / "other").begin(1, counted)


def test_none_late_is_a_file_without_rows(tmp_path):
    LateVectorLog(tmp_path).finish()
    assert read_late_vectors(tmp_path) == {}


def test_what_is_no_record_of_the_worker_is_refused(world, tmp_path):
    folder, record, rows, _ = world
    (tmp_path / "text").write_text("no table")
    for late, match in (
        (tmp_path, "there is no such file"), (record, "expected columns partition"),
        (tmp_path / "text", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            replay(CONFIG, (record,), tmp_path / "report", late_vectors=late)
    short = write_record(tmp_path / "short.parquet", rows[:5])
    with pytest.raises(InputError, match="came late; record again"):
        replay(CONFIG, (short,), tmp_path / "report", late_vectors=folder / "worker")
    with pytest.raises(InputError, match="needs one log"):
        replay(CONFIG, (record, record), tmp_path / "report", late_vectors=folder / "worker")
