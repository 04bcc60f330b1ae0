"""Proof by arithmetic that a snapshot learned each sample of its logs exactly once (shell).

Counts the logs' records up to the snapshot's positions, and gives them to the pipeline with a
learner that only counts. Says nothing about the model's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infra import config as loader
from stream.codec import ClickDecoder, ImpressionDecoder
from stream.columns import EventColumns, EventKind
from stream.composition import Composition, compose
from stream.config import CODES_PATH, Config, ItemsConfig, RankerConfig, ReportConfig
from stream.pipeline import OnlinePipeline
from stream.positions import LIVE_SOURCE, Position
from stream.record_log import RecordLog
from stream.records import RecordBatch, TopicPartition

CHUNK_RECORDS = 4_096
Positions = Mapping[TopicPartition, Position]


def verify_against(meta: Mapping[str, Any], logs: Sequence[Path]) -> list[str]:
    """What contradicts "each sample was learned exactly once", a line each; empty: proven.

    `meta` is a snapshot's; `logs` are all record logs of its run, in the order in which it read
    them. Raises RecordLogUnusable for a log that cannot be read, ConfigError where the snapshot's
    configuration is of another version.
    """
    config = loader.build(Config, meta["config"])
    positions = {p.tp: p for p in (Position.from_map(row) for row in meta["positions"])}
    opened = [RecordLog(path) for path in logs]
    names = [log.source_id for log in opened]
    if len(opened) == 1 and all(p.source_id.startswith(LIVE_SOURCE) for p in positions.values()):
        # The record of a worker's topics: counts, offsets and hashes tell whether it is theirs.
        positions = {tp: replace(p, source_id=names[0]) for tp, p in positions.items()}
    strangers = [
        f"{tp.topic}/{tp.partition}: consumed from source {p.source_id}, which is none of the "
        "given logs"
        for tp, p in positions.items()
        if p.source_id not in names
    ]
    if strangers and any(p.source_id.startswith(LIVE_SOURCE) for p in positions.values()):
        strangers.append("give the record of a worker's topics alone: `millrace record` writes it")
    if strangers or not positions:
        return strangers or ["the snapshot has no positions, so nothing can be compared"]
    last = max(names.index(p.source_id) for p in positions.values())
    problems = [
        line
        for number, log in enumerate(opened[: last + 1])
        for line in _record_problems(
            log, [p for p in positions.values() if p.source_id == log.source_id],
            _stream_partitions(log, config) if number == last else (),
        )
    ]  # fmt: skip
    return problems + _ledger_problems(meta, config, opened[: last + 1], positions)


def _stream_partitions(log: RecordLog, config: Config) -> list[TopicPartition]:
    topics = (config.topics.impressions, config.topics.clicks)
    return [tp for tp in log.topic_partitions if tp.topic in topics]


def _record_problems(
    log: RecordLog, positions: Sequence[Position], expected: Sequence[TopicPartition]
) -> list[str]:
    """Where count, offset sum or last hash of a position are not those of the log's records."""
    reached = {
        p.tp: Position(source_id=p.source_id, topic=p.topic, partition=p.partition)
        for p in positions
    }
    stops = {p.tp: p.next_offset for p in positions}
    for batches in log.batches(CHUNK_RECORDS):
        for batch in batches:
            part = before(batch, stops.get(batch.tp, 0))
            if len(part):
                last = (part.keys[-1], part.values[-1])
                reached[batch.tp] = reached[batch.tp].after(part.offset_n, last, 0)
    lines = [
        f"{tp.topic}/{tp.partition}: the snapshot has no position of it"
        for tp in expected
        if tp not in stops
    ]
    for p in positions:
        found, where = reached[p.tp], f"{p.topic}/{p.partition}"
        if found.count != p.count:
            lines.append(
                f"{where}: {p.count} records consumed, the log has {found.count} before offset "
                f"{p.next_offset}"
            )
        if found.offset_sum != p.offset_sum:
            lines.append(
                f"{where}: consumed offsets sum to {p.offset_sum}, those of the log to "
                f"{found.offset_sum}"
            )
        if found.next_offset != p.next_offset or found.last_hash != p.last_hash:
            lines.append(
                f"{where}: the record before offset {p.next_offset} is not the one consumed"
            )
    return lines


