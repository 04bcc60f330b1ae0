"""Record logs: what is written is read, chunk by chunk, and nothing else passes for a log."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream import record_log
from stream.record_log import LogRecord, RecordLog, RecordLogUnusable, RecordLogWriter
from stream.records import TopicPartition

PARTITIONS = {"impressions": 2, "clicks": 2, "items": 1}


def some_records(n: int) -> list[LogRecord]:
    """Records of three topics in turn; offsets have gaps, some keys and values are absent."""
    topics = ("impressions", "clicks", "items")
    return [
        LogRecord(
            topics[i % 3],
            (i // 3) % PARTITIONS[topics[i % 3]],
            2 * i,
            1_000 + i,
            None if i % 4 == 0 else b"k%d" % i,
            None if i % 7 == 0 else b"v%d" % i,
        )
        for i in range(n)
    ]


def written(path: Path, records: list[LogRecord], *, ordered: bool = True) -> RecordLog:
    with RecordLogWriter(path, PARTITIONS, ordered=ordered) as writer:
        for record in records:
            writer.write(*record)
    return RecordLog(path)


def read(log: RecordLog, rows: int) -> list[list[LogRecord]]:
    """Chunks as sets of records."""
    chunks = []
    for chunk in log.batches(rows):
        found = [
            LogRecord(batch.tp.topic, batch.tp.partition, int(offset), int(time), key, value)
            for batch in chunk
            for offset, time, key, value in zip(
                batch.offset_n, batch.timestamp_ms_n, batch.keys, batch.values, strict=True
            )
        ]
        assert len({batch.tp for batch in chunk}) == len(chunk)
        chunks.append(sorted(found, key=lambda record: record.offset))
    return chunks


@pytest.mark.parametrize("rows", (1, 7, 10, 50, 1_000))
def test_chunks_hold_consecutive_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(record_log, "GROUP_ROWS", 8)
    records = some_records(50)
    log = written(tmp_path / "log.parquet", records)
    assert len(log) == 50
    assert read(log, rows) == [records[i : i + rows] for i in range(0, 50, rows)]


def test_identity_partitions_and_order_are_kept(tmp_path: Path) -> None:
    a = written(tmp_path / "a.parquet", some_records(3), ordered=False)
    b = written(tmp_path / "b.parquet", [])
    assert a.source_id != b.source_id
    assert RecordLog(a.path).source_id == a.source_id
    assert (a.ordered, b.ordered) == (False, True)
    assert a.partitions == PARTITIONS
    assert TopicPartition("clicks", 1) in b.topic_partitions
    assert list(b.batches(10)) == []


def test_find_gives_the_very_record_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_log, "GROUP_ROWS", 8)
    records = some_records(30)
    log = written(tmp_path / "log.parquet", records)
    for record in (records[0], records[17], records[29]):
        assert log.find(record.topic, record.partition, record.offset) == record
    assert log.find("impressions", 0, 1) is None
    assert log.find("nothing", 0, 0) is None


def write_then(path: Path, records: list[LogRecord], fault: Exception | None = None) -> None:
    """Write records, then fail."""
    with RecordLogWriter(path, PARTITIONS, ordered=True) as writer:
        for record in records:
            writer.write(*record)
        if fault is not None:
            raise fault


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.parquet"
    with pytest.raises(RuntimeError, match="half way"):
        write_then(path, some_records(3), RuntimeError("half way"))
    assert list(path.parent.iterdir()) == []


def test_a_failed_write_leaves_the_old_log(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    old = written(path, some_records(5)).source_id
    record = LogRecord("clicks", 0, 4, 5, None, b"x")
    with pytest.raises(ValueError, match="does not rise"):
        write_then(path, [record, record])
    assert RecordLog(path).source_id == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("topic", "partition"), (("clicks", 2), ("clicks", -1), ("other", 0)))
def test_a_partition_must_be_announced(tmp_path: Path, topic: str, partition: int) -> None:
    with pytest.raises(ValueError, match="no partition"):
        write_then(tmp_path / "log.parquet", [LogRecord(topic, partition, 0, 5, None, None)])


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordLogUnusable, match="got a folder"):
        RecordLog(tmp_path)
    with pytest.raises(RecordLogUnusable, match="no such file"):
        RecordLog(tmp_path / "absent.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("not Parquet")
    with pytest.raises(RecordLogUnusable, match="cannot be read"):
        RecordLog(text)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"user": [1]}), other)
    with pytest.raises(RecordLogUnusable, match="expected columns topic"):
        RecordLog(other)


def test_damaged_logs_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "log.parquet", some_records(50)).path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordLogUnusable, match="truncated"):
        RecordLog(path)
    middle = len(data) // 3
    path.write_bytes(data[:middle] + bytes(64) + data[middle + 64 :])
    with pytest.raises(RecordLogUnusable):
        list(RecordLog(path).batches(10))


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_log, "FORMAT_VERSION", 2)
    path = tmp_path / "log.parquet"
    with RecordLogWriter(path, PARTITIONS, ordered=True):
        pass
    monkeypatch.undo()
    with pytest.raises(RecordLogUnusable, match="expected format 1, got 2"):
        RecordLog(path)


def test_a_chunk_needs_a_record(tmp_path: Path) -> None:
    log = written(tmp_path / "log.parquet", [])
    with pytest.raises(ValueError, match="at least 1 record"):
        next(log.batches(0))
