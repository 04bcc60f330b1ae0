import copy
import importlib.util
import json

import pytest

from stream.cli import VERBS
from tests.support import compose_static as static

DOCKERFILE = (static.ROOT / "infra/docker/Dockerfile").read_text()
IGNORE = (static.ROOT / ".dockerignore").read_text()


def load_script(name):
    path = static.ROOT / "infra/docker" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health = load_script("health")


def test_the_repository_is_well():
    assert static.static_faults() == []


def test_services_and_profiles():
    services = static.load()["services"]
    profiles = {name: tuple(service.get("profiles", ())) for name, service in services.items()}
    assert profiles == {
        "kafka": (), "topics": (), "embed": (), "worker": (),
        "produce": ("demo",), "lgtm": ("observability",),
    }  # fmt: skip


def test_commands_are_verbs_that_exist():
    for name in ("topics", "embed", "worker"):
        assert static.load()["services"][name]["command"][0] in VERBS
    script = static.load()["services"]["produce"]["command"][0]
    verbs = [line.split()[1] for line in script.splitlines() if line.startswith("millrace")]
    assert verbs == ["import", "produce", "produce"]


CHANGES = {
    "image 'apache/kafka:4.3.1'": ("kafka", {"image": "apache/kafka:4.3.1"}),
    "not pinned": ("kafka", {"image": "${KAFKA_IMAGE:-apache/kafka:latest}"}),
    "port '9092:9092'": ("kafka", {"ports": ["9092:9092"]}),
    "no health check": ("worker", {"healthcheck": None}),
    "not declared": ("worker", {"volumes": ["elsewhere:/var/lib/millrace"]}),
    "a path of the host's": ("worker", {"volumes": ["/var/run/docker.sock:/docker.sock"]}),
    "does not exist": ("lgtm", {"volumes": ["./infra/dashboards/other.json:/a:ro"]}),
    "wrong condition": ("worker", {"depends_on": {"topics": {"condition": "service_healthy"}}}),
    "is not for us": ("worker", {"privileged": True}),
    "host network": ("worker", {"network_mode": "host"}),
    "a one-shot has": ("topics", {"restart": "always"}),
}


@pytest.mark.parametrize("fault", CHANGES)
def test_what_is_wrong_with_a_service_is_named(fault):
    service, change = CHANGES[fault]
    compose = copy.deepcopy(static.load())
    compose["services"][service].update(change)
    found = static.compose_faults(compose)
    assert len(found) == 1
    assert found[0].startswith(f"{service}: ")
    assert fault in found[0]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    (
        ("USER millrace", "USER root", "ordinary USER"),
        ("--require-hashes", "", "--require-hashes"),
        ("FROM ${PYTHON_IMAGE}\n", "FROM python:3\n", "expected FROM"),
        ("ARG PYTHON_IMAGE=python:3.11-slim-bookworm", "ARG PYTHON_IMAGE=python", "pinned"),
        ("COPY stream stream", "COPY tests tests", "left out by .dockerignore"),
        ("COPY stream stream", "COPY streams stream", "does not exist"),
        ("# millrace in an image", "# syntax=docker/dockerfile:1\n#", "pull an image"),
    ),
)
def test_what_is_wrong_with_the_dockerfile_is_named(old, new, fault):
    assert old in DOCKERFILE
    found = static.dockerfile_faults(DOCKERFILE.replace(old, new, 1), IGNORE)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("status", "now_s", "fault"),
    (
        ({"state": "owner", "time_ms": 1_000_000}, 1_010, ""),
        ({"state": "owner", "time_ms": 1_000_000}, 1_100, "100 s old"),
        ({"state": "standby", "time_ms": 1_000_000}, 9_999, ""),
        ({"state": "stopped", "time_ms": 1_000_000}, 1_001, "'stopped'"),
        ({"state": "owner"}, 1_001, "no status yet"),
        (None, 1_001, "no status yet"),
    ),
)
def test_health_of_a_worker(tmp_path, status, now_s, fault):
    path = tmp_path / "status.json"
    if status is not None:
        path.write_text(json.dumps(status))
    found = health.status_fault(path, 60, now_s)
    assert fault in found if fault else found == ""


def test_health_by_an_open_connection(tmp_path):
    table = tmp_path / "tcp"
    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    row = "   0: 0100007F:D431 0200000A:2384 {}  00000000:00000000\n"
    table.write_text(head + row.format("01"))
    assert health.connection_fault(9092, (str(table),)) == ""
    assert "9093" in health.connection_fault(9093, (str(table),))
    table.write_text(head + row.format("06"))
    assert health.connection_fault(9092, (str(table), str(tmp_path / "absent"))) != ""


def test_health_needs_to_be_told_what_to_check():
    assert "expected" in health.main([])