def _ledger_problems(
    meta: Mapping[str, Any], config: Config, logs: Sequence[RecordLog], positions: Positions
) -> list[str]:
    """Where the learned samples are not those that the logs give up to the positions."""
    counting = replace(
        config,
        ranker=RankerConfig(name="base_rate", label=config.ranker.label),
        stream=replace(config.stream, predict_at="settle"),
        # No sample depends on content or on counters, so no file of vectors or codes is needed.
        items=ItemsConfig(dim=0),
        feature=tuple(f for f in config.feature if not f.path.startswith(CODES_PATH)),
        counter=(),
        report=ReportConfig(),
    )
    composition = compose(counting, None)
    try:
        for log in logs:
            _consume(composition, log, positions if log is logs[-1] else {})
        ledger, clock_ms = composition.pipeline.ledger, composition.pipeline.join.clock_ms
    finally:
        composition.close()
    stated, lines = meta["ledger"], []
    if clock_ms != meta["clock_ms"]:
        lines.append(f"clock: at {meta['clock_ms']} ms, the logs lead to {clock_ms} ms")
    if ledger.samples != stated["samples"]:
        lines.append(f"ledger: {stated['samples']} samples learned, the logs give {ledger.samples}")
    elif ledger.hash_sum != stated["hash_sum"]:
        lines.append(
            f"ledger: {ledger.samples} samples learned, but not those of the logs, or with other "
            f"labels (hash sum {stated['hash_sum']:016x}, the logs give {ledger.hash_sum:016x})"
        )
    if lines and meta.get("idle_advances"):
        lines.append(
            f"the run had {meta['idle_advances']} idle advances, which no log holds: samples may "
            "have been learned earlier than the logs give them"
        )
    elif lines and len(logs) == 1:
        lines.append("if the run read other logs before this one, give them too, in order")
    return lines


def _consume(composition: Composition, log: RecordLog, stops: Positions) -> None:
    """Run the log's records before `stops` through the pipeline; all records without stops."""
    pipeline = composition.pipeline
    start = [
        Position(source_id=log.source_id, topic=tp.topic, partition=tp.partition)
        for tp in _stream_partitions(log, composition.config)
    ]
    pipeline.rebase(start)
    pipeline.assign(start)
    ends = {tp: last + 1 for tp, last in log.last_offsets().items()}
    if stops:
        ends = {tp: min(end, stops[tp].next_offset) for tp, end in ends.items() if tp in stops}
    begun = {tp: p.index for tp, p in stops.items() if p.index}  # half an envelope, say
    pipeline.mark_finished(
        tp for tp in pipeline.sequencer.partitions if not ends.get(tp) and tp not in begun
    )
    for batches in log.batches(CHUNK_RECORDS):
        mine = [b for b in batches if b.tp in pipeline.positions() and b.tp in ends]
        whole = [before(b, ends[b.tp]) for b in mine]
        pipeline.process([b for b in whole if len(b)], 0)
        over = []
        for batch in mine:
            tp, last = batch.tp, int(batch.offset_n[-1])
            if tp in begun and last >= ends[tp]:
                _push_rows(pipeline, _first_from(batch, ends[tp]), begun.pop(tp))
            if tp not in begun and last >= ends[tp] - 1:
                over.append(tp)
        pipeline.process([], 0, finished=over)
    pipeline.drain()


def _push_rows(pipeline: OnlinePipeline, batch: RecordBatch, index: int) -> None:
    """Give the first `index` rows of one record to the sequencer."""
    spec = pipeline.plan
    decoder = (
        ImpressionDecoder(spec.impression_spec)
        if pipeline.topics[batch.tp.topic] == 0
        else ClickDecoder(spec.click_spec)
    )
    pipeline.sequencer.push(batch, _first_rows(decoder.decode(batch), index))


def _first_rows(columns: EventColumns, index: int) -> EventColumns:
    n = int(np.count_nonzero(columns.index_n < index))
    rejected = int(np.count_nonzero(columns.kind_n[:n] == EventKind.REJECTED))
    names = ("kind_n", "ts_ms_n", "request_n", "item_n", "user_n", "click_kind_n", "record_n",
             "index_n", "imp_n")  # fmt: skip
    rows: dict[str, Any] = {name: getattr(columns, name)[:n] for name in names}
    return replace(columns, **rows, rejected=columns.rejected[:rejected])


def _first_from(batch: RecordBatch, offset: int) -> RecordBatch:
    first = int(np.searchsorted(batch.offset_n, offset))
    return batch.rows(first, first + 1)


def before(batch: RecordBatch, offset: int) -> RecordBatch:
    """The records of the batch before `offset`."""
    return batch.rows(0, int(np.searchsorted(batch.offset_n, offset)))
