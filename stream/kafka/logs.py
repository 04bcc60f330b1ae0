"""Log lines of the worker and the Kafka client: with a broker down that writes 75 a second."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

_TEMPLATES_MAX = 1_000


class RepeatFilter(logging.Filter):
    """Lets each message of loggers named `prefix…` through once in `every_s`, with a count.

    Messages are told apart by logger and template, not by their arguments.
    """

    def __init__(
        self, prefix: str, *, every_s: float, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__()
        self._prefix, self._every_s, self._clock = prefix, every_s, clock
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; one that stands for several says so."""
        if not record.name.startswith(self._prefix):
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        if key in self._last:
            since, held = self._last[key]
            if now - since < self._every_s:
                self._last[key] = since, held + 1
                return False
            if held:
                record.msg = f"{record.getMessage()} (and {held} more like it)"
                record.args = ()
        elif len(self._last) >= _TEMPLATES_MAX:
            self._last.clear()
        self._last[key] = now, 0
        return True


def limit_repeats(prefix: str = "aiokafka", *, every_s: float = 30.0) -> None:
    """Put the filter on every handler of the root logger."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RepeatFilter(prefix, every_s=every_s))


def set_up_logs(level: int = logging.WARNING) -> None:
    """Log lines to standard error, repeats kept rare.

    Faust's own lines are left out: a crash is told once, by the error that ends the process. So are
    those of the administration client: whoever asks by it gets an answer or an error.
    """
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for name in ("faust", "mode", "kafka", "stream.kafka.worker", "stream.kafka.transport"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    limit_repeats()
