"""The embedder's queue, memory and way through, without a broker."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from embeddings.embedder import Embedder, EmbedderConfig
from embeddings.row_memory import Place, Remembered
from embeddings.vector_codec import decode_item_vector
from infra.errors import FaultError
from stream.codec_items import ItemEvent
from stream.codec_write import encode_envelope, encode_event, encode_vector_key, item_body
from stream.commands import embed_progress
from stream.kafka.embed import EmbedOptions, EmbedWorker, embedder_group
from stream.kafka.embed_counts import EmbedCounts
from stream.kafka.embed_memory import HEADER, TopicMemory, header_of, remembered
from stream.kafka.embed_queue import ItemQueue, entries_of
from stream.kafka.embed_send import Sender
from stream.kafka.embed_sources import EmbedSources
from stream.kafka.settings import EmbedConfig, ShellConfig
from tests.support.records import T0, batch_of

SOURCES = EmbedSources(
    items_id="items-1", vectors_id="vectors-1", items_partitions=1, vectors_partitions=1
)


def item_value(item_id, title="t", **more):
    return encode_event("item", item_body(item_id=item_id, ts_ms=T0, title=title, **more))


# The queue


def test_entries_know_their_place_and_the_end_of_their_record():
    envelope = encode_envelope("items", [item_body(item_id=i, ts_ms=T0) for i in range(3)])
    batch = batch_of(item_value(7), b"junk", envelope)
    entries = entries_of(batch)
    assert [(e.offset, e.event, e.is_last) for e in entries] == [
        (0, 0, True), (1, 0, True), (2, 0, False), (2, 1, False), (2, 2, True)
    ]  # fmt: skip
    assert [isinstance(e.found, ItemEvent) for e in entries] == [True, False, True, True, True]
    assert entries[1].found.reason == "malformed"
    assert sum(e.nbytes for e in entries) == sum(len(v) for v in batch.values)


def test_the_queue_gives_what_is_there_and_never_waits_for_more():
    async def run():
        queue = ItemQueue(items_max=4, bytes_max=1 << 20)
        entries = entries_of(batch_of(*(item_value(n) for n in range(5))))
        await queue.put(entries[:1])
        assert await queue.take(32) == entries[:1]
        await queue.put(entries[1:])
        assert not queue.has_room
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.room(), 0.02)
        assert await queue.take(3) == entries[1:4]
        await asyncio.wait_for(queue.room(), 5)
        await queue.close()
        assert await queue.take(3) == entries[4:]
        assert (await queue.take(3), queue.nbytes) == ([], 0)

    asyncio.run(run())


def test_bytes_bound_the_queue_as_well_and_clearing_makes_room():
    async def run():
        queue = ItemQueue(items_max=1_000, bytes_max=500)
        await queue.put(entries_of(batch_of(item_value(1, "x" * 600))))
        assert not queue.has_room
        await queue.clear()
        assert queue.has_room
        assert (len(queue), queue.nbytes) == (0, 0)

    asyncio.run(run())


# The memory


def row(name, offset=0):
    return Remembered(
        content=name.encode() * 16, row=b"r" * 16, value=name.encode(), place=Place(5, offset, 0)
    )


def record(offset, item_id, one):
    headers = ((HEADER, header_of(one)),) if one else ()
    value = one.value if one else b"plain"
    key = encode_vector_key("", item_id)
    return SimpleNamespace(offset=offset, key=key, value=value, headers=headers)


def test_rows_of_another_version_are_not_taken_for_ones_own(tmp_path):
    memory = TopicMemory(tmp_path / "m", "vectors", "id-1", "new")
    theirs = record(0, 1, row("a"))
    theirs.key = encode_vector_key("old", 1)
    memory.read(0, [theirs])
    assert memory.get_many([1]) == [None]
    mine = record(1, 1, row("b"))
    mine.key = memory.record_key(1)
    memory.read(0, [mine])
    assert memory.get_many([1]) == [row("b")]
    assert (memory.record_key(1), memory.record_key("x")) == (b"new/1", b"new/x")
    memory.close()


def test_embedders_of_two_versions_are_two_groups():
    groups = {embedder_group("g", version) for version in ("old", "new", "old")}
    assert len(groups) == 2
    assert all(group.startswith("g-embedder-") for group in groups)


def test_a_header_holds_what_a_row_was_made_of():
    one = row("a", 7)
    assert remembered(header_of(one), b"a") == one
    unplaced = replace(one, place=None)
    assert remembered(header_of(unplaced), b"a") == unplaced
    assert remembered(b"", b"a") is None
    assert remembered(bytes(52), b"a") is None


def test_rows_are_known_from_their_making_on_and_from_the_topic_for_good(tmp_path):
    memory = TopicMemory(tmp_path / "m", "vectors", "id-1")
    first, second = row("a"), row("b", 1)
    memory.put_many([1], [first])
    memory.put_many([1], [second])
    assert memory.get_many([1, 2]) == [second, None]
    memory.sent(0, 10, 1, first)
    memory.read(0, [record(10, 1, first)])
    assert memory.get_many([1]) == [second], "the row under way is the newer one"
    memory.read(0, [record(11, 1, second), record(12, 2, None)])
    memory.sent(0, 11, 1, second)  # the answer to the sender may come after the reader
    assert memory.under_way == 0
    assert memory.get_many([1, 2]) == [second, None], "without a header it is encoded again"
    memory.close()
    memory.read(0, [record(13, 1, first)])  # a thread that comes too late does no harm
    again = TopicMemory(tmp_path / "m", "vectors", "id-1")
    assert again.next_offset == {0: 13}
    assert again.get_many([1]) == [second]
    again.close()


def test_a_row_that_comes_after_a_newer_one_is_not_taken_and_the_newer_is_sent_again(tmp_path):
    memory = TopicMemory(tmp_path / "m", "vectors", "id-1")
    memory.read(0, [record(0, 1, row("n", 5)), record(1, 2, row("x", 6))])
    late = row("l", 4)
    memory.read(0, [record(2, 1, late), record(3, 2, row("y", 7))])
    assert memory.get_many([1, 2]) == [row("n", 5), row("y", 7)]
    (again,) = memory.overtaken()
    assert (again.partition, again.value) == (0, b"n")
    assert remembered(again.header, again.value) == row("n", 5)
    assert memory.overtaken() == []
    # A repair that is on the topic already is not done again: neither now nor at a new start.
    memory.read(0, [record(4, 1, late), record(5, 1, row("n", 5))])
    assert memory.overtaken() == []
    memory.close()


def test_a_row_that_others_took_away_is_forgotten(tmp_path):
    memory = TopicMemory(tmp_path / "m", "vectors", "id-1")
    memory.read(0, [record(0, 1, row("a"))])
    key = memory.record_key(1)
    memory.read(0, [SimpleNamespace(offset=1, key=key, value=None, headers=())])
    assert memory.get_many([1]) == [None]
    memory.close()


def test_a_memory_of_another_topic_is_emptied(tmp_path):
    memory = TopicMemory(tmp_path / "m", "vectors", "id-1")
    memory.read(0, [record(0, 1, row("a"))])
    memory.close()
    other = TopicMemory(tmp_path / "m", "vectors", "id-2")
    assert (other.get_many([1]), other.next_offset) == ([None], {})
    other.close()


# The way through


class Encoder:
    """An encoder of titles that waits until it may go on."""

    version, dim = "e1", 2

    def __init__(self):
        self.go, self.entered = threading.Event(), threading.Event()
        self.batches = []

    def encode_many(self, items):
        self.entered.set()
        assert self.go.wait(20)
        self.batches.append([item.item_id for item in items])
        return np.ones((len(items), 2), np.float32), np.ones(len(items), bool)


class Consumer:
    """Gives one record a call, as long as it has some."""

    def __init__(self, values, error=None, partitions=(0,)):
        self.values, self.error = list(values), error
        self.assigned = {KafkaPartition("items", n) for n in partitions}
        self.given, self.committed = 0, []
        self.waited = asyncio.Event()

    async def getmany(self, timeout_ms, max_records):
        if self.error:
            raise self.error
        await asyncio.sleep(0)
        if self.given == len(self.values):
            return {}
        self.given += 1
        n = self.given - 1
        one = SimpleNamespace(offset=n, timestamp=T0, key=None, value=self.values[n], headers=())
        return {KafkaPartition("items", 0): [one]}

    def assignment(self):
        return self.assigned

    async def end_offsets(self, asked):
        return dict.fromkeys(asked, len(self.values))

    def highwater(self, _):
        return None

    async def position(self, _):
        return self.given

    async def commit(self, offsets):
        self.committed.append(dict(offsets))


class Producer:
    """Has every record at once, and keeps it."""

    def __init__(self):
        self.sent = []

    async def send(self, topic, value, key, partition=None, headers=()):
        self.sent.append((topic, key, value, partition, headers))
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(SimpleNamespace(partition=0, offset=len(self.sent) - 1))
        return answer


class Reader:
    """Has always read everything."""

    def __init__(self, memory):
        self._memory = memory

    async def run(self):
        await asyncio.Event().wait()

    async def caught_up(self):
        pass

    async def until(self, ready):
        assert ready(self._memory)


def worker_on(consumer, folder, encoder, *, until_end=True, backfill=False, **settings):
    config = ShellConfig(embed=EmbedConfig(**settings))
    embedder = Embedder(encoder, EmbedderConfig())
    options = EmbedOptions(until_end=until_end, backfill=backfill)
    worker = EmbedWorker(config, embedder, SOURCES, options)
    worker.joined()
    memory = TopicMemory(folder / "memory", "item-vectors", "vectors-1")
    embedder.remember_in(memory)
    worker._consumer, worker._producer, worker._reader = consumer, Producer(), Reader(memory)
    worker._sender = Sender(
        worker._producer, config, memory, same_partitions=True, done=worker._done
    )
    return worker


async def until(ready):
    async with asyncio.timeout(20):
        while not ready():  # noqa: ASYNC110  # what is awaited has no event of its own
            await asyncio.sleep(0.001)


def test_fetching_goes_on_while_encoding_and_stops_where_the_queue_is_full(tmp_path):
    async def run():
        encoder = Encoder()
        consumer = Consumer([item_value(n, f"title {n}") for n in range(40)])
        worker = worker_on(consumer, tmp_path, encoder, queue_items_max=6, batch_items=4)
        task = asyncio.create_task(worker._follow())
        await until(encoder.entered.is_set)
        await until(lambda: len(worker._queue) == 6)
        paused_at = consumer.given
        for _ in range(50):
            await asyncio.sleep(0)
        assert consumer.given == paused_at <= 4 + 6
        assert consumer.committed == []
        encoder.go.set()
        await task
        return encoder, consumer, worker

    encoder, consumer, worker = asyncio.run(run())
    assert [i for batch in encoder.batches for i in batch] == list(range(40))
    assert max(map(len, encoder.batches)) == 4
    assert len(encoder.batches[0]) < 4, "the first did not wait for a full batch"
    assert consumer.committed[-1] == {KafkaPartition("items", 0): 40}
    rows = [decode_item_vector(value).item_id for _, _, value, *_ in worker._producer.sent]
    assert rows == list(range(40))
    assert (worker.counts.items, worker.counts.encoded) == (40, 40)


def test_batches_are_of_half_a_second_s_worth(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("stream.kafka.embed_encode.time.perf_counter", lambda: clock[0])

    class Slow(Encoder):
        def encode_many(self, items):
            clock[0] += 0.1 * len(items)
            return super().encode_many(items)

    async def run():
        encoder = Slow()
        worker = worker_on(Consumer([item_value(n) for n in range(80)]), tmp_path, encoder)
        task = asyncio.create_task(worker._follow())
        await until(lambda: worker._consumer.given == 80)
        encoder.go.set()
        await task
        return [len(batch) for batch in encoder.batches]

    sizes = asyncio.run(run())
    assert sum(sizes) == 80
    assert max(sizes[2:]) == 5


def test_what_cannot_be_used_becomes_letters_and_is_committed_with_the_rest(tmp_path):
    async def run():
        encoder = Encoder()
        encoder.go.set()
        values = [item_value(1), b"junk", item_value(1), item_value(2, deleted=True)]
        worker = worker_on(Consumer(values), tmp_path, encoder)
        await worker._follow()
        return worker

    worker = asyncio.run(run())
    topics = [topic for topic, *_ in worker._producer.sent]
    assert sorted(topics) == ["dead-letters", "item-vectors", "item-vectors"]
    assert worker._consumer.committed[-1] == {KafkaPartition("items", 0): 4}
    assert worker.counts.text() == (
        "3 items, 2 vectors written, 1 unchanged, 1 rejected, 1 encoded, 1 deleted"
    )


def test_a_stop_ends_with_what_was_encoded_and_commits_no_more(tmp_path):
    async def run():
        encoder = Encoder()
        consumer = Consumer([item_value(n) for n in range(30)])
        worker = worker_on(consumer, tmp_path, encoder, until_end=False, batch_items=2)
        task = asyncio.create_task(worker._follow())
        await until(encoder.entered.is_set)
        await until(lambda: consumer.given == 30)
        worker.stop()
        encoder.go.set()
        await task
        return worker

    worker = asyncio.run(run())
    done = worker.counts.items
    assert 1 <= done < 30
    assert worker._consumer.committed[-1] == {KafkaPartition("items", 0): done}
    assert len(worker._producer.sent) == done


def test_a_stop_does_not_wait_for_a_broker_that_is_away(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("stream.kafka.embed._SETTLE_S", 0.01)

    async def run():
        consumer = Consumer([item_value(1)])
        encoder = Encoder()
        encoder.go.set()
        worker = worker_on(consumer, tmp_path, encoder, until_end=False)
        sending = asyncio.Event()

        async def send(*_, **__):
            sending.set()
            return asyncio.get_running_loop().create_future()

        worker._producer.send = send
        following = asyncio.create_task(worker._follow())
        await sending.wait()
        worker.stop()
        async with asyncio.timeout(20):
            await following
        return consumer.committed

    assert asyncio.run(run()) == []
    assert "stopped with 1 item events under way that the broker did not take" in caplog.text


def test_a_stop_while_the_topic_is_read_ends_at_once(tmp_path):
    async def run():
        consumer = Consumer([item_value(1)])
        worker = worker_on(consumer, tmp_path, Encoder(), until_end=False)
        asked = asyncio.Event()

        async def caught_up():
            asked.set()
            await asyncio.Event().wait()

        worker._reader.caught_up = caught_up
        following = asyncio.create_task(worker._follow())
        await asked.wait()
        worker.stop()
        async with asyncio.timeout(20):
            await following
        return worker.counts.items

    assert asyncio.run(run()) == 0


def test_a_revoked_partition_is_given_up_with_all_that_was_encoded_committed(tmp_path):
    async def run():
        encoder = Encoder()
        consumer = Consumer([item_value(n) for n in range(30)])
        worker = worker_on(consumer, tmp_path, encoder, until_end=False, batch_items=2)
        task = asyncio.create_task(worker._follow())
        await until(encoder.entered.is_set)
        await until(lambda: consumer.given == 30)
        giving = asyncio.create_task(worker.give_up([KafkaPartition("items", 0)]))
        await until(lambda: len(worker._queue) == 0)
        assert not giving.done()
        encoder.go.set()
        await giving
        committed = consumer.committed[-1][KafkaPartition("items", 0)]
        assert committed == worker.counts.items == len(worker._producer.sent) < 30
        worker.stop()
        await task

    asyncio.run(run())


def test_a_member_that_got_no_partition_says_so_and_does_not_wait_for_one(tmp_path):
    async def run(consumer, folder, **options):
        worker = worker_on(consumer, tmp_path / folder, Encoder(), **options)
        async with asyncio.timeout(20):
            await worker._follow()
        return worker

    ended = asyncio.run(run(Consumer([item_value(1)], partitions=()), "end"))
    assert (ended.counts.items, ended._consumer.committed) == (0, [])
    with pytest.raises(ExceptionGroup) as failed:
        asyncio.run(run(Consumer([], partitions=()), "all", until_end=False, backfill=True))
    (error,) = failed.value.exceptions
    assert str(error).startswith("--backfill: got 0 of 1 partitions of 'items': another embedder")


def test_the_end_is_not_taken_for_reached_while_the_group_divides_anew(tmp_path):
    async def run():
        consumer = Consumer([])
        worker = worker_on(consumer, tmp_path, Encoder())
        assert await worker._at_end()
        await worker.give_up([KafkaPartition("items", 0)])
        consumer.assigned = set()
        assert not await worker._at_end()
        worker.joined()
        assert await worker._at_end()

    asyncio.run(run())


def test_a_broker_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    worker = worker_on(Consumer([], KafkaError("gone")), tmp_path, Encoder())

    async def connected(stack, memory):
        memory.close()

    monkeypatch.setattr(worker, "_connect", connected)
    worker._config = replace(worker._config, embed=EmbedConfig(state=str(tmp_path / "s")))
    with pytest.raises(FaultError, match="gone"):
        asyncio.run(worker.run())


# Words


def test_progress_lines_tell_items_share_speed_and_what_is_left(capsys):
    assert embed_progress.line(250, 1_000, 500, 10.0) == "500 items, 25.0%, 50.0 items/s, 0:30 left"
    assert embed_progress.line(0, 0, 0, 0.0) == "0 items, 100.0%, 0.0 items/s, 0:00 left"
    ticks = iter([0.0, 1.0, 6.0, 6.0, 7.0, 8.0, 8.0])
    with embed_progress.embed_progress(lambda: next(ticks)) as told:
        told(1, 100, 1)
        told(50, 100, 60)
        told(60, 100, 70)
        told(100, 100, 80)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "embed: 60 items, 50.0%, 10.0 items/s, 0:06 left"
    assert "100.0%" in lines[1]


def test_counts_add_up_and_say_what_was_refused():
    counts = EmbedCounts()
    counts.add(EmbedCounts(items=2, vectors=1, encoded=1, done=1, refused={"no_file": 1}))
    counts.add(EmbedCounts(items=1, vectors=1, reused=1, refused={"no_file": 2}))
    assert json.loads(json.dumps(counts.to_map()))["refused"] == {"no_file": 2}
    assert counts.text() == (
        "3 items, 2 vectors written, 0 unchanged, 0 rejected, 1 encoded, "
        "1 with the vector they had, 1 written before, 2 refused as no_file"
    )


@pytest.mark.parametrize("name", ("batch_items", "queue_items_max", "queue_bytes_max"))
def test_limits_must_be_positive(name):
    with pytest.raises(ValueError, match=f"embed.{name}"):
        EmbedConfig(**{name: 0})
