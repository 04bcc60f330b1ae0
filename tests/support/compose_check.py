"""`make compose-check`: docker-compose.yml statically, then on a container engine of its own.

The engine part starts a dockerd below a scratch folder, with images made here in place of the
public ones, streams the bundled log through the services and removes all it started. Where no
engine can be started it says why and is skipped. Pulls nothing from an image registry.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.broker_process import free_port
from tests.support.compose_static import ROOT, static_faults

COMPOSE_VERSION = "v2.40.3"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "millrace"
CONTAINERS = Path(__file__).parent / "containers"
PYTHON_IMAGE, KAFKA_IMAGE = "local/python:3.11", "local/kafka:4"
MILLRACE_IMAGE = "local/millrace:check"
PROJECT = "millrace-check"
NEEDED = ("dockerd", "debootstrap", "iptables", "tar", "ip")
_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_CA = Path("/etc/ssl/certs/ca-certificates.crt")
_SAMPLES = 131_352


class Skipped(Exception):
    """The engine part cannot run here, and why."""


def say(text: str) -> None:
    """A line with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def run(*command: str | Path, limit_s: float = 1_800, **options: Any) -> str:
    """Standard output of a command; raises with the end of its output where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, check=False, timeout=limit_s, **options,
    )  # fmt: skip
    if done.returncode:
        tail = (done.stdout + done.stderr).strip()[-3_000:]
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}: code {done.returncode}\n{tail}")
    return str(done.stdout)


def compose_config(docker: str, env: dict[str, str] | None = None) -> str:
    """How `docker compose config` judged the file: a line for a person; raises where it is bad."""
    if shutil.which(docker) is None:
        return "docker compose config: skipped, no docker client"
    have = subprocess.run([docker, "compose", "version"], capture_output=True, check=False, env=env)
    if have.returncode:
        return "docker compose config: skipped, the client has no compose plugin"
    for profile in ("", "demo", "observability"):
        chosen = ["--profile", profile] if profile else []
        run(docker, "compose", *chosen, "config", "-q", cwd=ROOT, env=env)
    return "docker compose config: accepted, with each profile"


def client() -> str:
    """The docker client to use. Debian's has BuildKit inside; newer ones want a plugin for it."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def _require() -> None:
    if os.geteuid() != 0:
        raise Skipped("a container engine of its own needs root")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise Skipped(
            f"{', '.join(missing)} not found: on Debian, apt-get install docker.io debootstrap "
            "iptables iproute2"
        )


def _plugin() -> Path:
    """The compose plugin: the installed one, else one built by go, once (some minutes)."""
    for folder in ("libexec", "lib"):
        installed = Path("/usr", folder, "docker/cli-plugins/docker-compose")
        if installed.exists():
            return installed
    built = CACHE / f"docker-compose-{COMPOSE_VERSION}"
    if built.exists():
        return built
    if shutil.which("go") is None:
        raise Skipped("no compose plugin is installed, and there is no go to build it with")
    say(f"building the compose plugin {COMPOSE_VERSION}")
    module = "github.com/docker/compose/v2/cmd"
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "go.mod").write_text("module local/compose\n\ngo 1.24\n")
        try:
            run("go", "get", f"{module}@{COMPOSE_VERSION}", cwd=scratch)
            run("go", "build", "-o", "docker-compose", module, cwd=scratch)
        except RuntimeError as error:
            raise Skipped(f"the compose plugin could not be built: {error}") from error
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(scratch, "docker-compose"), built)
    return built


