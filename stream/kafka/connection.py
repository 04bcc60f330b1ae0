"""How to reach the broker, and what it means when that fails. Sends and reads no record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError

from infra.errors import FaultError
from stream.kafka.settings import KafkaConfig


class BrokerUnreachableError(FaultError):
    """No broker answered at the configured address."""


@contextmanager
def admin_client(config: KafkaConfig) -> Iterator[KafkaAdminClient]:
    """An administration client; raises BrokerUnreachableError within `connect_timeout_s`."""
    servers = config.servers
    try:
        client = KafkaAdminClient(
            bootstrap_servers=servers,
            client_id="millrace",
            bootstrap_timeout_ms=int(config.connect_timeout_s * 1000),
            request_timeout_ms=int(config.connect_timeout_s * 1000),
        )
        # Asked for here, so that a broker that is away shows as that and not as its consequence.
        client.describe_cluster()
    except KafkaTimeoutError as error:
        raise unreachable(config) from error
    except (KafkaError, OSError, ValueError) as error:
        raise BrokerUnreachableError(f"broker {config.broker}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def unreachable(config: KafkaConfig) -> BrokerUnreachableError:
    """The error for a broker that does not answer."""
    return BrokerUnreachableError(
        f"broker {config.broker} does not answer within {config.connect_timeout_s:g} s: "
        "is it running, and is the address right?"
    )
