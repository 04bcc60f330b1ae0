"""A broker as a child process: start, wait until it answers, stop. Knows no particular broker."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.errors import FaultError

HOST = "127.0.0.1"
_TAIL_BYTES = 1500
_PORTS = range(20_000, 32_000)


class BrokerFailed(FaultError):
    """A broker did not start, or ended: what was run, and the end of what it said."""


class BrokerProcess:
    """One child process whose output goes to a file. Stopped at the latest when Python ends."""

    def __init__(self, name: str, log: Path) -> None:
        self._name = name
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process else None

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        """Start it. It gets a session of its own, so that Ctrl-C reaches only us."""
        assert self.pid is None, f"{self._name} already runs"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        atexit.register(self.kill)

    def wait_until_it_answers(self, port: int, timeout_s: float) -> None:
        """Return when a Kafka request is answered; raises BrokerFailed with the log's end."""
        deadline = time.monotonic() + timeout_s
        while not answers(HOST, port):
            if self.pid is None:
                raise BrokerFailed(f"{self._name} ended before it answered: {self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerFailed(
                    f"{self._name} did not answer within {timeout_s:.0f} s: {self.log_tail()}"
                )
            time.sleep(0.02)

    def log_tail(self) -> str:
        """The last lines it printed."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace").strip() or "(no output)"
        return "(no output)"

    def stop(self, timeout_s: float = 20) -> None:
        """Ask it to end, and end it if it does not. Does nothing if it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """SIGKILL, as a crash would be. Does nothing if it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        self._forget()

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None, f"{self._name} was not started"
        return self._process.wait()

    def _forget(self) -> None:
        self._process = None
        atexit.unregister(self.kill)


def free_port() -> int:
    """A port on loopback that nothing listens on now, below those that connections are given.

    A client that tries again and again to reach a broker that is down would else be given, sooner
    or later, the broker's own port as its end: connected to itself, it keeps the broker out.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            return port
    raise BrokerFailed(f"no free port on {HOST} from {_PORTS[0]} to {_PORTS[-1]}")


def answers(host: str, port: int, timeout_s: float = 2) -> bool:
    """Whether a Kafka broker answers there: ApiVersions, the one request that needs no client."""
    request = struct.pack(">hhih", 18, 0, 1, -1)  # key, version, correlation id, no client id
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(">i", len(request)) + request)
            head = b""
            while len(head) < 10 and (more := connection.recv(10 - len(head))):
                head += more
    except OSError:
        return False
    if len(head) < 10:
        return False
    _, correlation, error = struct.unpack(">iih", head)
    return bool(correlation == 1 and error == 0)
