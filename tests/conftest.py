"""Brokers for the tests that need one. A real Kafka is required where MILLRACE_REQUIRE_KAFKA=1.

Tests with a broker come first: the longest ones, of which two processes (`-n 2`) share many.
"""

import contextlib
import gc
import os

import pytest

from infra.kafka_broker import KafkaBroker, KafkaUnavailable, fetch_jars, missing_tools
from infra.local_broker import LocalBroker, LocalBrokerMissing

BROKERS = {"kafka", "own_kafka", "tansu", "broker", "small_broker"}


def pytest_collectstart(collector):
    """What is imported for the tests stays: none of it is garbage."""
    gc.disable()


def pytest_collection_finish(session):
    """From here on there is garbage, but not among the million objects of imported modules.

    Kafka's jars are fetched before: minutes, on a new machine, and no test's time limit has them.
    """
    real = {"kafka", "own_kafka", "broker"}
    chosen = not session.config.option.collectonly and session.items
    if any(real & set(item.fixturenames) for item in chosen or ()) and not missing_tools():
        with contextlib.suppress(KafkaUnavailable):  # whoever needs them says so
            fetch_jars()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """With a broker first."""
    items.sort(key=lambda item: not BROKERS & set(item.fixturenames))


def _absent(reason):
    if os.environ.get("MILLRACE_REQUIRE_KAFKA") == "1":
        pytest.fail(f"MILLRACE_REQUIRE_KAFKA=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka():
    """A real Kafka that runs; tests take topics and groups of their own. Has `.address`."""
    if missing := missing_tools():
        _absent(f"no real broker: {' and '.join(missing)} not on the path")
    try:
        broker = KafkaBroker().start()
    except KafkaUnavailable as error:
        _absent(str(error))
    yield broker
    broker.close()


@pytest.fixture
def own_kafka():
    """A real Kafka for one test that stops, kills or restarts it."""
    if missing := missing_tools():
        _absent(f"no real broker: {' and '.join(missing)} not on the path")
    try:
        broker = KafkaBroker().start()
    except KafkaUnavailable as error:
        _absent(str(error))
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def tansu():
    """The embedded broker that runs. Has `.address`."""
    try:
        broker = LocalBroker().start()
    except LocalBrokerMissing as error:
        pytest.skip(str(error))
    yield broker
    broker.stop()
