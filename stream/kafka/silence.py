"""Which partitions are silent: read to their end, and no record for a while. Asks no broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from stream.records import TopicPartition


class Silence:
    """Wall-clock time since each partition's last record; for live streams only (rule 2)."""

    def __init__(
        self,
        partitions: Sequence[TopicPartition],
        idle_ms: int,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """A partition is silent after `idle_ms` without a record."""
        self._idle_ms, self._clock = idle_ms, clock
        self._last_s: dict[TopicPartition, float] = {}
        self._partitions = partitions
        self._looked_s: float | None = None
        self._begun = False

    def heard(self, tp: TopicPartition) -> None:
        """A record came.

        With the first of all, the others begin to be waited for: they may be on their way.
        """
        now = self._clock()
        if not self._begun:
            self._last_s = dict.fromkeys(self._partitions, now)
            self._begun = True
        self._last_s[tp] = now
        self._looked_s = None

    def look(self, lags: Mapping[TopicPartition, int | None]) -> tuple[list[TopicPartition], int]:
        """Silent partitions, and ms since the look before if they were silent then, else 0.

        `lags` tells the records that a partition has waiting, None where that is not known: such a
        partition is never silent.
        """
        now = self._clock()
        silent = [
            tp
            for tp in self._partitions
            if (now - self._last_s.setdefault(tp, now)) * 1000 >= self._idle_ms and lags[tp] == 0
        ]
        since, self._looked_s = self._looked_s, now if silent else None
        return silent, 0 if since is None or not silent else int((now - since) * 1000)
