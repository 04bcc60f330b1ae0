"""The worker's shell at rebalances, without a broker."""

from __future__ import annotations

import asyncio
import json

import pytest
from faust.types import TP

from infra.errors import FaultError, InputError
from stream.kafka.settings import KafkaConfig, ShellConfig, TopicsConfig, WorkerConfig
from stream.kafka.shell import Shell
from stream.records import TopicPartition

PARTITIONS = [TopicPartition(t, p) for t in ("impressions", "clicks") for p in (0, 1)]


class Host:
    """A Faust app in which nothing goes on."""

    def __init__(self):
        self.ended_by = None

    def group_error(self):
        return None

    def busy_elsewhere(self):
        return False

    async def die(self, error):
        self.ended_by = error


def shell_in(folder):
    config = ShellConfig(
        kafka=KafkaConfig(broker="127.0.0.1:1", group="g"),
        topics=TopicsConfig(),
        worker=WorkerConfig(status_file=str(folder / "status.json")),
    )

    def make_engine(_partitions):
        raise AssertionError("nothing is loaded here")

    host = Host()
    shell = Shell(config, make_engine, host, partitions=PARTITIONS, idle_ms=1000, new_log=False)
    return shell, host


def state(folder):
    return json.loads((folder / "status.json").read_text())


def test_a_standby_tells_again_and_again_that_it_lives_and_that_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("stream.kafka.status._EVERY_S", 0.0)

    async def run():
        shell, host = shell_in(tmp_path)
        await shell.on_nothing_assigned()
        (tmp_path / "status.json").unlink()
        await shell.beat()
        assert state(tmp_path)["state"] == "standby"
        await shell.stop()
        assert state(tmp_path)["state"] == "stopped"
        (tmp_path / "status.json").unlink()
        await shell.beat()
        assert not (tmp_path / "status.json").exists()
        return host.ended_by

    assert asyncio.run(run()) is None


def test_one_that_loses_the_partitions_while_it_takes_over_ends(tmp_path):
    """By the time it gets them again, what it has loaded would be old."""

    async def run():
        shell, host = shell_in(tmp_path)
        loading = asyncio.Event()

        async def take_over():
            loading.set()
            await asyncio.Event().wait()

        shell._takeover.run = take_over
        opening = asyncio.create_task(shell.start_offsets(frozenset(TP(*tp) for tp in PARTITIONS)))
        await loading.wait()
        opening.cancel()  # as a rebalance does
        await asyncio.wait({opening})
        await shell.on_nothing_assigned()
        return shell.failure, host.ended_by

    failure, ended_by = asyncio.run(run())
    assert isinstance(failure, FaultError)
    assert failure is ended_by
    assert "lost all partitions to another member" in str(failure)


@pytest.mark.parametrize(
    ("assigned", "says"),
    (
        ([("clicks", 0), ("clicks", 1)],
         "assigned 0 of 2 partitions of 'impressions' and 2 of 2 partitions of 'clicks'"),
        ([*PARTITIONS, ("impressions", 2)], "assigned 3 of 2 partitions of 'impressions'"),
    ),
)  # fmt: skip
def test_other_partitions_than_those_of_the_start_are_told_by_topic(tmp_path, assigned, says):
    async def run():
        shell, _ = shell_in(tmp_path)
        await shell.start_offsets(frozenset(TP(*tp) for tp in assigned))

    with pytest.raises(InputError) as error:
        asyncio.run(run())
    assert says in str(error.value)
    assert "is another program in group 'g'?" in str(error.value)
