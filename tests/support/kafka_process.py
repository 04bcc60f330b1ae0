"""A child process of a test: its lines of output as they come, and an end that is certain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
_LINES_MAX = 200_000
# Ten times what an idle machine needs: who is slow fails later, and says where.
WAIT_S = 120.0
STOP_S = 60.0  # behind the worker's own limit, so that its last words are there


class Child:
    """`python ARGS` in the repository's root; JSON lines of its output are its events."""

    def __init__(self, args: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *args],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self.lines: deque[str] = deque(maxlen=_LINES_MAX)
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def events(self) -> list[dict[str, Any]]:
        """JSON objects among the lines so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    @property
    def text(self) -> str:
        """All lines so far."""
        return "\n".join(self.lines)

    def until(self, ready: Callable[[Child], Any], timeout_s: float = WAIT_S) -> Any:
        """The first truthy value of `ready(self)`, looked at after each line."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if value := ready(self):
                    return value
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    why = "ended" if self._ended else f"did not get there in {timeout_s} s"
                    raise AssertionError(f"child {why}; its last lines:\n" + self.tail())
                self._changed.wait(left)

    def line(self, text: str, timeout_s: float = WAIT_S) -> str:
        """The first line that contains `text`."""
        found = self.until(
            lambda child: next((ln for ln in child.lines if text in ln), None), timeout_s
        )
        assert isinstance(found, str)
        return found

    def event(self, kind: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The first event of that kind."""
        found = self.until(
            lambda child: next((e for e in child.events if e.get("event") == kind), None), timeout_s
        )
        assert isinstance(found, dict)
        return found

    def tail(self, n: int = 30) -> str:
        """The last lines."""
        return "\n".join(list(self.lines)[-n:])

    def stop(self, signal_: int = signal.SIGTERM, timeout_s: float = STOP_S) -> int:
        """Send the signal and wait for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Wait for the end; returns the exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"child still runs after {timeout_s} s; its last lines:\n" + self.tail()
            ) from None
        self._reader.join(10.0)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10.0)
        self._reader.join(10.0)
        if self.process.stdout is not None:
            self.process.stdout.close()
