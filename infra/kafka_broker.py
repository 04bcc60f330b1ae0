"""A real Kafka, one KRaft node on loopback, from Maven's jars. Not meant for production."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Self

from infra.broker_process import HOST, BrokerFailed, BrokerProcess, free_port
from infra.errors import InputError

KAFKA = Path(__file__).parent / "kafka"
START_TIMEOUT_S = 90
FETCH_TIMEOUT_S = 600


class KafkaUnavailable(InputError):
    """Java or Maven is absent, or the jars could not be fetched."""


class KafkaBroker:
    """A broker whose port and data outlive a `stop`: `start` goes on where it was.

    `folder` holds its data (a temporary one, removed by `close`, if not given).
    """

    def __init__(self, folder: Path | None = None, *, port: int | None = None) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="millrace-kafka-"))
        self.port = port or free_port()
        self._controller_port = free_port()
        self._process = BrokerProcess("Kafka", self.folder / "log")

    @property
    def address(self) -> str:
        """host:port."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid

    def start(self) -> Self:
        """Itself, once it answers. Raises KafkaUnavailable, BrokerFailed."""
        jars = fetch_jars()
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        template = (KAFKA / "server.properties").read_text()
        filled = {
            "port": self.port,
            "controller_port": self._controller_port,
            "log_dir": self.folder / "data",
        }
        properties.write_text(re.sub(r"\{(\w+)\}", lambda m: str(filled.get(m[1], m[0])), template))
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(jars, properties)
        self._process.start(_java(jars, "-Xms256m", "-Xmx768m", "kafka.Kafka", properties), _env())
        self._process.wait_until_it_answers(self.port, START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """A graceful end; data and port stay."""
        self._process.stop(timeout_s=40)

    def kill(self) -> None:
        """An end as in a crash; data and port stay."""
        self._process.kill()

    def close(self) -> None:
        """`stop`, and remove a temporary folder."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self._process.wait()

    def __enter__(self) -> Self:
        """`start`."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def _format(self, jars: Path, properties: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # Kafka refuses an id with a leading dash: its tools would read it as an option.
        cluster = "k" + cluster[1:]
        command = _java(jars, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", properties)
        done = subprocess.run(command, env=_env(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerFailed(f"Kafka's storage: {(done.stderr or done.stdout).strip()[-800:]}")


def missing_tools() -> list[str]:
    """Which of java and mvn are not on the path; without them there is no real broker here."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def fetch_jars() -> Path:
    """The folder with the broker's jars, copied once by Maven. Raises KafkaUnavailable."""
    pom = KAFKA / "pom.xml"
    match = re.search(r"<kafka\.version>([^<]+)<", pom.read_text())
    assert match, "pom.xml names kafka.version"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace"
    target = cache / f"kafka-{match[1]}"
    if target.is_dir():
        return target
    if missing := missing_tools():
        raise KafkaUnavailable(
            f"Kafka: expected java and mvn on the path, got no {' and no '.join(missing)}; "
            "install a Java runtime (17 or newer) and Maven, or name a broker that runs"
        )
    cache.mkdir(parents=True, exist_ok=True)
    # Copied elsewhere first: the folder's existence says that it is complete.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        shutil.copy(pom, scratch)
        command = [
            *("mvn", "--quiet", "--batch-mode", "--file", f"{scratch}/pom.xml"),
            *("dependency:copy-dependencies", f"-DoutputDirectory={scratch}/jars"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT_S
        )
        if done.returncode:
            raise KafkaUnavailable(f"Kafka's jars: mvn failed: {done.stdout.strip()[-800:]}")
        try:
            Path(scratch, "jars").rename(target)
        except OSError:
            if not target.is_dir():  # another process was first
                raise
    return target


def _java(jars: Path, *arguments: str | Path) -> list[str]:
    return ["java", "-cp", f"{jars}/*", *_LOGGING, *(str(a) for a in arguments)]


def _env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "OTEL_"))}


_LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",)
