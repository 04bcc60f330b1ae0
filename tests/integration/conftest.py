"""Brokers of the integration tests, by address."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def broker(request):
    """host:port of a real Kafka; MILLRACE_TEST_BROKER names one that already runs."""
    return os.environ.get("MILLRACE_TEST_BROKER") or request.getfixturevalue("kafka").address


@pytest.fixture(scope="session")
def small_broker(request):
    """host:port of the embedded broker; MILLRACE_TEST_TANSU names one that already runs."""
    return os.environ.get("MILLRACE_TEST_TANSU") or request.getfixturevalue("tansu").address
