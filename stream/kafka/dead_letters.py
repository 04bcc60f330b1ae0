"""Dead letters to Kafka: sent, and known to have arrived before a snapshot goes past them.

At least once, keyed by topic, partition, offset and index. Decides nothing about events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import msgpack

from infra.errors import FaultError
from stream.events import SCHEMA_VERSION
from stream.sequencer import DeadLetter

_UNSETTLED_MAX = 10_000


class Producer(Protocol):
    """The part of Faust's producer that is used here."""

    async def send(  # Faust's order
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
    ) -> asyncio.Future[Any]:
        """Queue one record; the future ends when the broker has it."""
        ...

    async def flush(self) -> None:
        """Send what is queued; never raises."""
        ...


def encode_dead_letter(letter: DeadLetter, value_bytes_max: int) -> tuple[bytes, bytes]:
    """Key and value of the record; a value longer than `value_bytes_max` is cut, and says so."""
    key = f"{letter.tp.topic}/{letter.tp.partition}/{letter.offset}/{letter.index}"
    value = letter.value
    body = {
        "v": SCHEMA_VERSION,
        "type": "dead_letter",
        "topic": letter.tp.topic,
        "partition": letter.tp.partition,
        "offset": letter.offset,
        "index": letter.index,
        "reason": letter.reason,
        "detail": letter.detail[:1000],
        "key": None if letter.key is None else letter.key[:1000],
        "value": None if value is None else value[:value_bytes_max],
        "value_bytes": None if value is None else len(value),
    }
    return key.encode(), bytes(msgpack.packb(body))


class DeadLetterSender:
    """Sends dead letters and keeps their futures until they are settled."""

    def __init__(self, topic: str, *, value_bytes_max: int, timeout_s: float) -> None:
        self._topic = topic
        self._value_bytes_max = value_bytes_max
        self._timeout_s = timeout_s
        self._producer: Producer | None = None
        self._unsettled: deque[asyncio.Future[Any]] = deque()
        self._lost: Exception | None = None
        self.sent = 0

    async def send(self, producer: Producer, letters: Sequence[DeadLetter]) -> None:
        """Queue the letters; waits for the broker when too many are under way."""
        self._producer = producer
        for letter in letters:
            key, value = encode_dead_letter(letter, self._value_bytes_max)
            try:
                future = await producer.send(self._topic, key, value, None, None, None)
            except Exception as error:
                self._lost = error  # a letter without a future: no snapshot may pass it, either
                raise
            self._unsettled.append(future)
            self.sent += 1
            if len(self._unsettled) >= _UNSETTLED_MAX:
                await self.settle()

    async def settle(self) -> None:
        """Return when the broker has all letters; raises FaultError when it does not take one."""
        if not self._unsettled and self._lost is None:
            return
        assert self._producer is not None
        try:
            if self._lost is not None:
                raise self._lost
            async with asyncio.timeout(self._timeout_s):
                await self._producer.flush()
                while self._unsettled:
                    # flush never raises: what became of a record stands in its future alone.
                    await self._unsettled[0]
                    self._unsettled.popleft()
        except Exception as error:
            raise FaultError(
                f"dead letters could not be written to topic '{self._topic}': "
                f"{str(error) or type(error).__name__}; no snapshot may pass them, so this "
                "worker stops"
            ) from error
