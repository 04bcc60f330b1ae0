"""Record logs that importers wrote, read back; and where shared data sets lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from stream.record_log import RecordLog

SHARED = Path(os.environ.get("MILLRACE_SHARED", Path(__file__).parents[2].parent / "shared"))


def messages(log: Path, topic: str) -> list[dict[str, Any]]:
    """Decoded messages of a topic, in the log's order."""
    return [
        msgpack.unpackb(value)
        for chunk in RecordLog(log).batches(1)
        for batch in chunk
        for value in batch.values
        if batch.tp.topic == topic and value
    ]


def shared_data(name: str) -> Path:
    """The folder of a shared data set; the test is skipped where it is absent."""
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"data set {name} is absent; MILLRACE_SHARED names the folder above data/")
    return folder