@contextmanager
def engine(scratch: Path, plugin: Path) -> Iterator[dict[str, str]]:
    """Environment of a client of a dockerd that lives as long as the block."""
    sock = scratch / "sock"
    hard = _hard_limit()
    (scratch / "daemon.json").write_text(
        json.dumps({
            "data-root": str(scratch / "data"), "exec-root": str(scratch / "run"),
            "pidfile": str(scratch / "pid"), "hosts": [f"unix://{sock}"],
            "storage-driver": "overlay2", "oom-score-adjust": 0,
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": hard, "Soft": hard}},
        })
    )  # fmt: skip
    before = network()
    with (scratch / "log").open("w") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--config-file", str(scratch / "daemon.json")], stdout=log, stderr=log
        )
    plugins = scratch / "config" / "cli-plugins"
    try:
        plugins.mkdir(parents=True)
        shutil.copy2(plugin, plugins / "docker-compose")
        _until(sock.exists, 30, daemon, scratch / "log")
        yield {
            **os.environ, "DOCKER_HOST": f"unix://{sock}", "DOCKER_BUILDKIT": "1",
            "DOCKER_CONFIG": str(scratch / "config"), "COMPOSE_PROJECT_NAME": PROJECT,
            "PYTHON_IMAGE": PYTHON_IMAGE, "KAFKA_IMAGE": KAFKA_IMAGE, "TORCH": "cpu",
            "MILLRACE_IMAGE": MILLRACE_IMAGE, "KAFKA_PORT": str(free_port()),
            "MILLRACE_CONFIG": "default+best",
        }  # fmt: skip
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        restore_network(before)


def _hard_limit() -> int:
    import resource

    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1_048_576)


def _until(
    met: Callable[[], bool], limit_s: float, daemon: subprocess.Popen[bytes], log: Path
) -> None:
    end = time.monotonic() + limit_s
    while not met():
        if daemon.poll() is not None or time.monotonic() > end:
            raise Skipped(f"dockerd does not start here: {log.read_text()[-600:]}")
        time.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Network:
    """What of the machine's network dockerd changes."""

    bridges: frozenset[str]
    forward: str
    ip_forward: str


def network() -> Network:
    """As it is now."""
    links = json.loads(run("ip", "-json", "link", "show", "type", "bridge") or "[]")
    return Network(
        frozenset(link["ifname"] for link in links),
        run("iptables", "-S", "FORWARD").split()[2],
        _IP_FORWARD.read_text(),
    )


