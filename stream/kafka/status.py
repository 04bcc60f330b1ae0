"""The worker's status file: what it does just now, for people and for tools that wait for it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

_EVERY_S = 0.9


class StatusFile:
    """A JSON file that is always whole: about once a second, and at each change of state."""

    def __init__(self, path: str) -> None:
        """`path` empty: nothing is written."""
        self._path = Path(path) if path else None
        self._state = ""
        self._written_s = 0.0

    async def write(self, status: dict[str, Any]) -> None:
        """Write `status`, which has a `state`, unless that was done just now."""
        now = time.monotonic()
        recent = status["state"] == self._state and now - self._written_s < _EVERY_S
        if self._path is None or recent:
            return
        self._state, self._written_s = status["state"], now
        text = json.dumps({"pid": os.getpid(), "time_ms": time.time_ns() // 1_000_000, **status})
        await asyncio.to_thread(self._replace, self._path, text)

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)
