"""What can be said about docker-compose.yml and the Dockerfile without running them."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# Why a service has no health check: it does one thing and ends.
ONE_SHOTS = {
    "topics": "creates and checks topics, then ends; others wait for its success",
    "produce": "sends the bundled log, then ends",
}
_IMAGE = re.compile(r"^\$\{[A-Z_]+:-(?P<name>[\w./-]+):(?P<tag>[\w.-]+)\}$")
_FLOATING = ("latest", "main", "edge", "stable")
_LOOPBACK = "127.0.0.1:"


def load(root: Path = ROOT) -> dict[str, Any]:
    """docker-compose.yml as a map."""
    found = yaml.safe_load((root / "docker-compose.yml").read_text())
    assert isinstance(found, dict)
    return found


def compose_faults(compose: dict[str, Any], root: Path = ROOT) -> list[str]:
    """Lines that say what is wrong; none when all is well."""
    faults = []
    volumes = set(compose.get("volumes") or {})
    for name, service in compose["services"].items():
        found = [
            *_image_faults(service),
            *_port_faults(service),
            *_health_faults(name, service),
            *_volume_faults(service, volumes, root),
            *_dependency_faults(service, compose["services"]),
            *(f"'{key}' is not for us" for key in ("privileged", "pid", "ipc") if key in service),
        ]
        if service.get("network_mode") == "host":
            found.append("host network")
        faults += [f"{name}: {fault}" for fault in found]
    return faults


def _image_faults(service: dict[str, Any]) -> list[str]:
    images = [service.get("image", "")]
    arguments = service.get("build", {}).get("args", {})
    images += [value for key, value in arguments.items() if key.endswith("_IMAGE")]
    faults = []
    for image in images:
        match = _IMAGE.match(image)
        if match is None:
            faults.append(f"image '{image}': expected ${{VARIABLE:-name:tag}}")
        elif match["tag"] in _FLOATING or not any(c.isdigit() for c in match["tag"]):
            faults.append(f"image '{image}': the default's tag is not pinned")
    return faults


def _port_faults(service: dict[str, Any]) -> list[str]:
    return [
        f"port '{port}': expected {_LOOPBACK}…, else it is open to the network"
        for port in service.get("ports", [])
        if not isinstance(port, str) or not port.startswith(_LOOPBACK)
    ]


def _health_faults(name: str, service: dict[str, Any]) -> list[str]:
    if name in ONE_SHOTS:
        once = service.get("restart") == "no" and "healthcheck" not in service
        return [] if once else ["a one-shot has restart 'no' and no health check"]
    return [] if service.get("healthcheck") else ["no health check"]


def _volume_faults(service: dict[str, Any], named: set[str], root: Path) -> list[str]:
    faults = []
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("/"):
            faults.append(f"volume '{volume}': a path of the host's")
        elif source.startswith("."):
            if not (root / source).exists():
                faults.append(f"volume '{volume}': {source} does not exist")
            if not volume.endswith(":ro"):
                faults.append(f"volume '{volume}': a mounted file is read-only")
        elif source not in named:
            faults.append(f"volume '{volume}': not declared under volumes")
    return faults


def _dependency_faults(service: dict[str, Any], services: dict[str, Any]) -> list[str]:
    faults = []
    for other, how in service.get("depends_on", {}).items():
        once = how["condition"] == "service_completed_successfully"
        if other not in services:
            faults.append(f"depends on '{other}', which does not exist")
        elif once != (other in ONE_SHOTS):
            faults.append(f"depends on '{other}' by the wrong condition {how['condition']}")
    return faults


def dockerfile_faults(text: str, ignore: str, root: Path = ROOT) -> list[str]:
    """Lines that say what is wrong with the Dockerfile or with what .dockerignore leaves of it."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    words = [line.split() for line in lines if line and not line.startswith("#")]
    faults = []
    if any(re.match(r"#\s*syntax=", line) for line in lines):
        faults.append("a syntax line makes every build pull an image")
    if not re.match(r"^ARG PYTHON_IMAGE=[\w./-]+:\d[\w.-]*$", " ".join(words[0])):
        faults.append("expected ARG PYTHON_IMAGE with a pinned default first")
    faults += [
        f"{' '.join(w)}: expected FROM ${{PYTHON_IMAGE}}"
        for w in words
        if w[0] == "FROM" and w[1] != "${PYTHON_IMAGE}"
    ]
    users = [w[1] for w in words if w[0] == "USER"]
    if not users or users[-1].split(":")[0] in {"root", "0"}:
        faults.append("expected an ordinary USER")
    if "--require-hashes" not in text:
        faults.append("expected --require-hashes where the lock is installed")
    kept = [line[1:] for line in ignore.splitlines() if line.startswith("!")]
    for w in words:
        if w[0] != "COPY" or w[1].startswith("--from"):
            continue
        for source in w[1:-1]:
            if not (root / source).exists():
                faults.append(f"COPY {source}: does not exist")
            elif not any(fnmatch.fnmatch(source, k) or source.startswith(f"{k}/") for k in kept):
                faults.append(f"COPY {source}: left out by .dockerignore")
    return faults


def static_faults(root: Path = ROOT) -> list[str]:
    """All of it, for the files of the repository."""
    dockerfile = (root / "infra/docker/Dockerfile").read_text()
    ignore = (root / ".dockerignore").read_text()
    return [*compose_faults(load(root), root), *dockerfile_faults(dockerfile, ignore, root)]