def restore_network(before: Network) -> None:
    """Remove bridges and iptables chains that dockerd left; what was there before stays."""
    for name in network().bridges - before.bridges:
        subprocess.run(["ip", "link", "delete", name], check=False)
    if "docker0" in before.bridges:
        return
    run("iptables", "-P", "FORWARD", before.forward)
    _IP_FORWARD.write_text(before.ip_forward)
    for table in ("nat", "filter"):
        rules = subprocess.run(
            ["iptables", "-t", table, "-S"], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        ours = [line.split() for line in rules if "DOCKER" in line or "docker0" in line]
        for line in ours:
            if line[0] == "-A":
                subprocess.run(["iptables", "-t", table, "-D", *line[1:]], check=False)
        for line in ours:
            if line[0] == "-N":
                subprocess.run(["iptables", "-t", table, "-F", line[1]], check=False)
        for line in ours:
            if line[0] == "-N":
                subprocess.run(["iptables", "-t", table, "-X", line[1]], check=False)


def build_images(docker: str, env: dict[str, str], scratch: Path) -> None:
    """Stand-ins for the public images, then ours."""
    from infra.kafka_broker import KafkaUnavailable, fetch_jars

    say("stand-in images: Debian, Python, Kafka")
    rootfs = scratch / "rootfs"
    run("debootstrap", "--variant=minbase", "bookworm", rootfs)
    with subprocess.Popen(
        ["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE
    ) as tar:  # fmt: skip
        run(docker, "import", "-", "local/debian:12", env=env, stdin=tar.stdout)
    shutil.rmtree(rootfs)
    context = scratch / "images"
    shutil.copytree(CONTAINERS, context)
    shutil.copy2(_CA, context / "ca.crt")
    try:
        shutil.copytree(fetch_jars(), context / "jars")
    except KafkaUnavailable as error:
        raise Skipped(str(error)) from error
    for name, image in (("python", PYTHON_IMAGE), ("kafka", KAFKA_IMAGE)):
        run(docker, "build", "-t", image, "-f", context / f"{name}.Dockerfile", context, env=env)
    say("the image of millrace, TORCH=cpu")
    run(docker, "compose", "build", "worker", env=env, cwd=ROOT)
    size = int(run(docker, "image", "inspect", "-f", "{{.Size}}", MILLRACE_IMAGE, env=env))
    say(f"image: {size / 1e9:.2f} GB")


def try_services(docker: str, env: dict[str, str]) -> None:
    """Up, healthy, the bundled log through all of it, down; raises where anything is amiss."""

    def compose(*words: str, limit_s: float = 900) -> str:
        return run(docker, "compose", *words, env=env, cwd=ROOT, limit_s=limit_s)

    def status() -> dict[str, Any]:
        text = compose("exec", "-T", "worker", "cat", "/tmp/worker-status.json")
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    try:
        began = time.monotonic()
        compose("up", "-d", "--wait", "--pull", "never")
        say(f"kafka, embed, worker healthy after {time.monotonic() - began:.0f} s")
        user = compose("exec", "-T", "worker", "id", "-u").strip()
        assert user != "0", "the worker runs as root"
        published = compose("port", "kafka", "29092").strip()
        assert published.startswith("127.0.0.1:"), published
        began = time.monotonic()
        compose("--profile", "demo", "run", "--rm", "--no-deps", "produce")
        say(f"bundled log sent in {time.monotonic() - began:.0f} s")
        end = time.monotonic() + 600
        while (samples := status()["pipeline"]["samples"]) < _SAMPLES:
            assert time.monotonic() < end, f"{samples} of {_SAMPLES} samples learned in time"
            time.sleep(2)
        metrics = status()["pipeline"]["metrics"]
        say(f"{samples:,} samples learned after {time.monotonic() - began:.0f} s: {metrics}")
        learner = status()["pipeline"]["learner"]
        assert learner["make_steps"] == learner["steps"], f"the method does not learn: {learner}"
        compose("stop", "worker")
        code = run(
            docker, "inspect", "-f", "{{.State.ExitCode}}", f"{PROJECT}-worker-1", env=env
        )  # fmt: skip
        assert code.strip() == "0", f"the worker ended with code {code}"
        compose("up", "-d", "--wait", "--pull", "never", "worker")
        assert status()["pipeline"]["samples"] == _SAMPLES, "the snapshot was not resumed"
        say("worker stopped with code 0 and resumed from its snapshot")
    except (RuntimeError, AssertionError):
        print(run(docker, "compose", "ps", "-a", env=env, cwd=ROOT))
        print(run(docker, "compose", "logs", "--tail", "30", env=env, cwd=ROOT))
        raise
    finally:
        compose("--profile", "*", "down", "-v", "--remove-orphans", "--timeout", "40")


def check_on_engine(docker: str) -> None:
    """Everything that needs an engine; raises Skipped with the reason where there is none."""
    _require()
    plugin = _plugin()
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="millrace-compose-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        env = stack.enter_context(engine(scratch, plugin))
        say(compose_config(docker, env))
        build_images(docker, env, scratch)
        try_services(docker, env)


def main() -> int:
    """0 when nothing is wrong, also where the engine part was skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--static", action="store_true", help="leave the engine out")
    arguments = parser.parse_args()
    faults = static_faults()
    print("\n".join(faults) or "docker-compose.yml, Dockerfile: no fault found")
    if faults:
        return 1
    docker = client()
    print(compose_config(docker))
    if arguments.static:
        return 0
    try:
        check_on_engine(docker)
    except Skipped as reason:
        print(f"on an engine: skipped, {reason}")
        return 0
    except (RuntimeError, AssertionError) as error:
        print(f"on an engine: FAILED\n{error}", file=sys.stderr)
        return 1
    print("on an engine: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
