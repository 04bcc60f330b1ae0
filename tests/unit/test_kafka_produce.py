"""Sending a record log, without a broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import KafkaTimeoutError

from stream.codec_write import click_body, encode_event
from stream.kafka.produce import ProduceOptions, _Sending
from stream.record_log import RecordLog, RecordLogWriter

T = 1_650_000_000_000


class Builder:
    """A batch that takes everything."""

    def append(self, **_):
        return object()

    def close(self):
        pass


class Producer:
    """Takes batches, and fails to deliver them all."""

    def __init__(self):
        self.futures = []

    def create_batch(self):
        return Builder()

    async def send_batch(self, _builder, _topic, *, partition):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(KafkaTimeoutError(f"no answer for {partition}"))
        self.futures.append(future)
        return future


def test_at_a_slow_pace_a_broker_that_takes_nothing_is_noticed_at_once(tmp_path):
    path = tmp_path / "log.parquet"
    with RecordLogWriter(path, {"clicks": 1}, ordered=True) as log:
        for n in range(200):
            value = encode_event(
                "click",
                click_body(item_id=1, user_id=1, ts_ms=T + n, kind="click", request_id=n),
            )
            log.write("clicks", 0, n, T + n, b"1", value)
    producer = Producer()
    options = ProduceOptions(topics={"clicks"}, speed=1e9, close_ms=None)

    async def run():
        await _Sending(producer, options).all_of(RecordLog(path), ["clicks"], lambda *_: None)

    with pytest.raises(KafkaTimeoutError, match="no answer for 0"):
        asyncio.run(run())
    assert len(producer.futures) == 1, "of 200 records in chunks of 64"
