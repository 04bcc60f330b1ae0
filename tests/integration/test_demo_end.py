"""A demo that is asked to stop in the middle leaves no process behind."""

from __future__ import annotations

import threading
import time

import psutil
import pytest

from tests.support.kafka_process import Child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_sigterm_ends_the_broker_and_all_processes(tmp_path):
    folder = tmp_path / "demo"
    with Child(["-m", "stream.cli", "demo", "--folder", str(folder)]) as demo:
        deadline, pause = time.monotonic() + 120, threading.Event()
        while not (folder / "worker.log").exists():
            assert demo.process.poll() is None, demo.tail()
            assert time.monotonic() < deadline, demo.tail()
            pause.wait(0.05)
        started = psutil.Process(demo.process.pid).children(recursive=True)
        assert len(started) >= 2, "broker and worker"
        assert demo.stop() == 128 + 15, demo.tail()
        assert [p for p in started if p.is_running() and p.status() != "zombie"] == []
        assert "Traceback" not in demo.text
