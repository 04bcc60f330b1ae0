import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from infra import kafka_broker, local_broker
from infra.broker_process import BrokerFailed, BrokerProcess, answers, free_port
from infra.kafka_broker import KafkaUnavailable, fetch_jars
from infra.local_broker import LocalBroker, LocalBrokerMissing, find_binary
from stream import cli


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_embedded_broker_answers_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalBroker() as broker:
        pid = broker.pid
        assert answers("127.0.0.1", broker.port)
        assert list(tmp_path.iterdir())
    assert gone(pid)
    assert not answers("127.0.0.1", broker.port)
    assert list(tmp_path.iterdir()) == []


def test_each_start_is_another_cluster():
    from kafka import KafkaAdminClient

    seen = set()
    for _ in range(2):
        with LocalBroker() as broker:
            client = KafkaAdminClient(bootstrap_servers=broker.address)
            seen.add(client.describe_cluster()["cluster_id"])
            client.close()
    assert len(seen) == 2


def test_a_missing_wheel_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(local_broker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalBrokerMissing, match=r"install millrace\[broker\]"):
        find_binary()


def test_a_taken_port_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Nothing answers Kafka's requests there, and the broker cannot bind.
        with pytest.raises(BrokerFailed, match=r"embedded broker (ended before|did not)"):
            LocalBroker(port).start()


def test_a_free_port_is_one_that_no_connection_is_given(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port() in range(20_000, 32_000)
        monkeypatch.setattr("infra.broker_process._PORTS", [port])
        with pytest.raises(BrokerFailed, match=f"no free port on 127.0.0.1 from {port}"):
            free_port()


def test_java_that_is_absent_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailable, match="got no java and no mvn; install a Java runtime"):
        fetch_jars()
    assert kafka_broker.missing_tools() == ["java", "mvn"]


def test_maven_that_fails_is_told_and_leaves_no_half_folder(monkeypatch, tmp_path):
    for tool in ("java", "mvn"):
        (tmp_path / tool).write_text("#!/bin/sh\necho cannot resolve\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(KafkaUnavailable, match="mvn failed: cannot resolve"):
        fetch_jars()
    assert list((tmp_path / "cache" / "millrace").iterdir()) == []


def test_a_process_that_ends_early_is_told_with_its_last_words(tmp_path):
    process = BrokerProcess("probe", tmp_path / "log")
    process.start([sys.executable, "-c", "print('no memory'); raise SystemExit(3)"], os.environ)
    with pytest.raises(BrokerFailed, match="probe ended before it answered: no memory"):
        process.wait_until_it_answers(free_port(), 30)


def test_a_process_that_never_answers_is_killed(tmp_path):
    process = BrokerProcess("probe", tmp_path / "log")
    process.start([sys.executable, "-c", "input() if 0 else __import__('signal').pause()"], {})
    pid = process.pid
    with pytest.raises(BrokerFailed, match=r"probe did not answer within 0 s: \(no output\)"):
        process.wait_until_it_answers(free_port(), 0)
    assert gone(pid)


def test_a_process_that_ignores_sigterm_is_killed(tmp_path):
    process = BrokerProcess("probe", tmp_path / "log")
    code = "import signal as s; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); s.pause()"
    process.start([sys.executable, "-c", code], {})
    while "up" not in process.log_tail():
        threading.Event().wait(0.01)
    pid = process.pid
    process.stop(timeout_s=0.1)
    assert gone(pid)
    process.stop()
    process.kill()


def test_what_is_no_broker_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=reply)
        thread.start()
        assert not answers("127.0.0.1", port)
        thread.join()
    assert not answers("127.0.0.1", free_port())


def test_the_command_prints_the_address_and_ends_on_sigint():
    process = subprocess.Popen(
        [sys.executable, "-m", "stream.cli", "broker"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("embedded broker, memory only, for trying out: 127.0.0.1:")
        port = int(line.rpartition(":")[2])
        assert answers("127.0.0.1", port)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not answers("127.0.0.1", port)
    finally:
        process.kill()
        process.stdout.close()


def test_data_without_kafka_is_a_usage_error(capsys, tmp_path):
    assert cli.run(["broker", "--data", str(tmp_path)]) == 2
    assert "--data needs --kafka" in capsys.readouterr().err
