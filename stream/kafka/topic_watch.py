"""Whether the topics are still those that a process has started with. Reads and writes no record.

A client does not notice a topic that was deleted and made anew: it goes on at an offset that means
something else now, or begins at the start without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from kafka.errors import KafkaError

from infra.errors import FaultError, InputError
from stream.kafka.connection import admin_client
from stream.kafka.settings import KafkaConfig
from stream.kafka.topics import describe, source_ids

EVERY_S: Final = 30.0


class Log(NamedTuple):
    """A topic's log: its identity, which a topic made anew does not have, and its partitions."""

    source_id: str
    partitions: int


def ask_logs(config: KafkaConfig, names: Sequence[str]) -> dict[str, Log]:
    """The logs of those of `names` that the broker has. Raises BrokerUnreachableError."""
    with admin_client(config) as admin:
        facts = describe(admin, names)
        ids = source_ids(admin, facts)
    return {name: Log(ids[name], fact.partitions) for name, fact in facts.items()}


class TopicWatch:
    """Compares the broker's topics with those of the start, now and then."""

    def __init__(
        self,
        logs: Mapping[str, Log],
        ask: Callable[[Sequence[str]], Mapping[str, Log]],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        """`logs`: as of the start. `ask` gives them as of now; it may block and fail."""
        self._logs, self._ask, self._every_s = dict(logs), ask, every_s
        self._missing: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look until cancelled; raises InputError once a topic is another one, or gone."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                now = await asyncio.to_thread(self._ask, list(self._logs))
            except (KafkaError, FaultError, OSError):
                continue  # the broker is away: those who read from it say so
            self.compare(now)

    def compare(self, now: Mapping[str, Log]) -> None:
        """Raise InputError where a topic is not what it was; one that is gone, the second time."""
        for name, before in self._logs.items():
            found = now.get(name, before)
            if found.source_id != before.source_id:
                raise InputError(
                    f"topic '{name}' was deleted and made anew while it was read (it was "
                    f"'{before.source_id}', now it is '{found.source_id}'): start again, and see "
                    "what it says about the new log"
                )
            if found.partitions != before.partitions:
                raise InputError(
                    f"topic '{name}' has {found.partitions} partitions now, and had "
                    f"{before.partitions} at the start: start again"
                )
        missing = frozenset(self._logs.keys() - now.keys())
        if gone := missing & self._missing:
            raise InputError(
                f"topic '{min(gone)}' was deleted while it was read (`millrace topics` creates it)"
            )
        self._missing = missing
